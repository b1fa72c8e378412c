"""Augmentations of single clips: everything random is drawn from the generator that is handed in."""
