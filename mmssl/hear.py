"""Any audio upstream behind the HEAR 2021 common API: `load_model`, `get_scene_embeddings`, `get_timestamp_embeddings`.

Source: Turian et al. 2022, "HEAR: Holistic Evaluation of Audio Representations", and the API at hearbenchmark.com.
Tools of the benchmark import a module and hand it a model file. Here the module is `mmssl.hear` and the file is JSON:

    from mmssl.hear import write_model_file
    write_model_file("hubert.json", "hubert", checkpoint="models/hubert-base-ls960")

    hear-validator mmssl.hear -m hubert.json

`module_for` makes a module for one upstream instead, for tools that take no model file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.upstreams.base import Upstream, load_upstream
from mmssl.upstreams.checkpoints import write_file

SAMPLE_RATES = (16000, 22050, 44100, 48000)
"""Rates in Hz that the API allows."""
LAYERS = ("last", "mean", "concat")
_FIELDS = ("upstream", "arguments", "layers", "seed")


class HearModel(nn.Module):
    """An upstream with what the API asks of a model.

    Args:
        upstream: takes waveforms (with or without video) and has a stream "audio" with a time axis.
        layers: "last", a layer's number (negative from the end), or "mean" or "concat" of all layers, which must then
            share one rate (and for the mean one width).

    Attributes:
        sample_rate: of the audio, in Hz.
        timestamp_embedding_size, scene_embedding_size: widths of the embeddings.

    Raises:
        ConfigError: the upstream takes something else, or its layers do not go together.
    """

    def __init__(self, upstream: Upstream, layers: str | int = "last") -> None:
        super().__init__()
        spec = upstream.spec
        if "waveforms" not in spec.inputs or "audio" not in spec.streams or spec.sample_rate not in SAMPLE_RATES:
            raise ConfigError(
                f"HEAR takes an upstream of waveforms at {', '.join(map(str, SAMPLE_RATES))} Hz; "
                f"{type(upstream).__name__} takes {' and '.join(spec.inputs)} at {spec.sample_rate} Hz."
            )
        stream = spec.streams["audio"]
        self.upstream, self.layers = upstream, layers
        self.chosen = _chosen(layers, stream.num_layers)
        sizes = [stream.hidden_sizes[k] for k in self.chosen]
        hops = {stream.hop_lengths[k] for k in self.chosen}
        if len(hops) > 1 or 0 in hops or (layers == "mean" and len(set(sizes)) > 1):
            raise ConfigError(
                f"The layers {layers!r} of {type(upstream).__name__} have widths {sizes} and hop lengths "
                f"{sorted(hops)}; they need one hop length above 0, and one width for a mean."
            )
        self.sample_rate: int = spec.sample_rate
        self.hop_length = hops.pop()
        self.tokens_per_frame = stream.tokens_per_frame
        self.timestamp_embedding_size = sum(sizes) if layers == "concat" else sizes[0]
        self.scene_embedding_size = self.timestamp_embedding_size
        self.first_center = self._first_center()

    def _first_center(self) -> float:
        """Time of the middle of the first frame, in samples.

        The shortest clip with n frames reaches as far before the first frame's middle as after the last one's, whether
        windows lie inside the clip or are centred on its ends.
        """
        longest = self.upstream.spec.min_length + 4 * self.hop_length
        lengths = torch.arange(longest - self.hop_length, longest + 1)
        counts = self.upstream.output_lengths(lengths, "audio", self.chosen[-1]) // self.tokens_per_frame
        shortest = int(lengths[counts == counts[-1]][0])
        return max(0.0, (shortest - (int(counts[-1]) - 1) * self.hop_length) / 2)

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of sounds of one length.

        Args:
            audio: (n_sounds, n_samples) in [-1, 1]. Sounds below the upstream's minimum get zeros at their end.

        Returns:
            (n_sounds, T, timestamp_embedding_size) float32, and the middle of each of the T frames in samples, float64.
        """
        if audio.dim() != 2 or not audio.is_floating_point() or not audio.numel():
            raise InputError(f"audio must be float (n_sounds, n_samples), got {audio.dtype} {tuple(audio.shape)}.")
        missing = self.upstream.spec.min_length - audio.shape[1]
        samples = F.pad(audio, (0, max(missing, 0))).to(self.upstream.device)
        layers = self.upstream(samples)["audio"]
        hidden = [layers.hidden_states[k].float() for k in self.chosen]
        joined = torch.cat(hidden, dim=-1) if self.layers == "concat" else torch.stack(hidden).mean(dim=0)
        if self.tokens_per_frame > 1:
            joined = joined.unflatten(1, (-1, self.tokens_per_frame)).mean(dim=2)
        steps = torch.arange(joined.shape[1], dtype=torch.float64, device=joined.device)
        return joined, self.first_center + self.hop_length * steps


def load_model(model_file_path: str = "") -> HearModel:
    """Load a model from a file of `write_model_file`; without one, Kaldi's filterbank.

    Raises:
        ConfigError: the file is missing or not such a file, or the upstream does not fit the API.
    """
    return _load(_read(Path(model_file_path)) if model_file_path else {"upstream": "fbank"})


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeddings over time.

    Args:
        audio: (n_sounds, n_samples) in [-1, 1] at the model's rate.
        model: from `load_model`.

    Returns:
        Embeddings (n_sounds, T, size) float32, and the time of the middle of each frame (n_sounds, T) in milliseconds.
    """
    embeddings, centers = model(audio)
    timestamps = (1000 * centers / model.sample_rate).to(torch.float32)
    return embeddings, timestamps.repeat(len(audio), 1)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One embedding per sound, the mean of those over time.

    Args:
        audio: (n_sounds, n_samples) in [-1, 1] at the model's rate.
        model: from `load_model`.

    Returns:
        (n_sounds, size) float32.
    """
    return model(audio)[0].mean(dim=1)


def write_model_file(
    path: str | Path, upstream: str, *, layers: str | int = "last", seed: int = 0, **arguments: Any
) -> None:
    """Write what `load_model` reads: the upstream's name or path, its arguments, layers and seed.

    Args:
        path: of the JSON file, written whole or not at all.
        upstream, seed, **arguments: as for `mmssl.load_upstream`.
        layers: as for `HearModel`.
    """
    settings = {"upstream": upstream, "arguments": arguments, "layers": layers, "seed": seed}
    write_file(Path(path), (json.dumps(settings, indent=2) + "\n").encode())


def module_for(upstream: str, *, layers: str | int = "last", seed: int = 0, **arguments: Any) -> ModuleType:
    """A module with the API's three functions whose `load_model` gives this upstream when it gets no file.

    In a file of your own that a tool imports: `hear = module_for("fbank")`, `load_model = hear.load_model` and so on.

    Args:
        upstream, seed, **arguments: as for `mmssl.load_upstream`.
        layers: as for `HearModel`.
    """
    settings = {"upstream": upstream, "arguments": arguments, "layers": layers, "seed": seed}

    def load_this_model(model_file_path: str = "") -> HearModel:
        """Load the upstream of this module, or the model of a file."""
        return load_model(model_file_path) if model_file_path else _load(settings)

    module = ModuleType(f"hear_{Path(upstream).stem}", f"HEAR common API of the upstream {upstream!r}.")
    functions = {
        "load_model": load_this_model,
        "get_timestamp_embeddings": get_timestamp_embeddings,
        "get_scene_embeddings": get_scene_embeddings,
    }
    vars(module).update(functions)
    return module


def _load(settings: Mapping[str, Any]) -> HearModel:
    upstream = load_upstream(settings["upstream"], seed=settings.get("seed", 0), **settings.get("arguments", {}))
    return HearModel(upstream, settings.get("layers", "last")).eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no HEAR model file: {error}. Write one with mmssl.hear.write_model_file."
        ) from error
    if not isinstance(content, dict) or "upstream" not in content or set(content) - set(_FIELDS):
        raise ConfigError(
            f"{path} must be a JSON object with the key upstream and none but {', '.join(_FIELDS)}; "
            f"got {sorted(content) if isinstance(content, dict) else type(content).__name__}."
        )
    return content


def _chosen(layers: str | int, count: int) -> list[int]:
    if (
        isinstance(layers, bool)
        or not isinstance(layers, int | str)
        or (isinstance(layers, str) and layers not in LAYERS)
    ):
        raise ConfigError(f"layers must be a number or one of {', '.join(LAYERS)}, got {layers!r}.")
    if isinstance(layers, int):
        if not -count <= layers < count:
            raise ConfigError(f"There are {count} layers, {layers} was asked for.")
        return [layers % count]
    return [count - 1] if layers == "last" else list(range(count))
