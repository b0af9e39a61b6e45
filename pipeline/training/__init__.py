"""Training: the loop, what it keeps to go on after an interruption, and several processes."""
