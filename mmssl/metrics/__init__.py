"""Metrics on plain arrays, with intervals."""
