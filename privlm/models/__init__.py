"""Models: files at hand (`files`), shapes read from config.json (`architecture`), the classifier itself (`encoder`).

The first two need no torch.
"""
