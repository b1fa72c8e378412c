"""What the catalogue says of an upstream, as data that is read without importing torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MODALITIES = ("speech", "audio", "image", "video", "audio-visual")
SPEECH = ("speech",)
SOUND = ("speech", "audio")


class Run(NamedTuple):
    """Consecutive layers of one width and rate.

    Attributes:
        layers: how many.
        width: of each.
        frame_shift: milliseconds between two frames, to three decimals; None for tokens with no time axis.
        tokens_per_frame: tokens that share a time step.
    """

    layers: int
    width: int
    frame_shift: float | None
    tokens_per_frame: int = 1


@dataclass(frozen=True)
class Entry:
    """One upstream, or one model type that an upstream wraps, with its default arguments.

    Attributes:
        modalities: among `MODALITIES`.
        streams: stream name -> its layers, from the first to the last; empty where only a checkpoint tells.
        inputs: among "waveforms", "video" and "images".
        sample_rate: of the waveforms, in Hz; None without.
        video_fps: of the video, in Hz; None without.
        invariance: how padding is kept out of the features.
        paper: authors and year.
        licence: of the published weights, as their authors state it; "" where it is not known or there are none.
        checkpoints: formats that the upstream loads.
        shipped: whether its weights come with mmssl.
        families: model type -> its row, for an upstream that wraps several.
    """

    modalities: tuple[str, ...]
    streams: Mapping[str, tuple[Run, ...]]
    inputs: tuple[str, ...] = ("waveforms",)
    sample_rate: int | None = 16000
    video_fps: float | None = None
    invariance: str = ""
    paper: str = ""
    licence: str = ""
    checkpoints: tuple[str, ...] = ()
    shipped: bool = False
    families: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def sizes(self) -> str:
        """Layers and widths in words."""
        if not self.streams:
            return "as the checkpoint says"
        texts = {name: _in_words(runs) for name, runs in self.streams.items()}
        return next(iter(texts.values())) if len(texts) == 1 else "; ".join(f"{k}: {v}" for k, v in texts.items())

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, with one hidden size, frame shift (ms) and token count for each layer."""
        return {
            "modalities": list(self.modalities),
            "inputs": list(self.inputs),
            "sample_rate": self.sample_rate,
            "video_fps": self.video_fps,
            "sizes": self.sizes,
            "streams": {
                name: {
                    "layers": sum(run.layers for run in runs),
                    "hidden_sizes": [run.width for run in runs for _ in range(run.layers)],
                    "frame_shifts_ms": [run.frame_shift for run in runs for _ in range(run.layers)],
                    "tokens_per_frame": runs[0].tokens_per_frame,
                }
                for name, runs in self.streams.items()
            },
            "invariance": self.invariance,
            "paper": self.paper,
            "licence": self.licence,
            "checkpoints": list(self.checkpoints),
            "families": {name: family.as_dict() for name, family in self.families.items()},
        }


def _in_words(runs: Sequence[Run]) -> str:
    """For example "13 layers of 768", or "4 layers of 2 x 64, 128, 256" where widths differ."""
    total = sum(run.layers for run in runs)
    if len(runs) == 1:
        widths = str(runs[0].width)
    else:
        widths = ", ".join(f"{run.layers} x {run.width}" if run.layers > 1 else str(run.width) for run in runs)
    return f"{total} layer{'s' if total > 1 else ''} of {widths}"


def audio(*runs: tuple[int, int, float]) -> dict[str, tuple[Run, ...]]:
    """Layers of the stream "audio", each as (layers, width, milliseconds between frames)."""
    return {"audio": tuple(Run(*run) for run in runs)}
