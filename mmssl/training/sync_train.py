"""Training and judging a comparison of sound and pictures on media files with known shifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmssl.downstream.sync import detection_metrics, estimate_offset, sync_metrics
from mmssl.errors import ConfigError, DataError, InputError, MediaError
from mmssl.random import isolated_rng
from mmssl.training.fit import FitResult, fit
from mmssl.training.sync_media import MediaReader, ShiftedPair, ShiftedPairs, drawn_pairs, dubbed_pairs
from mmssl.training.sync_model import SyncModel, to_device
from mmssl.types import Clip, Layers
from mmssl.upstreams.base import Upstream

Item = tuple[dict[str, Layers], Tensor]


@dataclass
class SyncScores:
    """What a model finds in pairs of known shift.

    Attributes:
        pairs: what was read.
        distances: (N, 2 S + 1) of each.
        metrics: "accuracy", "accuracy_within_1" and "mean_absolute_error" of the offsets of pairs of one clip; chance,
            that of a guess among all shifts, in "chance" and "chance_within_1"; where pairs of known kinds are there,
            "shifted_auc" (detection of shifts above `tolerance` among clips as recorded, by the confidence and offset)
            and "dubbed_auc" (of the sound of another clip, by the confidence).
        skipped: ids of clips that could not be used, and why.
    """

    pairs: list[ShiftedPair]
    distances: Tensor
    metrics: dict[str, float]
    skipped: dict[str, str] = field(default_factory=dict)


def train_synchrony(
    upstream: Upstream,
    train: Sequence[Clip],
    dev: Sequence[Clip],
    *,
    max_shift: int = 15,
    least_frames: int = 10,
    per_clip: int = 6,
    embedding_size: int = 128,
    hidden_size: int = 256,
    temperature: float = 0.1,
    seed: int = 0,
    **settings: Any,
) -> tuple[SyncModel, FitResult]:
    """Train the comparison on a frozen encoder, from clips whose own sound and pictures belong together.

    Every pair is shifted before the encoder sees it, so that nothing in the frames but what they show tells the shift.
    The clips are encoded once per pair; frames of all pairs stay in memory.

    Args:
        upstream: of sound and video.
        train, dev: clips of different speakers; `dev` selects and sets the threshold of "no match".
        max_shift: S, in frames of the video; clips must have 3 S + least_frames frames in both streams: S at either
            end is kept free for the shifts, and at the true shift of up to S so many frames must still meet.
        per_clip: shifts drawn of each clip.
        least_frames, embedding_size, hidden_size, temperature: see `SyncModel`.
        seed: of the shifts, the weights and the order of pairs.
        settings: of `mmssl.training.fit.fit`.

    Raises:
        ConfigError: the encoder does not give both streams on the video's clock.
        DataError: a split is empty, or a clip is too short.
        MediaError: a clip cannot be read.
    """
    if not train or not dev:
        raise DataError(f"Synchrony is trained on clips and selected on others; got {len(train)} and {len(dev)}.")
    with isolated_rng(seed):
        model = SyncModel(
            upstream,
            max_shift=max_shift,
            least_frames=least_frames,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            temperature=temperature,
        )
    check_clock(model)
    generator = torch.Generator().manual_seed(seed)
    reader = MediaReader(upstream.spec)
    splits = [encode_pairs(model, reader, drawn_pairs(clips, per_clip, max_shift, generator)) for clips in (train, dev)]
    assert model.task is not None
    result = fit(model.task, splits[0], splits[1], seed=seed, device=str(upstream.device), **settings)  # type: ignore[arg-type]
    model.eval()
    scores = score_pairs(model, [*(ShiftedPair(clip, clip) for clip in dev), *dubbed_pairs(dev)], skip=True)
    model.threshold = confidence_threshold(scores)
    return model, result


def check_clock(model: SyncModel) -> None:
    """Shifts are known in video frames, so the common clock must be the video's.

    Raises:
        ConfigError: it is a slower one.
    """
    fps = float(model.upstream.spec.video_fps or 0)
    if abs(model.frame_shift * fps - 1) > 1e-6:
        raise ConfigError(
            f"The encoder's audio and video meet every {model.frame_shift:g} s, which is not one video frame "
            f"({1 / fps:g} s): take an encoder with a frame for every picture."
        )


def encode_pairs(model: SyncModel, reader: MediaReader, pairs: Sequence[ShiftedPair]) -> list[Item]:
    """Frozen frames of pairs, each a clip by itself, with their shifts.

    Raises:
        DataError: a clip is too short.
        MediaError: a clip cannot be read.
    """
    dataset = ShiftedPairs(reader, pairs, model.max_shift)
    items: list[Item] = []
    for index in range(len(dataset)):
        inputs, shift = dataset[index]
        found = model.encode(to_device(inputs, model.upstream.device))
        met = int(model.aligned(found)["audio"].lengths[0]) - abs(int(shift))
        if met < model.least_frames:
            raise DataError(
                f"The clip {pairs[index].pictures.id!r} is too short: {met} of its frames meet at a shift of "
                f"{int(shift)}, and least_frames is {model.least_frames}. Leave it out, or lower max_shift or "
                "least_frames."
            )
        items.append(({name: _only_clip(layers) for name, layers in found.items()}, shift))
    return items


def _only_clip(layers: Layers) -> Layers:
    """Of a batch of one clip: (T_k, D_k) without padding."""
    counts = [int(n[0]) for n in layers.lengths]
    states = tuple(h[0, :n].cpu() for h, n in zip(layers.hidden_states, counts, strict=True))
    return Layers(states, tuple(torch.tensor(n) for n in counts))


@torch.no_grad()
def score_pairs(
    model: SyncModel, pairs: Sequence[ShiftedPair], *, skip: bool = False, tolerance: int = 1
) -> SyncScores:
    """Distances and metrics of pairs that are read from media files.

    Args:
        model: to judge.
        pairs: of known shift; of one clip's sound and pictures, or dubbed.
        skip: leave out clips that cannot be read or are too short, and list them.
        tolerance: frames of shift that still count as in sync.

    Raises:
        DataError, MediaError: a clip cannot be used and `skip` is off, or none can.
    """
    check_clock(model)
    reader = MediaReader(model.upstream.spec)
    used: list[ShiftedPair] = []
    rows: list[Tensor] = []
    skipped: dict[str, str] = {}
    for pair in pairs:
        try:
            inputs = to_device(reader.pair(pair, model.max_shift), model.upstream.device)
            rows.append(model.distances(model.encode(inputs)).cpu())
            used.append(pair)
        except (DataError, MediaError, InputError) as error:
            if not skip:
                raise
            skipped[pair.pictures.id] = str(error)
    if not rows:
        first = next(iter(skipped.values()), "none was given")
        raise DataError(f"No pair could be used of {len(pairs)}: {first}")
    distances = torch.cat(rows)
    return SyncScores(used, distances, pair_metrics(used, distances, tolerance), skipped)


def pair_metrics(pairs: Sequence[ShiftedPair], distances: Tensor, tolerance: int = 1) -> dict[str, float]:
    """Metrics of `SyncScores`, those that the pairs allow."""
    own = torch.tensor([pair.sound.id == pair.pictures.id for pair in pairs])
    shifts = torch.tensor([pair.shift for pair in pairs])
    reach = distances.shape[1] // 2
    estimate = estimate_offset(-distances)
    found: dict[str, float] = {}
    if bool(own.any()):
        found |= sync_metrics(-distances[own], shifts[own])
        found |= {"chance": 1 / (2 * reach + 1), "chance_within_1": _chance_within_1(shifts[own], reach)}
    recorded, moved, dubbed = own & (shifts == 0), own & (shifts.abs() > tolerance), ~own
    # how much better another shift fits than none
    gap = distances[:, reach - tolerance : reach + tolerance + 1].amin(1) - distances.amin(1)
    for name, changed, evidence in (("shifted", moved, gap), ("dubbed", dubbed, -estimate.confidence)):
        if bool(recorded.any()) and bool(changed.any()):
            judged = recorded | changed
            found[f"{name}_auc"] = detection_metrics(evidence[judged].numpy(), changed[judged].numpy())["auc"]
    return found


def confidence_threshold(scores: SyncScores) -> float | None:
    """The confidence between recorded and dubbed clips at which as many of the ones are lost as of the others get in.

    None where there are no clips of both kinds, or confidences do not separate them better than a coin does.
    """
    own = torch.tensor([pair.sound.id == pair.pictures.id for pair in scores.pairs])
    values = estimate_offset(-scores.distances).confidence
    recorded, dubbed = values[own].sort().values, values[~own].sort().values
    if not len(recorded) or not len(dubbed) or scores.metrics.get("dubbed_auc", 0.5) <= 0.5:
        return None
    candidates = values.sort().values
    gaps = [
        (abs(float((recorded < t).float().mean()) - float((dubbed >= t).float().mean())), float(t)) for t in candidates
    ]
    return min(gaps)[1]


def _chance_within_1(shifts: Tensor, reach: int) -> float:
    """Share of guesses among all shifts that lie within one frame of the truth."""
    near = (shifts + 1).clamp(max=reach) - (shifts - 1).clamp(min=-reach) + 1
    return float(near.double().mean() / (2 * reach + 1))
