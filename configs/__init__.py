"""Experiments, one a file; hierjax.configs where hierjax is installed.

A package, so that one file can build on another: `from configs import ladder`.
"""
