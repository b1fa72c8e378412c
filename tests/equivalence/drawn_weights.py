"""Weights under their authors' names, and a check of every layer that a file of them gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl import load_upstream


def speech(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    tones = sum(torch.sin(2 * math.pi * f * time + f) / (1 + k) for k, f in enumerate((140.0, 610.0, 2300.0)))
    return 0.1 * tones * (0.6 + 0.4 * torch.sin(9 * time)) + 0.02 * torch.randn(samples, generator=generator)


class Draw(dict[str, Tensor]):
    """Weights by name, drawn one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(7)

    def tensor(self, name: str, *shape: int, scale: float | None = None, shift: float = 0.0) -> Tensor:
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:]))) if scale is None else scale
        self[name] = torch.randn(*shape, generator=self.generator) * scale + shift
        return self[name]

    def affine(self, name: str, size: int, shape: tuple[int, ...] | None = None) -> None:
        shape = shape or (size,)
        self.tensor(f"{name}.weight", *shape, scale=0.2, shift=1.0)
        self.tensor(f"{name}.bias", *shape, scale=0.1)

    def layer(self, name: str, *shape: int) -> None:
        self.tensor(f"{name}.weight", *shape)
        self.tensor(f"{name}.bias", shape[0], scale=0.1)

    def batch_norm(self, name: str, size: int, affine: bool = True) -> None:
        if affine:
            self.affine(name, size)
        self.tensor(f"{name}.running_mean", size, scale=0.2)
        self[f"{name}.running_var"] = 0.5 + torch.rand(size, generator=self.generator)
        self[f"{name}.num_batches_tracked"] = torch.tensor(3)

    def normed(self, name: str, x: Tensor) -> Tensor:
        """Batch norm of (C, ...) by hand."""
        shape = (-1, *(1,) * (x.dim() - 1))
        out = (x - self[f"{name}.running_mean"].view(shape)) / (self[f"{name}.running_var"].view(shape) + 1e-5).sqrt()
        if f"{name}.weight" in self:
            out = out * self[f"{name}.weight"].view(shape) + self[f"{name}.bias"].view(shape)
        return out


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1) -> Tensor:
    """(C, T) -> (C', T'), one output frame after the other."""
    kernel = weight.shape[2]
    last = x.shape[1] - (kernel - 1) * dilation
    columns = [
        torch.einsum("oik,ik->o", weight, x[:, start : start + (kernel - 1) * dilation + 1 : dilation])
        for start in range(0, last, stride)
    ]
    out = torch.stack(columns, dim=1)
    return out if bias is None else out + bias[:, None]


def check(path: Path, content: Any, name: str, waveform: Tensor, expected: list[Tensor], **kwargs: Any) -> None:
    """Load the file and compare every layer, alone and beside a longer clip."""
    torch.save(content, path)
    upstream = load_upstream(name, checkpoint=str(path), **kwargs)
    batch = torch.nn.utils.rnn.pad_sequence([speech(len(waveform) + 4321, seed=5), waveform], batch_first=True)
    alone = upstream(waveform[None])["audio"]
    beside = upstream(batch, torch.tensor([len(waveform) + 4321, len(waveform)]))["audio"]
    assert len(alone) == len(expected)
    for layer, reference in enumerate(expected):
        assert alone.hidden_states[layer][0].shape == reference.shape, f"layer {layer}"
        scale = float(reference.pow(2).mean().sqrt())
        for found in (alone.hidden_states[layer][0], beside.hidden_states[layer][1, : len(reference)]):
            difference = float((found - reference).abs().max()) / scale
            assert difference < 2e-5, f"layer {layer} differs by {difference:.1e} of its scale {scale:.2f}"
        assert not beside.hidden_states[layer][1, len(reference) :].any()
