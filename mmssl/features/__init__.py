"""Frozen features: the engine that computes them and the store that keeps them."""
