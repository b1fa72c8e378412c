"""Audio-visual correspondence.

Sources: Arandjelovic and Zisserman 2017, "Look, Listen and Learn", whose settings are the defaults, and 2018, "Objects
that Sound" (AVE-Net).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from mmssl.errors import ConfigError
from mmssl.objectives.av_augment import GivenAugmentation, pair_augmentation
from mmssl.objectives.av_encoders import DistanceJoin, PairJoin, PooledJoin, TwoTowerEncoder, ViewLabels
from mmssl.objectives.av_views import Correspondence
from mmssl.objectives.losses.match import MatchCrossEntropy
from mmssl.objectives.objective import Objective
from mmssl.objectives.term import Term
from mmssl.upstreams.two_tower import TwoTower

JOINS: Mapping[str, Callable[[int, int, int], PairJoin]] = {
    "concat": PooledJoin,
    "distance": DistanceJoin,
    "timed_distance": partial(DistanceJoin, timed=True),
}


def correspondence(
    upstream: TwoTower,
    *,
    audio_seconds: float | None = 1.0,
    num_frames: int | None = 1,
    size: int = 128,
    join: str = "concat",
    different: str | None = None,
    same: str | None = None,
    control: str = "none",
    augment: GivenAugmentation = None,
    health_every: int = 50,
) -> Objective:
    """Tell whether a sound and pictures come from one clip and time, or from two clips.

    Args:
        upstream: the encoder, with two towers.
        audio_seconds, num_frames: of the crops, see `AlignedCrops`; with single pictures instead of video,
            audio_seconds must be None.
        size: of the layer that joins the towers, or of those before the distance.
        join: "concat", a hidden layer on the maxima of both towers as in L3-Net; "distance", that of their unit vectors
            as in AVE-Net; or "timed_distance", for video, that of the frames at each time, see `DistanceJoin`.
        different: label in which the clips of a false pair must differ, such as "speaker"; None for any other clip.
        same: label in which they must agree; see `Correspondence`. Either needs the label among `pretrain.labels`.
        control: "none", or "shuffled", "audio_only" or "video_only", under which nothing can be learnt.
        augment: of sound and pictures, or arguments of `PairAugmentation`; nothing by default.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or settings out of range.
    """
    if join not in JOINS:
        raise ConfigError(f"join must be one of {', '.join(JOINS)}, got {join!r}.")
    encoder, streams = TwoTowerEncoder(upstream), upstream.spec.streams
    views = Correspondence(audio_seconds, num_frames, control, different, same, pair_augmentation(augment))
    audio, video = (streams[name].hidden_sizes[-1] for name in ("audio", "video"))
    encoder.joint = JOINS[join](audio, video, size)
    head = nn.Linear(1 if join.endswith("distance") else size, 2)
    term = Term("match", MatchCrossEntropy(), ViewLabels(), head, where="all", stream="fusion", pool=True)
    return Objective(encoder, views, [term], health_every)
