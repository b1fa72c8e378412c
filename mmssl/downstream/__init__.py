"""Heads, pooling and tasks."""
