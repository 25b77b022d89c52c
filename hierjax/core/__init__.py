"""Errors, options, files, the device mesh: what every other wing stands on and none of it knows of images."""
