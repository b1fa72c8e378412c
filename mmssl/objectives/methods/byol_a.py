"""BYOL-A.

Sources: Niizumi et al. 2021, "BYOL for Audio: Self-Supervised Learning for General-Purpose Audio Representation",
section III; the random linear fader of Niizumi et al. 2023. Defaults are those of the first, but for the fader.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmssl.errors import DataError
from mmssl.objectives.losses.cosine import Cosine
from mmssl.objectives.objective import Objective
from mmssl.objectives.projectors import MLP
from mmssl.objectives.targets.other_view import TeacherView
from mmssl.objectives.term import Term
from mmssl.objectives.view_encoders import SpectrogramViewEncoder
from mmssl.objectives.views_augmented import MixedSpectrograms, SpectrogramCrop
from mmssl.upstreams.byol_a import ByolA


def byol_a(
    upstream: ByolA,
    *,
    frames: int = 96,
    mixup: float = 0.4,
    resize: bool = True,
    fader: float = 1.0,
    hidden_size: int = 4096,
    size: int = 256,
    decay: float = 0.99,
    health_every: int = 50,
) -> Objective:
    """Predict what a moving average makes of another augmentation of the same stretch of sound.

    The encoder's log-mel statistics (`mean`, `std` of the upstream) should be those of the corpus: see
    `log_mel_statistics`.

    Args:
        upstream: byol_a.
        frames: of a stretch, 10 ms each; 96 in the paper.
        mixup: largest share of another clip of the batch.
        resize: whether views are random boxes, resized.
        fader: largest gain of the random linear fader; 0 for none, as in the paper of 2021.
        hidden_size, size: of projector and predictor.
        decay: of the teacher, encoder and projector.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or a value out of range.
    """
    encoder = SpectrogramViewEncoder(upstream)
    projector = MLP((upstream.spec.streams["audio"].hidden_sizes[-1], hidden_size, size))
    head = nn.Sequential(projector, MLP((size, hidden_size, size)))
    views = MixedSpectrograms(frames, mixup, SpectrogramCrop() if resize else None, fader)
    term = Term(
        "prediction",
        Cosine("byol"),
        TeacherView(projector, decay, "audio"),
        head,
        # the loss of the paper is the sum over both directions, that of a term the mean
        weight=2.0,
        where="all",
        pairs=((0, 1), (1, 0)),
        pool=True,
    )
    return Objective(encoder, views, [term], health_every)


@torch.no_grad()
def log_mel_statistics(upstream: ByolA, waveforms: Iterable[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all log-mel values of a corpus, for `ByolA(mean=..., std=...)`.

    Args:
        upstream: whose log-mel is meant.
        waveforms: (T,) at 16 kHz; those too short for a frame are left out.

    Raises:
        DataError: no waveform is long enough, or all values are equal.
    """
    count, total, squares = 0, 0.0, 0.0
    for waveform in waveforms:
        if len(waveform) >= upstream.log_mel.min_length:
            values = upstream.log_mel(waveform[None]).double()
            count += values.numel()
            total, squares = total + float(values.sum()), squares + float(values.square().sum())
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if variance <= 0:
        raise DataError(f"The log-mel statistics of {count} values have no spread: give clips with sound.")
    return total / count, variance**0.5
