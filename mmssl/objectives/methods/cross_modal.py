"""Cross-modal InfoNCE.

Sources: Tian et al. 2020, "Contrastive Multiview Coding"; Morgado et al. 2021, "Audio-Visual Instance Discrimination
with Cross-Modal Agreement", of which this is cross-modal discrimination with negatives of the batch, not of a memory.
"""

from __future__ import annotations

from mmssl.errors import ConfigError
from mmssl.objectives.av_augment import GivenAugmentation, pair_augmentation
from mmssl.objectives.av_encoders import PooledStream, TwoTowerEncoder, projector
from mmssl.objectives.av_views import AlignedCrops
from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.objective import Objective
from mmssl.objectives.term import Term
from mmssl.upstreams.two_tower import TwoTower


def cross_modal(
    upstream: TwoTower,
    *,
    audio_seconds: float | None = None,
    num_frames: int | None = None,
    temperature: float = 0.07,
    size: int = 128,
    hidden_size: int | None = 512,
    symmetric: bool = True,
    gather: bool = False,
    control: str = "none",
    augment: GivenAugmentation = None,
    health_every: int = 50,
) -> Objective:
    """Find the pictures of a sound among those of the batch, and the sound of pictures.

    Args:
        upstream: the encoder, with two towers.
        audio_seconds, num_frames: of the crops, see `AlignedCrops`; None for whole segments.
        temperature: divides the cosines.
        size, hidden_size: of either tower's projector.
        symmetric: both directions; False for sound to pictures alone.
        gather: negatives from all ranks; their number is in the log.
        control: "none", or "shuffled", "audio_only" or "video_only", under which nothing can be learnt.
        augment: of sound and pictures, or arguments of `PairAugmentation`; nothing by default.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or settings out of range.
    """
    if size < 1:
        raise ConfigError(f"size must be at least 1, got {size}.")
    encoder = TwoTowerEncoder(upstream)
    heads = {
        name: projector(upstream.spec.streams[name].hidden_sizes[-1], size, hidden_size) for name in ("audio", "video")
    }
    term = Term(
        "contrast",
        InfoNCE(temperature, symmetric, gather),
        PooledStream("video", heads["video"]),
        heads["audio"],
        where="all",
        stream="audio",
        pool=True,
    )
    views = AlignedCrops(audio_seconds, num_frames, control, pair_augmentation(augment))
    return Objective(encoder, views, [term], health_every)
