"""Probabilities of a split, metrics, bootstrap intervals and explanations."""
