"""Upstreams: SSL encoders that return every layer. One file per family; `base.py` has the contract."""
