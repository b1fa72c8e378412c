"""A thin layer over Lightning: fit one head, sweep its learning rate."""
