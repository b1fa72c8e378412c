"""Units from a label file: the target of HuBERT."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmssl.errors import ConfigError, DataError
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Step


def write_units(path: str | Path, units: Mapping[str, Sequence[int] | Tensor]) -> None:
    """Write a label file, whole or not at all: one line for each clip, its id, a tab, its units with spaces between."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        for clip, values in units.items():
            if "\t" in clip or "\n" in clip:
                raise DataError(f"The clip id {clip!r} holds a tab or a line break and cannot be written to {path}.")
            file.write(clip + "\t" + " ".join(str(int(value)) for value in values) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_units(path: str | Path) -> dict[str, Tensor]:
    """Read a label file: clip id -> units (n,) int32.

    Raises:
        DataError: the file is missing, or a line is not of that form; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no label file {path}: make one by clustering features first.")
    units: dict[str, Tensor] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            clip, tab, values = line.rstrip("\n").partition("\t")
            try:
                parsed = [int(value) for value in values.split()]
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}. A line is an id, a tab and integers.") from error
            if not tab or not parsed or min(parsed) < 0 or clip in units:
                raise DataError(
                    f"{path}, line {number}: a line is an id that occurs once, a tab and at least one integer of 0 or "
                    f"more with spaces between, got {line[:80]!r}."
                )
            units[clip] = torch.tensor(parsed, dtype=torch.int32)
    if not units:
        raise DataError(f"The label file {path} is empty.")
    return units


class Units(Target):
    """Cluster ids of each frame, looked up by the clip's id.

    Frame t takes the label at t * rate of labels / rate of frames, rounded down, as in the authors' code. A label
    sequence may be up to `tolerance` labels shorter than the frames need, as happens where its features came from
    another front end; the last label then stands for the missing ones.

    Args:
        units: clip id -> (n,) integers, as from `read_units`.
        rate: of the labels, in Hz; None for the frame rate of the encoder.
        tolerance: labels that may be missing at the end.
        stream: whose frames are labelled.
    """

    reads_student = True

    def __init__(
        self, units: Mapping[str, Tensor], rate: float | None = None, tolerance: int = 4, stream: str = "audio"
    ) -> None:
        super().__init__()
        self.units, self.rate, self.tolerance, self.stream = units, rate, tolerance, stream

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, T) int64, zero past each clip's end; see `Target.forward`."""
        ids = step.views[view].ids
        encoded = step.stream(view, self.stream).output
        batch, longest = encoded.data.shape[:2]
        if len(ids) != batch:
            raise ConfigError(f"Labels are looked up by id: the batch has {batch} clips and {len(ids)} ids.")
        shift = step.encoder.upstream.spec.frame_shift(self.stream)
        if self.rate is not None and shift is None:
            raise ConfigError(f"The frames of the stream {self.stream!r} have no rate; leave `rate` out.")
        ratio = 1.0 if self.rate is None or shift is None else self.rate * shift
        hop = step.encoder.upstream.spec.streams[self.stream].hop_lengths[-1]
        starts = step.views[view].starts or (0,) * batch
        labels = torch.zeros(batch, longest, dtype=torch.int64)
        for row, clip, frames, start in zip(labels, ids, encoded.lengths.tolist(), starts, strict=True):
            if start and (not hop or start % hop):
                raise ConfigError(f"Crops must start at a multiple of the hop of {hop} samples, got {start}.")
            row[:frames] = self._of_clip(clip, start // hop if start else 0, frames, ratio)
        return labels.to(encoded.data.device)

    def _of_clip(self, clip: str, first: int, frames: int, ratio: float) -> Tensor:
        if clip not in self.units:
            raise DataError(f"The label file has no line for the clip {clip!r}; it has {len(self.units)} others.")
        own = self.units[clip].to(torch.int64)
        # 1e-6 so that 2.0 that came out as 1.9999999 is still 2
        index = (torch.arange(first, first + frames, dtype=torch.float64) * ratio + 1e-6).long()
        missing = int(index[-1]) + 1 - len(own)
        if missing > self.tolerance:
            raise DataError(
                f"The clip {clip!r} has {len(own)} labels, its {first + frames} frames need {int(index[-1]) + 1}: "
                "check the rate of the labels and that the clip is cut as it was for clustering."
            )
        return own[index.clamp(max=len(own) - 1)]
