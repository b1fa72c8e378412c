"""Stage 4 of recipes/av_sync: find by how much the sound of a clip is late, from frozen frames of both streams.

Clips are cut within themselves: the pictures of a cut are always those of the middle, and the sound begins `offset`
frames earlier, which makes it come that much late. Nothing is rolled or padded, every frame is a real one of the clip,
and no stream alone tells the offset; scores with the pictures of another clip are given as the control for that.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmssl.errors import ConfigError, DataError
from mmssl.random import mix
from mmssl.stages.av_features import AvStore
from mmssl.stages.av_jobs import PairJob, pair_jobs, run_jobs, write_result
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO
from mmssl.stages.context import Context
from mmssl.stages.probe import STANDARDIZED
from mmssl.types import Layers, StreamSpec, UpstreamSpec

if TYPE_CHECKING:
    from mmssl.training.sweep import SweepResult

NEAR = 2
"""Shifts of so many frames or fewer are not counted as manipulated: an offset of a frame or two is hardly seen."""
KINDS = ("matched", "offset", "shifted", "dubbed", "control")
"""Test cuts: as recorded; late by any offset; late by more than NEAR frames; with the sound of another clip of the same
speaker; late by any offset and with the pictures of another clip."""


def train(context: Context) -> str:
    """Train on cuts of training speakers' clips at every offset, and score cuts of test speakers' clips.

    Raises:
        ConfigError: the main encoder takes one stream only, or its streams cannot be brought to one clock.
        DataError: a fold has an empty part, or all clips of one are too short.
    """
    return run_jobs(context, pair_jobs(context, "sync"), run_job)


class Frames:
    """Frames of clips on a common clock, and cuts of them.

    Args:
        store: of an encoder, with frames.
        sample_rate, video_fps: of the encoder.

    Raises:
        ConfigError: a stream is missing or has no time axis, or the rates have no whole ratio.
    """

    def __init__(self, store: AvStore, sample_rate: int, video_fps: float) -> None:
        from mmssl.interfaces.aligned import AlignedStreams

        found = store.specs(BOTH)
        absent = [name for name in (AUDIO, VIDEO) if name not in found]
        if absent:
            raise ConfigError(f"Synchrony needs the streams audio and video; the encoder lacks {', '.join(absent)}.")
        self.store = store
        # layers of the rate of the last one: AlignedStreams takes layers of one rate
        self.kept = {
            name: [k for k, h in enumerate(s.hop_lengths) if h == s.hop_lengths[-1]] for name, s in found.items()
        }
        streams = {}
        for name in (AUDIO, VIDEO):
            spec, kept = found[name], self.kept[name]
            sizes, hops = tuple(spec.hidden_sizes[k] for k in kept), tuple(spec.hop_lengths[k] for k in kept)
            streams[name] = StreamSpec(sizes, hops, spec.tokens_per_frame)
        self.spec = UpstreamSpec(("waveforms", "video"), streams, sample_rate, video_fps)
        aligned = AlignedStreams(self.spec)
        self.frame_shift = aligned.frame_shift
        self.ratios: dict[str, int] = {}
        for name in (AUDIO, VIDEO):
            ratio, rest = divmod(aligned.hop, aligned.hops[name])
            if rest:
                raise ConfigError(
                    f"The {name} frames of the encoder do not divide the common clock of {self.frame_shift:g} s: take "
                    "an upstream whose frame shifts have a whole ratio."
                )
            self.ratios[name] = ratio * streams[name].tokens_per_frame
        self._read: dict[str, dict[str, Layers]] = {}

    def of(self, clip: str) -> dict[str, Layers]:
        """Both streams of a clip, kept in memory."""
        if clip not in self._read:
            whole = self.store.read(clip, BOTH)
            self._read[clip] = {name: _chosen(whole[name], self.kept[name]) for name in (AUDIO, VIDEO)}
        return self._read[clip]

    def count(self, clip: str) -> int:
        """Frames of the common clock for which a clip has both streams."""
        return min(int(layers.lengths[0]) // self.ratios[name] for name, layers in self.of(clip).items())

    def cut(self, sound: str, pictures: str, offset: int, most: int) -> dict[str, Layers]:
        """The pictures of the middle of a clip, and sound that is `offset` frames late.

        Args:
            sound, pictures: clips; the same one, but where the sound is to be foreign.
            offset: frames, at most `most` either way.
            most: frames that are left free on both sides.
        """
        size = min(self.count(sound), self.count(pictures)) - 2 * most
        return {
            AUDIO: self._part(sound, AUDIO, most - offset, size),
            VIDEO: self._part(pictures, VIDEO, most, size),
        }

    def _part(self, clip: str, name: str, start: int, size: int) -> Layers:
        ratio, layers = self.ratios[name], self.of(clip)[name]
        rows = tuple(h[start * ratio : (start + size) * ratio] for h in layers.hidden_states)
        return Layers(rows, tuple(torch.tensor(len(h)) for h in rows))


def _chosen(layers: Layers, kept: Sequence[int]) -> Layers:
    return Layers(tuple(layers.hidden_states[k] for k in kept), tuple(layers.lengths[k] for k in kept))


class Cuts(Dataset[tuple[dict[str, Layers], Tensor]]):
    """Items are (streams of one cut, offset in frames).

    Args:
        frames: of an encoder.
        cuts: (clip of the sound, clip of the pictures, offset) of each.
        most: see `Frames.cut`.
    """

    def __init__(self, frames: Frames, cuts: Sequence[tuple[str, str, int]], most: int) -> None:
        self.frames, self.cuts, self.most = frames, cuts, most

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> tuple[dict[str, Layers], Tensor]:
        sound, pictures, offset = self.cuts[index]
        return self.frames.cut(sound, pictures, offset, self.most), torch.tensor(offset)


def drawn_offset(clip: str, place: int, low: int, high: int) -> int:
    """An offset of `low` to `high` frames either way, that depends on the clip and the place of use alone."""
    generator = torch.Generator().manual_seed(mix(zlib.crc32(clip.encode()), place))
    size = int(torch.randint(low, high + 1, (), generator=generator))
    return size if float(torch.rand((), generator=generator)) < 0.5 else -size


def judged_cuts(
    clips: Sequence[str], facts: Mapping[str, Sequence[str | None]], most: int
) -> list[tuple[str, str, str, int]]:
    """(kind, clip of the sound, clip of the pictures, offset) of every test clip and kind.

    Dubbed clips have the sound of another clip of the same speaker, and of the same label where there is one; clips
    whose speaker has no other are left out of "dubbed" and "control".
    """
    found = []
    for k, clip in enumerate(clips):
        found += [("matched", clip, clip, 0), ("offset", clip, clip, drawn_offset(clip, 1, 0, most))]
        found.append(("shifted", clip, clip, drawn_offset(clip, 2, NEAR + 1, most)))
        order = [*clips[k + 1 :], *clips[:k]]
        own = [other for other in order if facts[other][0] == facts[clip][0]]
        alike = [other for other in own if facts[other][1] == facts[clip][1]] or own
        if alike:
            found.append(("dubbed", alike[0], clip, 0))
            found.append(("control", clip, alike[0], drawn_offset(clip, 1, 0, most)))
    return found


def fit_offsets(job: PairJob, settings: Mapping[str, Any]) -> tuple[Frames, dict[str, list[str]], SweepResult]:
    """Train on cuts at every offset, and select on development clips at three offsets each.

    Args:
        job: encoder and fold.
        settings: arguments of `mmssl.downstream.sync.Synchrony`.

    Returns:
        The frames of the encoder, the clips of each part that are long enough, and what was trained.

    Raises:
        ConfigError: max_shift is too small.
        DataError: all clips of a part are too short.
    """
    from mmssl.training.sweep import sweep

    most, least = settings["max_shift"], settings["least_frames"]
    if most <= NEAR:
        raise ConfigError(f"max_shift must be above {NEAR} frames, got {most}.")
    frames = Frames(AvStore(job.root, job.record), job.record["sample_rate"], job.record["video_fps"])
    parts = {name: _long_enough(job, frames, name, least_size(most, least)) for name in ("train", "dev", "test")}
    every = [(clip, clip, offset) for clip in parts["train"] for offset in range(-most, most + 1)]
    judged = [(clip, clip, drawn_offset(clip, place, 0, most)) for clip in parts["dev"] for place in (3, 4, 5)]
    fit = job.fit_settings()
    rates = fit.pop("learning_rates")
    build = _builder(job, settings, frames, parts["train"])
    result = sweep(build, Cuts(frames, every, most), Cuts(frames, judged, most), learning_rates=rates, **fit)
    return frames, parts, result


def run_job(job: PairJob) -> None:
    """Train one model on one fold and write the scores of its test cuts.

    Raises:
        DataError: all clips of a part are too short.
    """
    from mmssl.training.fit import predict

    most, least = job.settings["max_shift"], job.settings["least_frames"]
    frames, parts, result = fit_offsets(job, job.settings)
    plan = judged_cuts(parts["test"], job.facts, most)
    plan = [cut for cut in plan if min(frames.count(cut[1]), frames.count(cut[2])) >= least_size(most, least)]
    data = Cuts(frames, [cut[1:] for cut in plan], most)
    scores, truth = predict(result.task, data, batch_size=64, device=job.device)
    wanted = torch.tensor([cut[0] == "offset" for cut in plan])
    task: Any = result.task
    measured = task.metrics(scores[wanted], truth[wanted])
    rows = [
        {"kind": kind, "id": pictures if kind == "dubbed" else sound, "offset": offset, "scores": line}
        for (kind, sound, pictures, offset), line in zip(plan, scores.tolist(), strict=True)
    ]
    skipped = {name: len(getattr(job.fold, name)) - len(parts[name]) for name in parts}
    write_result(
        job,
        {
            "name": job.fold.name,
            "num_train": len(parts["train"]),
            "num_dev": len(parts["dev"]),
            "num_test": len(parts["test"]),
            "too_short": skipped,
            "frame_shift": frames.frame_shift,
            "learning_rate": result.learning_rate,
            "metrics": measured,
            "rows": rows,
        },
    )


def least_size(most: int, least: int) -> int:
    """Frames that a clip needs: `most` free on both sides, and `least` in common at the largest shift of the rest."""
    return 3 * most + least


def _long_enough(job: PairJob, frames: Frames, part: str, least: int) -> list[str]:
    ids = getattr(job.fold, part)
    kept = [clip for clip in ids if frames.count(clip) >= least]
    if not kept:
        raise DataError(
            f"{job.name}: all {len(ids)} {part} clips are shorter than {least} frames "
            f"({least * frames.frame_shift:.2f} s), which is 3 max_shift + least_frames: lower them."
        )
    return kept


def _builder(
    job: PairJob, settings: Mapping[str, Any], frames: Frames, train: Sequence[str]
) -> Callable[[], nn.Module]:
    from mmssl.downstream.sync import Synchrony
    from mmssl.interfaces.aligned import AlignedStreams

    moments = frames.store.moments(train, BOTH) if job.standardize else {}

    def build() -> nn.Module:
        aligned = AlignedStreams(frames.spec, STANDARDIZED if job.standardize else job.interface)
        for name in (AUDIO, VIDEO) if job.standardize else ():
            centres, spreads = moments[name]
            interface: Any = aligned.interfaces[name]
            interface.set_statistics([centres[k] for k in frames.kept[name]], [spreads[k] for k in frames.kept[name]])
        return Synchrony(aligned, **settings)

    return build
