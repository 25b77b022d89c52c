"""The training step, its set-up, the loop, checkpoints and logs."""
