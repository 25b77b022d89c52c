"""The taxonomy: a table of paths, one row per finest class, one column per level."""
