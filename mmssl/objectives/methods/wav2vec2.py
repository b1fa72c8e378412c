"""wav2vec 2.0.

Source: Baevski et al. 2020, "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations",
equations 2 to 4; defaults are those of its base model.
"""

from __future__ import annotations

from torch import nn

from mmssl.nn.quantizers import GumbelQuantizer
from mmssl.objectives.encoders import SpeechEncoder
from mmssl.objectives.losses.diversity import Diversity
from mmssl.objectives.losses.feature_penalty import FeaturePenalty
from mmssl.objectives.losses.utterance_info_nce import UtteranceInfoNCE
from mmssl.objectives.maskers import MaskEmbedding
from mmssl.objectives.objective import Objective
from mmssl.objectives.schedule import Exponential
from mmssl.objectives.targets.quantized import QuantizedTap
from mmssl.objectives.term import Term
from mmssl.objectives.views import SpanMasked
from mmssl.upstreams.speech_transformer import SpeechTransformer


def wav2vec2(
    upstream: SpeechTransformer,
    *,
    mask_probability: float = 0.65,
    mask_span: int = 10,
    num_negatives: int = 100,
    temperature: float = 0.1,
    num_groups: int = 2,
    num_entries: int = 320,
    size: int = 256,
    gumbel: tuple[float, float, float] = (2.0, 0.5, 0.999995),
    diversity_weight: float = 0.1,
    feature_penalty: float = 10.0,
    front_end_gradient: float = 0.1,
    health_every: int = 50,
) -> Objective:
    """Tell the quantized latent of a hidden frame from those of other hidden frames of the utterance.

    Args:
        upstream: the encoder, any speech transformer.
        mask_probability, mask_span: of the mask on the projected latents, see `span_mask`.
        num_negatives, temperature: of the contrast.
        num_groups, num_entries: of the codebooks.
        size: of quantized vectors and of the space of the contrast.
        gumbel: temperature of the choice at the start, at least, and its factor for each step.
        diversity_weight: of the codebook penalty.
        feature_penalty: weight of the latents' mean square, where convolutions give them; 0 for none.
        front_end_gradient: see `SpeechEncoder`.
        health_every: see `Objective`.
    """
    encoder = SpeechEncoder(upstream, front_end_gradient)
    config = upstream.config
    quantizer = GumbelQuantizer(upstream.front_end.output_size, size, num_groups, num_entries)
    target = QuantizedTap(quantizer, nn.Linear(size, size), Exponential(*gumbel))
    terms = [
        Term(
            "contrast",
            UtteranceInfoNCE(num_negatives, temperature),
            target,
            nn.Linear(config.hidden_size, size),
        ),
        Term("diversity", Diversity(), source="code_probabilities", weight=diversity_weight),
    ]
    if feature_penalty and not upstream.config.mel_bins:
        terms.append(Term("feature_penalty", FeaturePenalty(), source="latents", where="all", weight=feature_penalty))
    views = SpanMasked(MaskEmbedding(config.hidden_size), mask_probability, mask_span)
    return Objective(encoder, views, terms, health_every)
