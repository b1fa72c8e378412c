"""Audio-visual synchrony.

Sources: Owens and Efros 2018, "Audio-Visual Scene Analysis with Self-Supervised Multisensory Features"; easy and hard
negatives of Korbar et al. 2018, "Cooperative Learning of Audio and Video Models from Self-Supervised Synchronization",
whose loss is a margin instead.
"""

from __future__ import annotations

from torch import nn

from mmssl.errors import ConfigError
from mmssl.objectives.av_augment import GivenAugmentation, pair_augmentation
from mmssl.objectives.av_encoders import TimedJoin, TwoTowerEncoder, ViewLabels
from mmssl.objectives.av_views import Synchrony
from mmssl.objectives.losses.match import MatchCrossEntropy
from mmssl.objectives.objective import Objective
from mmssl.objectives.term import Term
from mmssl.upstreams.two_tower import TwoTower


def synchrony(
    upstream: TwoTower,
    *,
    crop_seconds: float = 4.2,
    min_shift: float = 2.0,
    max_shift: float = 5.8,
    hard_share: float = 1.0,
    hard_from_epoch: int = 0,
    size: int = 128,
    kernel: int = 5,
    control: str = "none",
    augment: GivenAugmentation = None,
    health_every: int = 50,
) -> Objective:
    """Tell whether sound and video of one clip are of the same time, or shifted against each other.

    Segments must be longer than crop_seconds + min_shift.

    Args:
        upstream: the encoder, with two towers.
        crop_seconds: of each crop.
        min_shift, max_shift: of false pairs, in seconds, within the segment.
        hard_share: share of clips whose false pairs are shifted; those of the others have the sound of another clip.
        hard_from_epoch: before this epoch all false pairs are of the second, easy kind.
        size, kernel: of the convolutions over time that join the towers.
        control: "none", or "shuffled", "audio_only" or "video_only", under which nothing can be learnt.
        augment: of sound and pictures, or arguments of `PairAugmentation`; nothing by default.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or settings out of range.
    """
    if not 0 <= hard_share <= 1 or hard_from_epoch < 0:
        raise ConfigError(
            f"hard_share must be in [0, 1] and hard_from_epoch at least 0, got {hard_share} and {hard_from_epoch}."
        )

    def share(epoch: int) -> float:
        return hard_share if epoch >= hard_from_epoch else 0.0

    encoder, streams = TwoTowerEncoder(upstream), upstream.spec.streams
    views = Synchrony(crop_seconds, min_shift, max_shift, share, control, pair_augmentation(augment))
    audio, video = (streams[name].hidden_sizes[-1] for name in ("audio", "video"))
    encoder.joint = TimedJoin(audio, video, size, kernel)
    term = Term("match", MatchCrossEntropy(), ViewLabels(), nn.Linear(size, 2), where="all", stream="fusion", pool=True)
    return Objective(encoder, views, [term], health_every)
