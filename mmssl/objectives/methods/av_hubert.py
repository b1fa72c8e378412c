"""AV-HuBERT.

Source: Shi et al. 2022, "Learning Audio-Visual Speech Representation by Masked Multimodal Cluster Prediction"; defaults
are those of its second and later iterations, whose masks are on the input.
"""

from __future__ import annotations

from mmssl.errors import ConfigError
from mmssl.objectives.av_encoders import AvHubertEncoder
from mmssl.objectives.av_masked import MaskedPair, SpanFromElsewhere
from mmssl.objectives.heads import CosineLogits
from mmssl.objectives.losses.cross_entropy import MaskedCrossEntropy
from mmssl.objectives.losses.feature_penalty import FeaturePenalty
from mmssl.objectives.maskers import MaskEmbedding
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.units import Units, read_units
from mmssl.objectives.term import Term
from mmssl.upstreams.av_hubert import AvHubert


def av_hubert(
    upstream: AvHubert,
    *,
    units: str,
    num_units: int,
    units_rate: float | None = 25.0,
    audio_mask: tuple[float, int] = (0.8, 10),
    video_mask: tuple[float, int] = (0.3, 5),
    modality_dropout: float = 0.5,
    audio_dropout: float = 0.5,
    dropout_per: str = "clip",
    size: int = 256,
    temperature: float = 0.1,
    visible_weight: float = 0.0,
    feature_penalty: float = 10.0,
    control: str = "none",
    health_every: int = 50,
) -> Objective:
    """Predict the cluster of each frame that is hidden from the sound, from the pictures or from both.

    The authors draw the modality dropout once for a batch. Here it is drawn for each clip by default, so that what a
    clip contributes does not depend on the batch it is in.

    Args:
        upstream: the encoder.
        units: label file, see `mmssl.objectives.targets.units.read_units`.
        num_units: number of clusters.
        units_rate: of the labels, in Hz; None for the encoder's frame rate.
        audio_mask, video_mask: probability and span of each mask, see `span_mask`. Hidden sound is a learnt vector,
            hidden pictures are another span of the clip.
        modality_dropout: probability that one modality is dropped.
        audio_dropout: probability that it is the sound.
        dropout_per: "clip" or "batch".
        size: of the projection that is compared with the clusters' vectors.
        temperature: divides the cosines.
        visible_weight: weight of the loss on frames that are not hidden.
        feature_penalty: weight of the projected frames' mean square; 0 for none.
        control: "none"; "shuffled" for the sound of another clip (targets stay with the pictures' clip); "audio_only"
            and "video_only" drop the other modality always.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, units beyond `num_units`, or settings out of range.
        DataError: the label file cannot be read.
    """
    encoder = AvHubertEncoder(upstream)
    labels = read_units(units)
    largest = max(int(values.max()) for values in labels.values())
    if largest >= num_units:
        raise ConfigError(f"{units} holds the unit {largest}; num_units = {num_units} allows 0 ... {num_units - 1}.")
    target = Units(labels, units_rate, stream="fusion")
    head = CosineLogits(upstream.config.encoder.hidden_size, num_units, size, temperature)
    terms = [Term("hidden", MaskedCrossEntropy(), target, head, stream="fusion")]
    if visible_weight:
        terms.append(
            Term(
                "visible",
                MaskedCrossEntropy(),
                target,
                head,
                where="visible",
                weight=visible_weight,
                stream="fusion",
            )
        )
    if feature_penalty:
        penalty = FeaturePenalty()
        terms.append(
            Term("feature_penalty", penalty, source="latents", where="all", weight=feature_penalty, stream="fusion")
        )
    views = MaskedPair(
        MaskEmbedding(upstream.config.audio_size),
        SpanFromElsewhere(int(video_mask[1])),
        (float(audio_mask[0]), int(audio_mask[1])),
        (float(video_mask[0]), int(video_mask[1])),
        modality_dropout,
        audio_dropout,
        dropout_per,
        control,
    )
    return Objective(encoder, views, terms, health_every)
