"""Which parameters train: by name (`targets`), how many (`estimate`; both need no torch), in a model (`adapter`)."""
