"""Errors, options, files, the device mesh: what every wing stands on; nothing of images."""
