"""Synchrony of sound and pictures of video files: an encoder, the comparison of its streams, and a folder for both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmssl.downstream.sync import Synchrony
from mmssl.downstream.sync_distance import SyncJudgement, judge, shift_distances
from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.interfaces.aligned import AlignedStreams
from mmssl.interfaces.joined_frames import chosen_layers, chosen_spec, of_last_rate
from mmssl.random import isolated_rng
from mmssl.training.sync_media import MediaReader
from mmssl.types import Clip, Inputs, Layers, Padded, UpstreamSpec
from mmssl.upstreams.base import Upstream, load_upstream
from mmssl.upstreams.checkpoints import read_checkpoint, read_json, write_file
from mmssl.upstreams.exported import export_upstream

DESCRIPTION, WEIGHTS, UPSTREAM = "synchrony.json", "synchrony.safetensors", "upstream"
STREAMS = ("audio", "video")


class SyncModel(nn.Module):
    """An encoder of sound and video, frozen, and a comparison of both streams frame by frame.

    Layers whose frames are not those of their stream's last layer are left out, so that a stream has one clock.

    Args:
        upstream: with the streams "audio" and "video", both with a time axis.
        projected: project the weighted layers of either stream to one space, with weights that have to be trained;
            else the last layers of both are compared as they are, which must then be of one width and of one space.
        max_shift: S, in frames of the common clock.
        least_frames: shifts with fewer frames in common do not count.
        embedding_size, hidden_size, temperature: see `mmssl.downstream.sync.Synchrony`.
        threshold: confidence below which no shift counts as fitting; None for none.

    Attributes:
        frame_shift: seconds between two frames of the common clock.
        task: the trained comparison, or None.

    Raises:
        ConfigError: the encoder lacks a stream or its time axis, or widths differ where nothing is projected.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        projected: bool = True,
        max_shift: int = 15,
        least_frames: int = 10,
        embedding_size: int = 128,
        hidden_size: int = 256,
        temperature: float = 0.1,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        if max_shift < 1 or least_frames < 1:
            raise ConfigError(f"max_shift and least_frames must be at least 1, got {max_shift} and {least_frames}.")
        self.upstream = upstream.eval().requires_grad_(False)
        self.max_shift, self.least_frames, self.threshold = max_shift, least_frames, threshold
        self.kept, spec = common_layers(upstream.spec, only_last=not projected)
        self.aligned = AlignedStreams(spec, "weighted_sum" if projected else "last_layer")
        self.frame_shift = self.aligned.frame_shift
        self.task: Synchrony | None = None
        if projected:
            sizes = {"embedding_size": embedding_size, "hidden_size": hidden_size}
            self.task = Synchrony(self.aligned, max_shift=max_shift, temperature=temperature, **sizes)
            self.task.least_frames = least_frames
        elif len(set(self.aligned.sizes.values())) > 1:
            raise ConfigError(
                f"The last layers of audio and video have the widths {self.aligned.sizes}: they are not of one space. "
                "Train a synchrony model on this encoder."
            )

    def set_max_shift(self, max_shift: int) -> None:
        """Look at shifts of up to so many frames; what was trained on fewer gives distances at more as well.

        Raises:
            ConfigError: below 1.
        """
        if max_shift < 1:
            raise ConfigError(f"max_shift must be at least 1 frame, got {max_shift}.")
        self.max_shift = max_shift

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, Layers]:
        """Layers of both streams that are used, of B clips."""
        assert inputs.waveforms is not None
        assert inputs.video is not None
        found = self.upstream(
            inputs.waveforms.data, inputs.waveforms.lengths, video=inputs.video.data, video_lengths=inputs.video.lengths
        )
        return {name: chosen_layers(found[name], self.kept[name]) for name in STREAMS}

    @torch.no_grad()
    def frames(self, streams: Mapping[str, Layers]) -> dict[str, Padded]:
        """Frames (B, T, E) of "audio" and "video" in one space and on one clock."""
        return self.aligned(streams) if self.task is None else self.task.frames(streams)

    @torch.no_grad()
    def distances(self, streams: Mapping[str, Layers]) -> Tensor:
        """(B, 2 S + 1) distances over shifts, see `shift_distances`.

        Raises:
            InputError: a clip with fewer frames than `least_frames`.
        """
        self.eval()
        found = self.frames(streams)
        distances = shift_distances(found["audio"], found["video"], self.max_shift, self.least_frames)
        if not bool(torch.isfinite(distances).any(1).all()):
            frames = torch.minimum(found["audio"].lengths, found["video"].lengths).tolist()
            raise InputError(
                f"Clips of {frames} frames have fewer than least_frames = {self.least_frames} in common at every "
                "shift: leave the short ones out."
            )
        return distances

    def judge(self, clip: Clip, *, tolerance: int = 1, reader: MediaReader | None = None) -> SyncJudgement:
        """What a video file says: offset, confidence and verdict.

        Raises:
            DataError: the clip has no video.
            MediaError: it cannot be read, has no sound, or is too short.
            InputError: it has fewer frames than `least_frames` at every shift.
        """
        inputs = (reader or MediaReader(self.upstream.spec)).inputs(clip)
        inputs = to_device(inputs, self.upstream.device)
        return judge(self.distances(self.encode(inputs)), tolerance, self.threshold)[0]

    def save(self, folder: str | Path, target: str, arguments: Mapping[str, Any], note: str = "") -> None:
        """Write the model; `load_sync_model` reads it.

        Args:
            folder: made where it does not exist.
            target, arguments: what builds the upstream (name or dotted path), see `export_upstream`.
            note: where it comes from.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / DESCRIPTION).unlink(missing_ok=True)
        export_upstream(self.upstream, place / UPSTREAM, target, arguments)
        sizes: dict[str, Any] = {"projected": self.task is not None}
        if self.task is not None:
            first, last = self.task.projections["audio"][1], self.task.projections["audio"][-1]  # type: ignore[index]
            sizes |= {"hidden_size": first.out_features, "embedding_size": last.out_features}
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.task.state_dict().items()}
            write_file(place / WEIGHTS, save(state, {"format": "pt"}))
        settings = {"max_shift": self.max_shift, "least_frames": self.least_frames, "threshold": self.threshold}
        described = {"schema": 1, "settings": sizes | settings, "frame_shift": self.frame_shift, "note": note}
        write_file(place / DESCRIPTION, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())


def load_sync_model(folder: str | Path, device: str | torch.device = "cpu") -> SyncModel:
    """Read what `SyncModel.save` wrote, or take an encoder whose streams are of one space as it is.

    Args:
        folder: of a synchrony model; or what `load_upstream` takes: the folder of an exported encoder, or its name.
        device: where it goes.

    Raises:
        CheckpointError: the folder is incomplete, or its weights do not fit.
        ConfigError: the encoder cannot be compared as it is.
    """
    place = Path(folder)
    if not (place / DESCRIPTION).is_file():
        return SyncModel(load_upstream(str(folder)), projected=False).eval().to(device)
    described = read_json(place / DESCRIPTION)
    try:
        settings = dict(described["settings"])
        with isolated_rng(0):
            model = SyncModel(load_upstream(str(place / UPSTREAM)), **settings)
        if model.task is not None:
            model.task.load_state_dict(read_checkpoint(place / WEIGHTS), strict=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{place} is no whole synchrony model: {error}. Write it again.") from error
    return model.eval().to(device)


def common_layers(spec: UpstreamSpec, only_last: bool = False) -> tuple[dict[str, list[int]], UpstreamSpec]:
    """Layers of audio and video that have the frames of their stream's last layer, and the spec of these alone.

    Raises:
        ConfigError: a stream is missing.
    """
    absent = [name for name in STREAMS if name not in spec.streams]
    if absent:
        raise ConfigError(
            f"Synchrony needs the streams audio and video; the encoder gives {', '.join(spec.streams)} only."
        )
    kept = {name: of_last_rate(spec.streams[name])[-1 if only_last else 0 :] for name in STREAMS}
    return kept, replace(spec, streams={name: chosen_spec(spec.streams[name], own) for name, own in kept.items()})


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same batch elsewhere."""
    waveforms, video = (None if part is None else part.to(device) for part in (inputs.waveforms, inputs.video))
    return Inputs(waveforms, video)
