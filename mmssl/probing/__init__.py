"""Probes on cached features: many heads at once, and the protocols that compare upstreams."""
