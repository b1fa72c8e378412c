"""Where in the picture the sound comes from: similarity of a clip's sound with every place of its picture.

Source: Arandjelovic and Zisserman 2018, "Objects that Sound" (AVOL-Net), section 4: the sound's vector is compared with
that of each place, the best place is the score of the pair, and the map of all places shows the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.data.streams import cleared
from mmssl.downstream.pooling import masked_mean, without_padding
from mmssl.errors import ConfigError, InputError
from mmssl.metrics.retrieval import retrieval_metrics
from mmssl.types import Layers, Padded, TaskOutput

if TYPE_CHECKING:
    from mmssl.interfaces.base import Interface


def similarity_maps(audio: Tensor, tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Maps of cosines at the size of the pictures.

    Args:
        audio: (B, E) of the sounds.
        tokens: (B, h * w, E) of the places, row by row.
        grid: (h, w).
        size: (H, W) of the pictures; the map is interpolated bilinearly.

    Returns:
        (B, H, W) in [-1, 1].

    Raises:
        InputError: shapes do not fit.
    """
    rows, columns = grid
    if tokens.dim() != 3 or audio.shape != (len(tokens), tokens.shape[-1]) or tokens.shape[1] != rows * columns:
        raise InputError(
            f"A map of {rows} x {columns} places needs (B, E) sounds and (B, {rows * columns}, E) places, got "
            f"{tuple(audio.shape)} and {tuple(tokens.shape)}."
        )
    cosines = (F.normalize(tokens, dim=-1) * F.normalize(audio, dim=-1)[:, None]).sum(-1)
    coarse = cosines.unflatten(1, grid)[:, None]
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[:, 0]


class Localisation(nn.Module):
    """Linear maps of sound and places to one space, trained by InfoNCE on the best place of each pair.

    Args:
        interfaces: "audio" and one of "image" and "video".
        grid: (h, w) of the places of a picture.
        embedding_size: of the common space.
        temperature: divides the cosines.
        skip_tokens: tokens before those of the places (class and register tokens), per picture; for images.

    Attributes:
        monitor: the score that selects: R@1, mean of both directions.

    Raises:
        ConfigError: other streams, or a value out of range.
    """

    monitor = "dev_r1"

    def __init__(
        self,
        interfaces: Mapping[str, Interface],
        grid: tuple[int, int],
        embedding_size: int = 128,
        temperature: float = 0.07,
        skip_tokens: int = 0,
    ) -> None:
        super().__init__()
        sights = [name for name in interfaces if name in ("image", "video")]
        if set(interfaces) != {"audio", *sights} or len(sights) != 1:
            raise ConfigError(f"Localisation needs audio and one of image and video, got {', '.join(interfaces)}.")
        if min(*grid, embedding_size) < 1 or skip_tokens < 0 or not temperature > 0:
            raise ConfigError(
                f"grid and embedding_size must be at least 1 and the temperature above 0, got {grid}, "
                f"{embedding_size} and {temperature}."
            )
        self.sight, self.grid, self.skip_tokens, self.temperature = sights[0], tuple(grid), skip_tokens, temperature
        self.interfaces = nn.ModuleDict(dict(interfaces))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(part.output_size, embedding_size) for name, part in interfaces.items()}
        )

    def embed(self, streams: Mapping[str, Layers]) -> tuple[Tensor, Tensor]:
        """Sounds (B, E) and places (B, h * w, E), of unit length; places of a video are means over its frames.

        Raises:
            InputError: a stream is missing, or the tokens do not fill the grid.
        """
        missing = [name for name in ("audio", self.sight) if name not in streams]
        if missing:
            raise InputError(f"Localisation needs audio and {self.sight}; the batch lacks {', '.join(missing)}.")
        sound = self.heads["audio"](masked_mean(self.interfaces["audio"](cleared(streams["audio"]))))
        tokens = without_padding(self.interfaces[self.sight](cleared(streams[self.sight])))
        places = self.heads[self.sight](self._places(tokens))
        return F.normalize(sound, dim=-1), F.normalize(places, dim=-1)

    def maps(self, streams: Mapping[str, Layers], size: tuple[int, int]) -> Tensor:
        """(B, H, W) maps at the size of the pictures, without gradients."""
        with torch.no_grad():
            return similarity_maps(*self.embed(streams), self.grid, size)  # type: ignore[arg-type]

    def forward(self, streams: Mapping[str, Layers], targets: Tensor) -> TaskOutput:
        """InfoNCE of a batch; `predictions` are (B, 1 + h * w, E): the sound, then the places.

        Args:
            streams: of B clips.
            targets: (B,) whole numbers; other clips of a clip's number are no negatives.
        """
        sound, places = self.embed(streams)
        if targets.shape != sound.shape[:1] or targets.is_floating_point():
            raise InputError(f"Targets must be ({len(sound)},) whole numbers, got {targets.dtype} {targets.shape}.")
        same = (targets[:, None] == targets).fill_diagonal_(False)
        logits = (_pair_scores(sound, places) / self.temperature).masked_fill(same, -torch.inf)
        rows = torch.arange(len(sound), device=sound.device)
        loss = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.t(), rows)) / 2
        return TaskOutput(loss, len(targets), torch.cat([sound[:, None], places], dim=1))

    @torch.no_grad()
    def predict(self, streams: Mapping[str, Layers]) -> Tensor:
        """Sounds and places (B, 1 + h * w, E) in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            sound, places = self.embed(streams)
            return torch.cat([sound[:, None], places], dim=1)
        finally:
            self.train(training)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Retrieval by the best place among all clips of a split, from (N, 1 + h * w, E)."""
        table = _pair_scores(scores[:, 0], scores[:, 1:]).double().cpu().numpy()
        return retrieval_metrics(table, targets.cpu().numpy(), names=("audio", self.sight))

    def _places(self, tokens: Padded) -> Tensor:
        count = self.grid[0] * self.grid[1]
        if self.sight == "image":
            data = tokens.data[:, self.skip_tokens :]
            if data.shape[1] != count or bool((tokens.lengths != tokens.data.shape[1]).any()):
                raise InputError(
                    f"A grid of {self.grid} has {count} places, the pictures have {data.shape[1]} tokens after the "
                    f"first {self.skip_tokens}: give grid and skip_tokens of the upstream."
                )
            return data
        if bool((tokens.lengths % count).any()):
            raise InputError(f"A grid of {self.grid} has {count} places; videos have {tokens.lengths.tolist()} tokens.")
        whole = tokens.data[:, : tokens.data.shape[1] // count * count].unflatten(1, (-1, count))
        return whole.sum(1) / (tokens.lengths // count)[:, None, None]


def _pair_scores(sound: Tensor, places: Tensor) -> Tensor:
    """(B, C) best cosine of sounds (B, E) with the places (C, N, E) of each picture."""
    return torch.einsum("be,cne->bcn", sound, places).amax(-1)
