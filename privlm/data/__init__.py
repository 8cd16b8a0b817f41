"""Data sets: their files (`locate`), files as columns (`readers`, `table`), labelled texts (`text_classification`),
`instructions`, token ids (`encoding`), cached `features`. None but the last two needs torch.
"""
