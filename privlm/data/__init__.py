"""Data sets: their files (`files`), labelled texts (`text_classification`), token ids (`encoding`), cached `features`.

The first two need no torch.
"""
