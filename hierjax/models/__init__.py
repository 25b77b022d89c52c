"""Backbones, heads, their layers and their weights."""
