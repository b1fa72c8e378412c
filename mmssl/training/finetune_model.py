"""What is fine-tuned: an upstream and a task on it, from waveforms and video to answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.data.streams import Streams
from mmssl.downstream.adversarial import SpeakerAdversary
from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression, UtteranceTask
from mmssl.errors import ConfigError, InputError, did_you_mean
from mmssl.interfaces.base import Interface
from mmssl.training.mixing import mix_inputs, soft_cross_entropy, soft_targets
from mmssl.types import Inputs, Layers, TaskOutput
from mmssl.upstreams.base import Upstream

INPUT_OF = {"audio": "waveforms", "video": "video", "image": "images"}


class FineTuneModel(nn.Module):
    """An upstream, and a task that takes its layers; both are trained.

    Args:
        upstream: of any family; its parameters will ask for gradients.
        task: an `UtteranceTask` whose interface is that of one stream or a fusion, or another task that takes streams,
            such as `mmssl.downstream.retrieval.CrossModalRetrieval`.
        stream: whose layers an interface takes; None for the only stream, or for a fusion.
        frozen: parameters of the upstream that stay as they are, by the beginnings of their names, such as the
            convolutions of a speech model ("front_end").

    Raises:
        ConfigError: no such stream, or no parameter with such a name.
    """

    def __init__(
        self, upstream: Upstream, task: nn.Module, stream: str | None = None, frozen: Sequence[str] = ()
    ) -> None:
        super().__init__()
        single = isinstance(getattr(task, "interface", None), Interface)
        names = tuple(upstream.spec.streams)
        if single and stream is None and len(names) == 1:
            stream = names[0]
        if (stream is not None and stream not in names) or (single and stream is None):
            raise ConfigError(
                f"The task takes one stream of {', '.join(names)}, got stream = {stream!r}: name one of them."
                f"{did_you_mean(stream or '', names)}"
            )
        self.upstream, self.task, self.stream = upstream.requires_grad_(True), task, stream
        for beginning in frozen:
            fixed = [p for name, p in upstream.named_parameters() if name.startswith(beginning)]
            if not fixed:
                raise ConfigError(f"No parameter of {type(upstream).__name__} begins with {beginning!r}.")
            for parameter in fixed:
                parameter.requires_grad_(False)

    @property
    def monitor(self) -> str:
        """The score of the development split that selects."""
        return str(getattr(self.task, "monitor", "dev_loss"))

    def represent(self, inputs: Inputs, streams: Sequence[str] | None = None) -> Layers | Streams:
        """Layers that the task takes.

        Args:
            inputs: of B clips.
            streams: which of "audio", "video" and "image" the upstream is given; None for all.

        Raises:
            InputError: inputs that are missing or do not fit.
        """
        given = inputs if streams is None else select_inputs(inputs, streams)
        found = self.upstream(
            waveforms=None if given.waveforms is None else given.waveforms.data,
            lengths=None if given.waveforms is None else given.waveforms.lengths,
            video=None if given.video is None else given.video.data,
            video_lengths=None if given.video is None else given.video.lengths,
            images=given.images,
        )
        if self.stream is None:
            return Streams(found)
        if self.stream not in found:
            raise InputError(
                f"The task takes the stream {self.stream!r}; the upstream gave {', '.join(found)} for these inputs."
            )
        return found[self.stream]

    def forward(self, inputs: Inputs, targets: Tensor, streams: Sequence[str] | None = None) -> TaskOutput:
        """Loss and predictions of a batch, as the task gives them."""
        return self.task(self.represent(inputs, streams), targets)

    def mixed_loss(
        self, inputs: Inputs, targets: Tensor, mix: tuple[Tensor, float] | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Loss with mixup and label smoothing, of tasks with one answer per clip.

        Args:
            inputs, targets: of B clips.
            mix: partners (B,) and the weight of the clip itself; None for no mixup.
            label_smoothing: in [0, 1), for classes.

        Raises:
            ConfigError: another kind of task.
        """
        task = self.task
        if mix is None and not label_smoothing:
            return self(inputs, targets).loss
        if not isinstance(task, UtteranceClassification | UtteranceRegression):
            raise ConfigError(
                f"Mixup and label smoothing are for tasks with one class or value per clip, not for "
                f"{type(task).__name__}: set mixup=0 and label_smoothing=0."
            )
        checked = task.check_targets(targets)
        given = inputs if mix is None else mix_inputs(inputs, *mix)
        scores = task.head(task.interface(self.represent(given)))
        classes = isinstance(task, UtteranceClassification)
        wanted = soft_targets(checked, scores.shape[1], label_smoothing) if classes else checked
        if mix is not None:
            wanted = mix[1] * wanted + (1 - mix[1]) * wanted[mix[0]]
        if isinstance(task, UtteranceClassification):
            return soft_cross_entropy(scores, wanted, task.class_weights)
        return task.loss(scores, wanted)

    @torch.no_grad()
    def predict(self, inputs: Inputs, streams: Sequence[str] | None = None) -> Tensor:
        """Answers (B, ...) of the task in eval mode: probabilities, values, embeddings or scores."""
        training = self.training
        self.eval()
        try:
            predict: Any = self.task.predict
            return predict(self.represent(inputs, streams))
        finally:
            self.train(training)

    def answers_loss(self, answers: Tensor, targets: Tensor) -> float | None:
        """Loss of a split from its answers, for tasks with one answer per clip; None for others."""
        task = self.task
        if isinstance(task, SpeakerAdversary):
            targets = task.split(targets)[0]
            task = task.task
        if isinstance(task, UtteranceClassification):
            chosen = answers.gather(1, task.check_targets(targets)[:, None])
            return float(-chosen.clamp(min=1e-12).log().mean())
        if isinstance(task, UtteranceTask):
            return float(task.loss(answers, task.check_targets(targets)))
        return None


def select_inputs(inputs: Inputs, streams: Sequence[str]) -> Inputs:
    """The inputs of some streams alone.

    Raises:
        InputError: a stream is unknown or not among the inputs.
    """
    kept = {}
    for name in streams:
        field = INPUT_OF.get(name, "")
        if not field or getattr(inputs, field) is None:
            raise InputError(f"There is no input for the stream {name!r}; allowed are {', '.join(INPUT_OF)}.")
        kept[field] = getattr(inputs, field)
    return replace(Inputs(), **kept)
