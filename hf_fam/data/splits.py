"""Names of the splits."""

TRAIN, VALIDATION, TEST = "train", "validation", "test"
