"""TERA.

Source: Liu et al. 2021, "TERA: Self-Supervised Learning of Transformer Encoder Representation for Speech", section III.
"""

from __future__ import annotations

from mmssl.errors import ConfigError
from mmssl.objectives.encoders import FrameEncoder
from mmssl.objectives.heads import FrameDecoder
from mmssl.objectives.losses.regression import L1
from mmssl.objectives.maskers import Alteration
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.tap import Tap
from mmssl.objectives.term import Term
from mmssl.objectives.views import SpanMasked
from mmssl.upstreams.tera import Tera


def tera(
    upstream: Tera,
    *,
    time_probability: float = 0.15,
    time_span: int = 7,
    max_bins: int = 16,
    noise_probability: float = 0.15,
    noise_deviation: float = 0.2,
    health_every: int = 50,
) -> Objective:
    """Restore log-mel frames that were altered along time, along frequency and in magnitude; L1 over all frames.

    Args:
        upstream: a transformer on log-mel frames (tera, mockingjay).
        time_probability: share of frames altered along time, in spans that keep apart.
        time_span: frames of a span.
        max_bins: widest block of bins that is set to zero; 0 for no alteration along frequency.
        noise_probability, noise_deviation: of the alteration of magnitude.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream.
    """
    encoder = FrameEncoder(upstream)
    bins, size = upstream.projection.in_features, upstream.projection.out_features
    if max_bins >= bins:
        raise ConfigError(f"max_bins must be less than the {bins} bins of the frames, got {max_bins}.")
    terms = [Term("restoration", L1(), Tap("input"), FrameDecoder(size, bins), where="all")]
    masker = Alteration(max_bins, noise_probability, noise_deviation)
    views = SpanMasked(masker, time_probability, time_span, min_spans=1, no_overlap=True)
    return Objective(encoder, views, terms, health_every)
