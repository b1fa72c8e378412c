"""Targets: what the encoder has to predict."""
