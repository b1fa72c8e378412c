"""Losses: one file each, with the source it follows."""
