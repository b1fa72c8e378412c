"""HiCMAE.

Source: Sun et al. 2024, "HiCMAE: Hierarchical Contrastive Masked Autoencoder for Self-Supervised Audio-Visual Emotion
Recognition"; defaults are those of its base model and of its published script.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmssl.objectives.av_patch_encoder import AudioVisualEncoder
from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.losses.regression import MSE
from mmssl.objectives.objective import Objective
from mmssl.objectives.patch_decoders import HierarchicalDecoder
from mmssl.objectives.patch_targets import NormalizedPatches, NormalizedTubelets, StreamMean
from mmssl.objectives.patch_views import DroppedPatches, RandomPatches, TubePatches
from mmssl.objectives.term import Term
from mmssl.upstreams.hicmae import HiCMAE
from mmssl.upstreams.video_mae import TUBELET


def hicmae(
    upstream: HiCMAE,
    *,
    audio_mask_ratio: float = 0.8,
    video_mask_ratio: float = 0.9,
    levels: Sequence[int] = (4, 7, 10),
    decoder_size: int = 384,
    decoder_layers: int = 4,
    decoder_heads: int = 6,
    frame_difference: bool = True,
    contrast_weight: float = 0.0025,
    temperature: float = 0.07,
    gather: bool = False,
    health_every: int = 50,
) -> Objective:
    """Restore the dropped patches of sound and video, and tell which sound and video belong together.

    Terms: "audio" and "video", the mean squared errors of dropped patches, restored from both streams; and one
    "contrast_K" for each level, between the means of the visible tokens after block K.

    Args:
        upstream: the encoders and the fusion.
        audio_mask_ratio: share of the log-mel patches that are dropped.
        video_mask_ratio: share of the places of a slice whose tubelets are dropped.
        levels: blocks of the encoders that are contrasted and that the decoders look at.
        decoder_size, decoder_layers, decoder_heads: of each decoder; they are thrown away afterwards.
        frame_difference: see `NormalizedTubelets`.
        contrast_weight: of each level's contrast; 0.1 is known to harm. 0 leaves the contrasts out.
        temperature: of the contrasts.
        gather: negatives from all ranks; the authors take those of one.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, levels that it does not have, or ratios that hide nothing or all.
    """
    encoder = AudioVisualEncoder(upstream, levels)
    width = upstream.spec.streams["fusion"].hidden_sizes[-1]
    places, pictures = upstream.video.positions.columns, upstream.spec.image_size or (0, 0)
    frames, sizes = upstream.frames, (decoder_size, decoder_layers, decoder_heads)
    audio = HierarchicalDecoder(width, frames.columns, frames.patch_size**2, levels, *sizes)
    values = TUBELET * 3 * pictures[0] * pictures[1] // places
    video = HierarchicalDecoder(width, places, values, levels, *sizes)
    terms = [
        Term("audio", MSE(), NormalizedPatches("audio"), audio),
        Term("video", MSE(), NormalizedTubelets(3, frame_difference), video, stream="video"),
    ]
    for level in sorted(levels) if contrast_weight else ():
        tap = f"layer.{level}"
        terms.append(
            Term(
                f"contrast_{level}",
                InfoNCE(temperature, gather=gather),
                StreamMean(tap, "video"),
                weight=contrast_weight,
                where="visible",
                source=tap,
                pool=True,
            )
        )
    masks = {
        "audio": RandomPatches(audio_mask_ratio, round_visible=False),
        "video": TubePatches(places, video_mask_ratio),
    }
    return Objective(encoder, DroppedPatches(masks), terms, health_every)
