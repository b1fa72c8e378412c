"""HuBERT.

Source: Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units",
equations 1 to 3; defaults are those of its base model.
"""

from __future__ import annotations

from mmssl.errors import ConfigError
from mmssl.objectives.encoders import SpeechEncoder
from mmssl.objectives.heads import CosineLogits
from mmssl.objectives.losses.cross_entropy import MaskedCrossEntropy
from mmssl.objectives.losses.feature_penalty import FeaturePenalty
from mmssl.objectives.maskers import MaskEmbedding
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.units import Units, read_units
from mmssl.objectives.term import Term
from mmssl.objectives.views import SpanMasked
from mmssl.upstreams.speech_transformer import SpeechTransformer


def hubert(
    upstream: SpeechTransformer,
    *,
    units: str,
    num_units: int,
    units_rate: float | None = None,
    mask_probability: float = 0.8,
    mask_span: int = 10,
    size: int = 256,
    temperature: float = 0.1,
    visible_weight: float = 0.0,
    feature_penalty: float = 10.0,
    front_end_gradient: float = 0.1,
    health_every: int = 50,
) -> Objective:
    """Predict the cluster of each hidden frame.

    Args:
        upstream: the encoder, any speech transformer.
        units: label file, see `mmssl.objectives.targets.units.read_units`.
        num_units: number of clusters.
        units_rate: of the labels, in Hz; None for the encoder's frame rate.
        mask_probability, mask_span: of the mask on the projected latents, see `span_mask`.
        size: of the projection that is compared with the clusters' vectors.
        temperature: divides the cosines.
        visible_weight: weight of the loss on frames that are not hidden.
        feature_penalty: weight of the latents' mean square, where convolutions give them; 0 for none.
        front_end_gradient: see `SpeechEncoder`.
        health_every: see `Objective`.

    Raises:
        ConfigError: units beyond `num_units`.
        DataError: the label file cannot be read.
    """
    labels = read_units(units)
    largest = max(int(values.max()) for values in labels.values())
    if largest >= num_units:
        raise ConfigError(f"{units} holds the unit {largest}; num_units = {num_units} allows 0 ... {num_units - 1}.")
    config = upstream.config
    target = Units(labels, units_rate)
    head = CosineLogits(config.hidden_size, num_units, size, temperature)
    terms = [Term("hidden", MaskedCrossEntropy(), target, head)]
    if visible_weight:
        terms.append(Term("visible", MaskedCrossEntropy(), target, head, where="visible", weight=visible_weight))
    if feature_penalty and not upstream.config.mel_bins:
        terms.append(Term("feature_penalty", FeaturePenalty(), source="latents", where="all", weight=feature_penalty))
    views = SpanMasked(MaskEmbedding(config.hidden_size), mask_probability, mask_span)
    return Objective(SpeechEncoder(upstream, front_end_gradient), views, terms, health_every)
