"""The training loop, checkpoints, optimisers, distributed start, tracking."""
