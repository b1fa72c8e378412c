"""Objectives: what an encoder is trained by, composed of views, targets and losses."""
