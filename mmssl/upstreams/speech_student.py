"""A small student of a speech transformer with two ways through it: one that is distilled, one that is fine-tuned.

Source: Heo et al. 2023, "One-Step Knowledge Distillation and Fine-Tuning in Using Large Pre-Trained Self-Supervised
Learning Models for Speaker Verification" (Interspeech): the first blocks of the teacher, and in each an adapter beside
the feed-forward network that only the fine-tuned way passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.nn.packed import Packed, add_to_own
from mmssl.nn.transformer import TransformerBlock
from mmssl.types import Inputs, Layers, Padded, Representation
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.speech_transformer import SpeechTransformer


class Adapter(nn.Module):
    """Norm, a narrow layer with ReLU, and back; 0 at the start, so that the student begins as the teacher's blocks.

    Args:
        size: width D.
        hidden_size: of the narrow layer.
        scale: of the result.
    """

    def __init__(self, size: int, hidden_size: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.down, self.up = nn.Linear(size, hidden_size), nn.Linear(hidden_size, size)
        self.scale = scale
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.scale * self.up(self.down(self.norm(x)).relu())


class AdaptedBlock(TransformerBlock):
    """A transformer block with an adapter beside its feed-forward network.

    `adapted` says whether the adapter takes part.
    """

    adapted = True
    adapter: Adapter

    def _feed_forward(self, x: Tensor) -> Tensor:
        if not self.adapted:
            return super()._feed_forward(x)
        return add_to_own(self.adapter(x), super()._feed_forward(x))

    @classmethod
    def around(cls, block: TransformerBlock, adapter: Adapter) -> AdaptedBlock:
        """A block with the parts of another and an adapter."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.layer_norm_first = block.layer_norm_first
        for name, part in block.named_children():
            made.add_module(name, part)
        made.adapter = adapter
        return made.train(block.training)


class SpeechStudent(Upstream):
    """The first blocks of a wav2vec 2.0, HuBERT or WavLM, with adapters.

    As an upstream it is the fine-tuned way: adapters take part. `branches` gives both.

    Args:
        preset: sizes by name, of the teacher ("hubert_base"); see `SpeechTransformer`.
        checkpoint: of the teacher: the student begins with its front end and first blocks; None draws weights.
        num_layers: blocks that are kept; 2 in the paper.
        adapter_size: width inside the adapters; 64 in the authors' code.
        adapter_scale: of what an adapter adds; 0.1 in the authors' code.
        hidden_size, num_heads, feed_forward_size, conv_channels, position_kernel: instead of the preset's.

    Raises:
        ConfigError: sizes that do not go together, or no block or adapter.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        preset: str | None = None,
        checkpoint: str | None = None,
        num_layers: int = 2,
        adapter_size: int = 64,
        adapter_scale: float = 0.1,
        *,
        hidden_size: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        conv_channels: int | None = None,
        position_kernel: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1 or adapter_size < 1:
            raise ConfigError(
                f"A student has at least one block and one unit in an adapter, got {num_layers} and {adapter_size}."
            )
        self.body = SpeechTransformer(
            preset,
            checkpoint,
            num_layers=num_layers,
            layer_drop=0.0,
            hidden_size=hidden_size,
            num_heads=num_heads,
            feed_forward_size=feed_forward_size,
            conv_channels=conv_channels,
            position_kernel=position_kernel,
        )
        width = self.body.config.hidden_size
        blocks = self.body.encoder.blocks
        for place, block in enumerate(blocks):
            assert isinstance(block, TransformerBlock)
            blocks[place] = AdaptedBlock.around(block, Adapter(width, adapter_size, adapter_scale))
        self.spec = self.body.spec

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the fine-tuned way."""
        return self.body.extract(inputs)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        return self.body.output_lengths(lengths)

    def extract_packed(self, waveforms: Any) -> list[Representation]:
        """See `SpeechTransformer.extract_packed`."""
        return self.body.extract_packed(waveforms)

    def branches(self, waveforms: Padded) -> tuple[Tensor, Layers]:
        """Both ways through the blocks; the convolutions, which they share, run once.

        Args:
            waveforms: (B, T) with lengths in samples.

        Returns:
            The distilled way's last layer (N, D) of the valid frames of all clips end to end, as heads of the
            pretrained model see it (`TransformerEncoder.finish`), and all layers of the fine-tuned way.
        """
        features = self.body.features(self.body.latents(waveforms.unpad()))
        with self.without_adapters():
            distilled = self.body.encoder.forward_packed(features)[-1]
        states = [state.pad() for state in self.body.encoder.forward_packed(features)]
        layers = Layers(tuple(s.data for s in states), (states[0].lengths,) * len(states))
        return self.body.encoder.finish(distilled.data), layers

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Inside the block, the forward pass is that of the distilled way."""
        blocks = [block for block in self.body.encoder.blocks if isinstance(block, AdaptedBlock)]
        try:
            for block in blocks:
                block.adapted = False
            yield
        finally:
            for block in blocks:
                block.adapted = True

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What the fine-tuned way has for itself."""
        return [p for name, p in self.named_parameters() if ".adapter." in name]

    @torch.no_grad()
    def copy_first_blocks(self, teacher: SpeechTransformer) -> None:
        """Begin as the front end and first blocks of a teacher in memory.

        Raises:
            ConfigError: its sizes are others, or it has fewer blocks.
        """
        own = self.body.state_dict()
        given = teacher.state_dict()
        names = [name for name in own if ".adapter." not in name]
        wrong = [name for name in names if name not in given or given[name].shape != own[name].shape]
        if wrong:
            raise ConfigError(f"The teacher's weights do not fit this student: {', '.join(wrong[:3])} ...")
        for name in names:
            own[name].copy_(given[name])


def last_frames(upstream: Upstream, waveforms: Padded) -> Packed:
    """Valid frames of a model's last layer as heads of the pretrained model see it, clips end to end (N, D)."""
    last = Packed.from_padded(upstream(waveforms.data, waveforms.lengths)["audio"][-1])
    return last.replace(upstream.encoder.finish(last.data)) if isinstance(upstream, SpeechTransformer) else last
