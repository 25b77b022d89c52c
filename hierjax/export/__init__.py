"""A trained run as a folder that answers without jax: its graph, its papers and their check."""
