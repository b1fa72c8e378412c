"""A teacher that follows the student: averages of its layers, the target of data2vec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.nn.ema import EMA
from mmssl.objectives.encoders import SpeechEncoder
from mmssl.objectives.schedule import Schedule, value_at
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Encoder, Step


class TeacherLayers(Target):
    """Mean of the last K feed-forward outputs of a moving average of the student, which sees the view unmasked.

    Each is first normalised over the frames of a clip (instance norm), which keeps targets from collapsing and any one
    layer from ruling.

    Source: Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
    Language", equation 1 and section 3.3.

    Args:
        top_k: K; 8 in the paper's base model.
        decay: of the moving average; a number or a schedule (linearly .999 to .9999 over 30,000 steps in the paper).
        shared: prefixes of the encoder's parameters that the teacher shares with the student, where it has them.
        stream: of which stream.

    Raises:
        ConfigError: K below 1 or above the number of blocks.
    """

    def __init__(
        self,
        top_k: int = 8,
        decay: float | Schedule = 0.9999,
        shared: Sequence[str] = ("upstream.front_end", "upstream.feature_norm", "upstream.feature_projection"),
        stream: str = "audio",
    ) -> None:
        super().__init__()
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}.")
        self.top_k, self.decay, self.shared, self.stream = top_k, decay, tuple(shared), stream
        self.teacher: EMA | None = None

    def attach(self, encoder: Encoder) -> None:
        """Copy the student; see `Target.attach`."""
        blocks = encoder.upstream.spec.streams[self.stream].num_layers - 1
        if self.top_k > blocks:
            raise ConfigError(f"top_k = {self.top_k} layers are to be averaged; the encoder has {blocks} blocks.")
        if not isinstance(encoder, SpeechEncoder):
            raise ConfigError(f"TeacherLayers follows a SpeechEncoder, got {type(encoder).__name__}.")
        names = [name for name, _ in encoder.named_parameters()]
        present = [prefix for prefix in self.shared if any(name.startswith(prefix) for name in names)]
        self.teacher = EMA(encoder, present)
        cast("SpeechEncoder", self.teacher.model).feed_forward = True

    @torch.no_grad()
    def forward(self, step: Step, view: int) -> Tensor:
        """(B, T, D), zero past each clip's end; see `Target.forward`."""
        encoder = cast("SpeechEncoder", self._copy().model)
        encoded = encoder.encode(step.views[view].unmasked())[self.stream]
        names = [name for name in encoded.taps if name.startswith("feed_forward.")]
        total = torch.zeros_like(encoded.output.data, dtype=torch.float32)
        for name in names[-self.top_k :]:
            for row, clip in zip(total, encoded.taps[name].unpad(), strict=True):
                # instance norm over the frames of the clip; one frame alone has no variance
                values = clip.float().t()[None]
                normed = F.instance_norm(values) if len(clip) > 1 else torch.zeros_like(values)
                row[: len(clip)] += normed[0].t()
        return total / self.top_k

    def after_step(self, index: int, encoder: Encoder) -> None:
        """Let the teacher follow; see `Target.after_step`."""
        self._copy().update(encoder, value_at(self.decay, index))

    def _copy(self) -> EMA:
        if self.teacher is None:
            raise ConfigError("The teacher has no student yet: compose it into an Objective first.")
        return self.teacher
