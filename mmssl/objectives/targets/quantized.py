"""Quantized inner results: the target of wav2vec 2.0."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.nn.quantizers import GumbelQuantizer
from mmssl.objectives.health import usage_entropy
from mmssl.objectives.schedule import Schedule, value_at
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Step


class QuantizedTap(Target):
    """An inner result of the encoder, quantized and projected; gradients train quantizer, projection and encoder.

    It records "code_probabilities" (B, T, G, V) for a diversity term that comes later.

    Source: Baevski et al. 2020, "wav2vec 2.0", section 2.

    Args:
        quantizer: of the tap's values.
        projection: from quantized values to the space of the contrast.
        temperature: of the Gumbel softmax; a number or a schedule.
        name: of the tap.
        stream: of which stream.
    """

    reads_student = True

    def __init__(
        self,
        quantizer: GumbelQuantizer,
        projection: nn.Module,
        temperature: float | Schedule = 2.0,
        name: str = "normed_latents",
        stream: str = "audio",
    ) -> None:
        super().__init__()
        self.quantizer, self.projection = quantizer, projection
        self.temperature, self.name, self.stream = temperature, name, stream

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, T, E); see `Target.forward`."""
        temperature = value_at(self.temperature, step.index)
        latents = step.tap(view, self.stream, self.name)
        quantized = self.quantizer(latents, temperature, step.generator)
        step.records[view, "code_probabilities"] = quantized.probabilities
        valid = step.stream(view, self.stream).output.mask
        step.logs["code_usage_entropy"] = usage_entropy(quantized.codes[valid])
        step.logs["gumbel_temperature"] = latents.new_tensor(temperature)
        return self.projection(quantized.values)
