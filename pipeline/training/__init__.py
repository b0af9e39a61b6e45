"""Training: the loop, checkpoints to resume from, and training in several processes."""
