"""Data: readers, splits, transforms, the pipeline, checks, and the drawn toy set."""
