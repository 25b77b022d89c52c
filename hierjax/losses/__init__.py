"""Losses per example, as pure functions, and the balancers that weigh them."""
