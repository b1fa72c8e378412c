"""VideoMAE.

Source: Tong et al. 2022, "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training"; defaults are those of its base model.
"""

from __future__ import annotations

from mmssl.objectives.losses.regression import MSE
from mmssl.objectives.objective import Objective
from mmssl.objectives.patch_decoders import PatchDecoder
from mmssl.objectives.patch_encoder import TubeletEncoder
from mmssl.objectives.patch_targets import NormalizedTubelets
from mmssl.objectives.patch_views import DroppedPatches, TubePatches
from mmssl.objectives.targets.tap import Tap
from mmssl.objectives.term import Term
from mmssl.upstreams.video_mae import TUBELET, VideoMAE


def video_mae(
    upstream: VideoMAE,
    *,
    mask_ratio: float = 0.9,
    decoder_size: int = 384,
    decoder_layers: int = 4,
    decoder_heads: int = 6,
    normalize_patches: bool = True,
    health_every: int = 50,
) -> Objective:
    """Restore the pixels of tubelets that are dropped in the same places of all slices.

    Args:
        upstream: the encoder.
        mask_ratio: share of the places of a slice whose tubelets are dropped.
        decoder_size, decoder_layers, decoder_heads: of the decoder, which is thrown away afterwards.
        normalize_patches: targets of mean 0 and deviation 1 within each channel of a tubelet.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or a ratio that hides nothing or all.
    """
    encoder = TubeletEncoder(upstream)
    places, channels = upstream.encoder.positions.columns, len(upstream.image_mean)
    pictures = upstream.spec.image_size or (0, 0)
    decoder = PatchDecoder(
        upstream.spec.streams["video"].hidden_sizes[-1],
        places,
        TUBELET * channels * pictures[0] * pictures[1] // places,
        decoder_size,
        decoder_layers,
        decoder_heads,
        positions="sequence",
        embed_bias=False,
    )
    target = NormalizedTubelets(channels) if normalize_patches else Tap("patches", stream="video")
    term = Term("restoration", MSE(), target, decoder, stream="video")
    return Objective(encoder, DroppedPatches({"video": TubePatches(places, mask_ratio)}), [term], health_every)
