"""Experiments, one a file. A package so that one file can build on another: `from configs import ladder`."""
