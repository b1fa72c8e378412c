"""OS-KDFT: a student front end is distilled while it is fine-tuned for speakers, and how small and fast it becomes.

Source: Heo et al. 2023, "One-Step Knowledge Distillation and Fine-Tuning in Using Large Pre-Trained Self-Supervised
Learning Models for Speaker Verification" (Interspeech), and the authors' code. A batch goes through the student's
shared weights twice: without adapters, towards the teacher's last layer, and with them, to the speaker encoder. The
speaker loss reaches adapters and shared weights, the distillation loss the shared weights alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.errors import ConfigError
from mmssl.types import Padded
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.speech_student import SpeechStudent, last_frames


class Distillation:
    """The teacher's part of OS-KDFT, for `train_speaker`.

    Args:
        teacher: frozen; on the waveforms of the student, with frames of the same hop and width.
        weight: of the distillation loss at the first step; 100 in the authors' code.
        decays: let the weight fall linearly to 0 at the end of the stage, as in the authors' code.
        adapter_factor: learning rate of the adapters, in parts of the encoder's; 10 in the authors' code.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self, teacher: Upstream, weight: float = 100.0, decays: bool = True, adapter_factor: float = 10.0
    ) -> None:
        if not weight > 0 or not adapter_factor > 0:
            raise ConfigError(f"weight and adapter_factor must be above 0, got {weight} and {adapter_factor}.")
        self.teacher = teacher.eval().requires_grad_(False)
        self.weight, self.decays, self.adapter_factor = weight, decays, adapter_factor

    def check(self, model: SpeakerModel) -> SpeechStudent:
        """The student of a model.

        Raises:
            ConfigError: the model has none that is trained, or its frames are not those of the teacher.
        """
        student = model.upstream
        if not isinstance(student, SpeechStudent) or not model.train_upstream:
            raise ConfigError(
                "Distillation trains a model on the upstream speech_student with train_upstream=True; this one is on "
                f"{type(student).__name__} with train_upstream={model.train_upstream}."
            )
        ours, theirs = student.spec.streams["audio"], self.teacher.spec.streams.get("audio")
        if theirs is None or (ours.hidden_sizes[-1], ours.hop_lengths[-1]) != (
            theirs.hidden_sizes[-1],
            theirs.hop_lengths[-1],
        ):
            raise ConfigError(
                f"Student and teacher must have frames of one width and hop, got {ours.hidden_sizes[-1]} every "
                f"{ours.hop_lengths[-1]} samples, and {theirs and (theirs.hidden_sizes[-1], theirs.hop_lengths[-1])}."
            )
        return student

    def weight_at(self, step: int, steps: int) -> float:
        """Weight of the distillation loss at a step of a stage."""
        return self.weight * (1 - step / steps) if self.decays else self.weight

    def frames(self, model: SpeakerModel, waveforms: Padded) -> tuple[Padded, Tensor]:
        """What the speaker encoder sees, and the distillation loss.

        Args:
            model: on a `SpeechStudent`.
            waveforms: (B, T) with lengths.

        Returns:
            Frames (B, T', D) of the fine-tuned way, and the mean squared distance of the distilled way's last layer
            from the teacher's, over valid frames and features.
        """
        student = self.check(model)
        self.teacher.to(waveforms.data.device)
        with torch.no_grad():
            wanted = last_frames(self.teacher, waveforms).data
        distilled, layers = student.branches(waveforms)
        return model.joined(layers), F.mse_loss(distilled.float(), wanted.float())

    def split(self, model: SpeakerModel, upstream: Sequence[nn.Parameter]) -> tuple[list[nn.Parameter], ...]:
        """Parameters of the upstream that are trained: shared ones, and those of the adapters."""
        own = {id(p) for p in self.check(model).adapter_parameters()}
        return [p for p in upstream if id(p) not in own], [p for p in upstream if id(p) in own]

    def describe(self) -> str:
        """A text that is the same for equal settings and teachers."""
        total = sum(float(p.double().sum()) for p in self.teacher.parameters())
        return f"OS-KDFT {self.weight} {self.decays} {self.adapter_factor} {type(self.teacher).__name__} {total!r}"


@dataclass(frozen=True)
class SizeReport:
    """Size and latency of a model beside another.

    Attributes:
        parameters, reference_parameters: numbers of the whole models.
        megabytes, reference_megabytes: of these and their buffers, as stored.
        upstream_parameters, reference_upstream_parameters: of the front ends.
        milliseconds, reference_milliseconds: to embed a clip, medians of rounds in turn.
        upstream_milliseconds, reference_upstream_milliseconds: of the front ends alone.
        seconds: of the clip.
    """

    parameters: int
    reference_parameters: int
    megabytes: float
    reference_megabytes: float
    upstream_parameters: int
    reference_upstream_parameters: int
    milliseconds: float
    reference_milliseconds: float
    upstream_milliseconds: float
    reference_upstream_milliseconds: float
    seconds: float

    def render(self) -> str:
        """A Markdown table."""
        rows = [
            ("parameters, M", self.parameters / 1e6, self.reference_parameters / 1e6),
            ("size, MB", self.megabytes, self.reference_megabytes),
            (
                "parameters of the front end, M",
                self.upstream_parameters / 1e6,
                self.reference_upstream_parameters / 1e6,
            ),
            (f"embedding {self.seconds:g} s, ms", self.milliseconds, self.reference_milliseconds),
            (
                f"front end on {self.seconds:g} s, ms",
                self.upstream_milliseconds,
                self.reference_upstream_milliseconds,
            ),
        ]
        lines = ["| what | student | teacher | change |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {own:.3g} | {other:.3g} | {100 * (own / other - 1):+.1f} % |" for name, own, other in rows
        ]
        return "\n".join(lines)


def compare_models(student: SpeakerModel, teacher: SpeakerModel, seconds: float = 3.0, rounds: int = 7) -> SizeReport:
    """Measure a student beside the same system on its teacher, in turn, on the device they are on.

    Args:
        student, teacher: with upstreams; in any mode.
        seconds: of the clip, noise.
        rounds: after one that is not counted.

    Raises:
        ConfigError: a model has no upstream, or `rounds` is below 1.
    """
    if student.upstream is None or teacher.upstream is None or rounds < 1:
        raise ConfigError("compare_models takes models with upstreams, and at least one round.")
    device = next(student.parameters()).device
    length = max(round(seconds * student.sample_rate), student.min_length, teacher.min_length)
    wave = 0.1 * torch.randn(1, length, generator=torch.Generator().manual_seed(0)).to(device)
    clip = Padded(wave, torch.tensor([length], device=device))
    work: list[Callable[[], object]] = [
        lambda: student.embed(clip),
        lambda: teacher.embed(clip),
        lambda: student.upstream(wave),  # type: ignore[misc]
        lambda: teacher.upstream(wave),  # type: ignore[misc]
    ]
    modes = [(model, model.training) for model in (student, teacher)]
    times: list[list[float]] = [[] for _ in work]
    try:
        for model, _ in modes:
            model.eval()
        for number in range(rounds + 1):
            for found, run in zip(times, work, strict=True):
                spent = _milliseconds(run, device)
                if number:
                    found.append(spent)
    finally:
        for model, training in modes:
            model.train(training)
    own, other, own_front, other_front = (statistics.median(found) for found in times)
    return SizeReport(
        parameters=_count(student),
        reference_parameters=_count(teacher),
        megabytes=_megabytes(student),
        reference_megabytes=_megabytes(teacher),
        upstream_parameters=_count(student.upstream),
        reference_upstream_parameters=_count(teacher.upstream),
        milliseconds=own,
        reference_milliseconds=other,
        upstream_milliseconds=own_front,
        reference_upstream_milliseconds=other_front,
        seconds=length / student.sample_rate,
    )


@torch.no_grad()
def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _megabytes(module: nn.Module) -> float:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values()) / 1e6
