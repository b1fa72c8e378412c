"""Use a trained speaker model: embeddings of clips, and whether two clips are of one speaker.

speaker = mmssl.load_speaker("exp/mine/model")
speaker.embed("a.wav")               # (E,)
speaker.verify("a.wav", "b.wav")     # Verification(score=0.71, same=True, llr=4.2, ...)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.downstream.pooling import masked_mean
from mmssl.downstream.scoring import cosine_scores
from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.errors import CheckpointError, InputError, MmsslError
from mmssl.media.audio import load_audio
from mmssl.media.silence import speech_extent
from mmssl.training.speaker_calibration import CALIBRATION, Calibration, read_calibration
from mmssl.training.speaker_files import DESCRIPTION, is_speaker_model, load_speaker_model
from mmssl.types import Clip, Padded
from mmssl.upstreams.base import Upstream, load_upstream

__all__ = ["Embedder", "LayerMean", "Speaker", "Verification", "load_embedder", "load_speaker"]

WITHOUT_CALIBRATION = f"no {CALIBRATION} beside the model: a score, but no decision"


@dataclass(frozen=True)
class Verification:
    """What a model says about two clips.

    Attributes:
        score: cosine of the embeddings, in [-1, 1].
        same: whether the score reaches the threshold; None without a calibration.
        llr: log-likelihood ratio (natural logarithm) of "one speaker" to "two speakers"; None without a calibration.
        threshold: of the score; None without a calibration.
        note: what the reader must know; empty where there is nothing.
    """

    score: float
    same: bool | None = None
    llr: float | None = None
    threshold: float | None = None
    note: str = ""


class Embedder(ABC):
    """Clips to vectors, one clip at a time, so that a vector depends on its clip alone."""

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Of the waveforms that `embed` takes, in Hz."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Width E of the embeddings."""

    @abstractmethod
    def _embed(self, waveform: Tensor) -> Tensor:
        """(T,) -> (E,)."""

    def embed(self, clips: Any) -> Tensor:
        """Embed one clip, or several.

        Args:
            clips: a path of a media file of any kind and rate, a waveform (T,) float in [-1, 1] at `sample_rate`
                (tensor or array), or a `Clip`; or a list or tuple of these.

        Returns:
            (E,) float32 on the CPU for one clip, (N, E) for a list.

        Raises:
            MediaError: a file cannot be read.
            InputError: a waveform has a wrong shape or type, a clip is too short, or the list is empty.
        """
        if isinstance(clips, list | tuple):
            if not clips:
                raise InputError("embed got an empty list: give at least one clip.")
            return torch.stack([self.embed_one(clip) for clip in clips])
        return self.embed_one(clips)

    def embed_one(self, clip: Any) -> Tensor:
        """Embed one path, waveform or `Clip`; see `embed`."""
        waveform = self._waveform(clip)
        try:
            return self._embed(waveform).float().cpu()
        except InputError as error:
            name = _name(clip)
            raise InputError(f"{name}: {error}" if name else str(error)) from error

    def _waveform(self, clip: Any) -> Tensor:
        if isinstance(clip, Clip):
            if clip.audio is None and clip.video is None:
                raise InputError(f"The clip {clip.id!r} has no sound to embed.")
            source = str(clip.audio or clip.video)
            return load_audio(source, sample_rate=self.sample_rate, start=clip.start, duration=clip.duration)[0]
        if isinstance(clip, str | Path):
            return load_audio(clip, sample_rate=self.sample_rate)[0]
        waveform = torch.as_tensor(clip)
        if waveform.dim() != 1 or not waveform.is_floating_point() or not bool(torch.isfinite(waveform).all()):
            raise InputError(
                f"A waveform must be (T,) finite floats in [-1, 1] at {self.sample_rate} Hz, got {waveform.dtype} "
                f"{tuple(waveform.shape)}: mix the channels down and scale integers first, or give the path of a file."
            )
        return waveform.float()


class Speaker(Embedder):
    """A speaker model and, where there is one, its calibration.

    Args:
        model: in any mode; its device stays.
        calibration: of this model's scores.
    """

    def __init__(self, model: SpeakerModel, calibration: Calibration | None = None) -> None:
        self.model, self.calibration = model, calibration

    @property
    def sample_rate(self) -> int:
        """Of the waveforms that `embed` takes, in Hz."""
        return self.model.sample_rate

    @property
    def output_size(self) -> int:
        """Width E of the embeddings."""
        return self.model.output_size

    def verify(self, enrol: Any, test: Any) -> Verification:
        """Compare two clips.

        Args:
            enrol: a path, waveform or `Clip`, or a list of these: clips of one speaker, whose unit vectors are
                averaged.
            test: the same.

        Returns:
            Score and, with a calibration, decision and log-likelihood ratio.

        Raises:
            MediaError, InputError: as `embed`.
        """
        sides = [self._voice(enrol), self._voice(test)]
        score = float(cosine_scores(torch.stack(sides).double().numpy(), [0], [1])[0])
        if self.calibration is None:
            return Verification(score, note=WITHOUT_CALIBRATION)
        found = self.calibration
        return Verification(score, found.same(score), found.llr(score), found.threshold)

    def _voice(self, clips: Any) -> Tensor:
        embeddings = self.embed(clips)
        return embeddings if embeddings.dim() == 1 else torch.nn.functional.normalize(embeddings.double()).mean(0)

    def _embed(self, waveform: Tensor) -> Tensor:
        if self.model.trim_silence is not None:
            ends = speech_extent(waveform.numpy(force=True), self.sample_rate, self.model.trim_silence)
            waveform = waveform[slice(*(round(end * self.sample_rate) for end in ends))]
        device = next(self.model.parameters()).device
        return self.model.embed(Padded(waveform[None], torch.tensor([len(waveform)])).to(device))[0]


class LayerMean(Embedder):
    """The mean over time of one layer of an upstream.

    Args:
        upstream: of waveforms.
        layer: which; negative from the end.
        stream: of the upstream.

    Raises:
        InputError: the upstream takes no waveforms, or has no such stream or layer.
    """

    def __init__(self, upstream: Upstream, layer: int = -1, stream: str = "audio") -> None:
        spec = upstream.spec
        if tuple(spec.inputs) != ("waveforms",) or stream not in spec.streams:
            raise InputError(
                f"embed needs an upstream of waveforms alone with the stream {stream!r}; this one takes "
                f"{' and '.join(spec.inputs)} and has {', '.join(spec.streams)}. Use `mmssl extract` for others."
            )
        if not -spec.streams[stream].num_layers <= layer < spec.streams[stream].num_layers:
            raise InputError(f"There is no layer {layer}: the stream has {spec.streams[stream].num_layers} layers.")
        self.upstream, self.layer, self.stream = upstream, layer, stream

    @property
    def sample_rate(self) -> int:
        """Of the waveforms that `embed` takes, in Hz."""
        return int(self.upstream.spec.sample_rate or 0)

    @property
    def output_size(self) -> int:
        """Width E of the embeddings."""
        return self.upstream.spec.streams[self.stream].hidden_sizes[self.layer]

    @torch.no_grad()
    def _embed(self, waveform: Tensor) -> Tensor:
        batch = waveform[None].to(self.upstream.device, self.upstream.dtype)
        return masked_mean(self.upstream(batch)[self.stream][self.layer])[0]


def load_speaker(folder: str | Path, *, device: str | torch.device = "cpu", trust: bool = False) -> Speaker:
    """Load a trained speaker model for use.

    Args:
        folder: that speaker training (or `save_speaker_model`) wrote. `calibration.json` in it, if there is one, gives
            decisions.
        device: where the model runs.
        trust: also build parts that are neither mmssl's nor an installed plug-in's, which runs their code.

    Raises:
        CheckpointError: there is no such folder, it holds no speaker model or a damaged one, or its calibration was
            fitted to other weights.
    """
    folder = Path(folder)
    if not is_speaker_model(folder):
        what = "has no" if folder.is_dir() else "does not exist, so it has no"
        inside = [str(path.parent) for path in sorted(folder.glob(f"*/{DESCRIPTION}"))] if folder.is_dir() else []
        hint = f"Did you mean {inside[0]}?" if inside else "Give what speaker training wrote, as exp/NAME/model."
        raise CheckpointError(f"{folder} {what} {DESCRIPTION}: it is no folder of a speaker model. {hint}")
    return Speaker(load_speaker_model(folder, device=device, trust=trust), read_calibration(folder))


def load_embedder(
    model: str | Path,
    *,
    layer: int = -1,
    arguments: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    trust: bool = False,
) -> Embedder:
    """A speaker model by its folder, or the mean of an upstream's layer by the upstream's name.

    Args:
        model: the folder of a speaker model, or what `load_upstream` takes.
        layer: of an upstream.
        arguments: of an upstream's constructor, such as {"checkpoint": DIR}.
        device: where it runs.
        trust: see `load_speaker`.

    Raises:
        CheckpointError: as `load_speaker`, or the name is neither a folder of a speaker model nor an upstream.
        MmsslError: what the upstream's constructor raises.
    """
    if is_speaker_model(model):
        return load_speaker(model, device=device, trust=trust)
    try:
        upstream = load_upstream(str(model), device=device, **(arguments or {}))
    except MmsslError as error:
        raise CheckpointError(
            f"{str(model)!r} is no folder of a speaker model (it has no {DESCRIPTION}), and as an upstream: {error}"
        ) from error
    return LayerMean(upstream, layer)


def _name(clip: Any) -> str:
    if isinstance(clip, Clip):
        return clip.id
    return str(clip) if isinstance(clip, str | Path) else ""
