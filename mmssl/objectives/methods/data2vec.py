"""data2vec on speech.

Source: Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language"; defaults are those of its base speech model.
"""

from __future__ import annotations

from torch import nn

from mmssl.objectives.encoders import SpeechEncoder
from mmssl.objectives.losses.regression import MSE
from mmssl.objectives.maskers import MaskEmbedding
from mmssl.objectives.objective import Objective
from mmssl.objectives.schedule import Linear
from mmssl.objectives.targets.teacher import TeacherLayers
from mmssl.objectives.term import Term
from mmssl.objectives.views import SpanMasked
from mmssl.upstreams.speech_transformer import SpeechTransformer


def data2vec(
    upstream: SpeechTransformer,
    *,
    mask_probability: float = 0.65,
    mask_span: int = 10,
    top_k: int = 8,
    decay: tuple[float, float] = (0.999, 0.9999),
    decay_steps: int = 30000,
    front_end_gradient: float = 1.0,
    health_every: int = 50,
) -> Objective:
    """Regress, at hidden frames, the mean of a teacher's last K feed-forward outputs for the whole clip.

    Args:
        upstream: the encoder, any speech transformer.
        mask_probability, mask_span: of the mask on the projected latents, see `span_mask`.
        top_k: K.
        decay: of the teacher's moving average, at the start and at the end of `decay_steps`.
        decay_steps: optimizer steps over which it goes linearly from the one to the other.
        front_end_gradient: see `SpeechEncoder`.
        health_every: see `Objective`.
    """
    size = upstream.config.hidden_size
    target = TeacherLayers(top_k, Linear(*decay, decay_steps))
    terms = [Term("regression", MSE(scale_by_size=True), target, nn.Linear(size, size))]
    views = SpanMasked(MaskEmbedding(size), mask_probability, mask_span)
    return Objective(SpeechEncoder(upstream, front_end_gradient), views, terms, health_every)
