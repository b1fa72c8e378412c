"""Audio-visual correspondence.

Source: Arandjelovic and Zisserman 2017, "Look, Listen and Learn"; defaults are those of the paper.
"""

from __future__ import annotations

from torch import nn

from mmssl.objectives.av_encoders import PooledJoin, TwoTowerEncoder, ViewLabels
from mmssl.objectives.av_views import Correspondence
from mmssl.objectives.losses.match import MatchCrossEntropy
from mmssl.objectives.objective import Objective
from mmssl.objectives.term import Term
from mmssl.upstreams.two_tower import TwoTower


def correspondence(
    upstream: TwoTower,
    *,
    audio_seconds: float | None = 1.0,
    num_frames: int | None = 1,
    size: int = 128,
    different: str | None = None,
    control: str = "none",
    health_every: int = 50,
) -> Objective:
    """Tell whether a sound and pictures come from one clip and time, or from two clips.

    Args:
        upstream: the encoder, with two towers.
        audio_seconds, num_frames: of the crops, see `AlignedCrops`; with single pictures instead of video,
            audio_seconds must be None.
        size: of the layer that joins the towers.
        different: label in which the clips of a false pair must differ, such as "speaker"; None for any other clip.
        control: "none", or "shuffled", "audio_only" or "video_only", under which nothing can be learnt.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or settings out of range.
    """
    encoder, streams = TwoTowerEncoder(upstream), upstream.spec.streams
    views = Correspondence(audio_seconds, num_frames, control, different)
    audio, video = (streams[name].hidden_sizes[-1] for name in ("audio", "video"))
    encoder.joint = PooledJoin(audio, video, size)
    term = Term("match", MatchCrossEntropy(), ViewLabels(), nn.Linear(size, 2), where="all", stream="fusion", pool=True)
    return Objective(encoder, views, [term], health_every)
