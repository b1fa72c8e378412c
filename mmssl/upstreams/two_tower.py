"""Two-tower audio-visual encoders: a network on spectrograms and one on video, which meet in the objective alone.

XDC, CrissCross and AVID were trained on short clips whose last maps are pooled to one vector. Here the towers run over
whole clips, fully convolutional over time, and every stage is a layer: a sequence of frames, pooled over frequency or
over the picture. So each input is computed once, and the hop of every layer is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import CheckpointError, ConfigError
from mmssl.nn.conv_tower import AudioTower, Pooling, VideoTower
from mmssl.nn.equal_lengths import map_equal_lengths
from mmssl.nn.filterbank import fft_size, mel_bank
from mmssl.nn.r2plus1d import avid_r2plus1d_18, r2plus1d_18
from mmssl.nn.resnet2d import conv2d_10, resnet18_audio
from mmssl.nn.spectrogram import LogSpectrogram
from mmssl.types import Inputs, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.av_weights import print_licence, read_towers, settle_modalities, stage_rules, turned
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.renaming import load_renamed

KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TwoTower(Upstream):
    """Base of the two-tower encoders: streams "audio" and "video", each from its own input, alone or together.

    Clips of one length run together and others on their own, so that no tower ever meets padding. In training mode a
    batch norm therefore sees one group of equal lengths at a time: train on crops of one length.

    Args:
        audio, video: the towers; one of them may be None.
        sample_rate: of the waveforms, in Hz.
        video_fps: of the video, in Hz.
        image_size: height and width of the pictures.
    """

    def __init__(
        self, audio: AudioTower | None, video: VideoTower | None, *, sample_rate: int, video_fps: float, image_size: int
    ) -> None:
        super().__init__()
        self.audio, self.video = audio, video
        towers = {"audio": audio, "video": video}
        inputs = {"audio": "waveforms", "video": "video"}
        present = {name: tower for name, tower in towers.items() if tower is not None}
        first = next(iter(present.values()), None)
        if first is None:
            raise ConfigError("A two-tower encoder needs at least one tower.")
        self.spec = UpstreamSpec(
            inputs=tuple(inputs[name] for name in present),
            streams={name: StreamSpec(tower.hidden_sizes, tower.hop_lengths) for name, tower in present.items()},
            sample_rate=sample_rate if audio is not None else None,
            video_fps=video_fps if video is not None else None,
            min_length=first.min_length,
            image_size=(image_size, image_size) if video is not None else None,
        )

    def load_towers(
        self,
        found: Mapping[str, tuple[str, Mapping[str, Tensor]]],
        rules: Callable[[str], list[tuple[str, str]]] | None = None,
        *,
        method: str | None = None,
        ignore: str | None = None,
    ) -> None:
        """Load what `read_towers` has found.

        Args:
            found: of each tower that is there, a file and its weights; empty where there is no checkpoint.
            rules: from "audio" or "video" to the rules of `load_renamed`.
            method: whose licence to print.
            ignore: names that are no part of a tower; see `load_renamed`.

        Raises:
            CheckpointError: weights are missing, left over or of another shape.
        """
        sources = set()
        for modality, tower in (("audio", self.audio), ("video", self.video)):
            if tower is None or not found:
                continue
            source, state = found[modality]
            load_renamed(tower.trunk, state, rules(modality) if rules else (), source=source, ignore=ignore)
            sources.add(source)
        for source in sorted(sources) if method is not None else ():
            print_licence(str(method), source)

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of the streams whose inputs are there."""
        found = {}
        if inputs.waveforms is not None and self.audio is not None:
            found["audio"] = map_equal_lengths(inputs.waveforms, self.audio)
        if inputs.video is not None and self.video is not None:
            found["video"] = map_equal_lengths(inputs.video, self.video)
        return found

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of a layer for `lengths` (B,) samples (audio) or video frames (video)."""
        tower = self.video if stream == "video" else self.audio
        if tower is None:
            raise ConfigError(f"This {type(self).__name__} has no {stream} tower.")
        return tower.output_lengths(lengths, layer)


class XDC(TwoTower):
    """Cross-modal deep clustering (Alwassel et al. 2020): R(2+1)D-18 on video, ResNet-18 on 40-band log-mel.

    The authors released video towers only, and their paper gives 40 bands and 100 frames for 2 s. The window of twice
    the hop and the scale, each band's own over the clip, are chosen here.

    Args:
        checkpoint: a released file (.pth), whose stream is "video" alone, or a state dict of this class;
            None draws weights.
        modalities: towers to build, of "audio" and "video"; None for those of the checkpoint, else both.
        width: channels of the first stages, 64 in the paper.
        image_size: height and width of the pictures.
        pooling: "mean" or "max" over frequency and over the picture.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        modalities: Sequence[str] | None = None,
        *,
        width: int = 64,
        image_size: int = 112,
        pooling: Pooling = "mean",
    ) -> None:
        found = read_towers(checkpoint)
        wanted = settle_modalities(modalities, found, checkpoint)
        bank = mel_bank(40, 1024, 16000, 0.0, 0.0)
        spectrogram = LogSpectrogram(fft_size(640), 320, 640, bank, offset=1e-7, mean=None)
        super().__init__(
            AudioTower(spectrogram, resnet18_audio(width, pooling)) if "audio" in wanted else None,
            VideoTower(r2plus1d_18(width, pooling), KINETICS_MEAN, KINETICS_STD) if "video" in wanted else None,
            sample_rate=16000,
            video_fps=30.0,
            image_size=image_size,
        )
        self.load_towers(found, ignore=r"fc\..*")


class CrissCross(TwoTower):
    """CrissCross (Sarkar and Etemad 2023): R(2+1)D-18 on video at 16 Hz, ResNet-18 on 80-band log-mel of 10 ms.

    The log-mel is that of its code: librosa's bands, an FFT of 1024 samples centred on the frames, the mean and
    standard deviation of the training data.

    Args:
        checkpoint: a released file, or the two of both towers, or a checkpoint of the pretraining (unzipped);
            None draws weights.
        modalities, width, image_size, pooling: see `XDC`.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        checkpoint: str | Sequence[str] | None = None,
        modalities: Sequence[str] | None = None,
        *,
        width: int = 64,
        image_size: int = 112,
        pooling: Pooling = "mean",
    ) -> None:
        found = read_towers(checkpoint)
        wanted = settle_modalities(modalities, found, checkpoint)
        bank = mel_bank(80, 1024, 16000, 0.0, 0.0, "slaney", "slaney")
        eps = torch.finfo(torch.float32).eps
        spectrogram = LogSpectrogram(1024, 160, None, bank, center=True, offset=eps, mean=-5.3688107, std=4.410007)
        super().__init__(
            AudioTower(spectrogram, resnet18_audio(width, pooling)) if "audio" in wanted else None,
            VideoTower(avid_r2plus1d_18(width, pooling), IMAGENET_MEAN, IMAGENET_STD) if "video" in wanted else None,
            sample_rate=16000,
            video_fps=16.0,
            image_size=image_size,
        )
        self.load_towers(found, stage_rules, method="CrissCross")


class AVID(TwoTower):
    """Audio-visual instance discrimination (Morgado et al. 2021): R(2+1)D-18 and a plain network of nine convolutions.

    Its code takes 24 kHz audio, an FFT of 1024 samples every 10 ms whose bins above the first are averaged in pairs,
    in decibels down to 100 below the maximum, scaled by each bin's mean and standard deviation over AudioSet. Those
    numbers are in a file of its repository.

    Args:
        checkpoint: a released file (AVID or AVID-CMA), or a state dict of this class; None draws weights.
        modalities, width, image_size: see `XDC`.
        statistics: the .npz file of the bins' "mean" and "std" (257 each); needed for the audio tower of a checkpoint.
            Without a checkpoint, None scales each bin by the clip's own.
        pooling: "max" as in the paper, or "mean".

    Raises:
        ConfigError: the statistics are missing.
        CheckpointError: the checkpoint or the statistics cannot be read or do not fit.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        modalities: Sequence[str] | None = None,
        *,
        statistics: str | None = None,
        width: int = 64,
        image_size: int = 224,
        pooling: Pooling = "max",
    ) -> None:
        found = read_towers(checkpoint)
        wanted = settle_modalities(modalities, found, checkpoint)
        audio = None
        if "audio" in wanted:
            if found and statistics is None:
                raise ConfigError(
                    "The audio tower of an AVID checkpoint needs statistics=FILE.npz, the mean and std of its "
                    "spectrograms (datasets/assets of its repository); modalities=[video] does without."
                )
            mean, std = _statistics(statistics)
            spectrogram = LogSpectrogram(1024, 240, None, _pairs(512), center=True, decibels=True, mean=mean, std=std)
            audio = AudioTower(spectrogram, conv2d_10(width, pooling))
        super().__init__(
            audio,
            VideoTower(avid_r2plus1d_18(width, pooling), IMAGENET_MEAN, IMAGENET_STD) if "video" in wanted else None,
            sample_rate=24000,
            video_fps=16.0,
            image_size=image_size,
        )
        if "audio" in found and not any(name.startswith("stem.") for name in found["audio"][1]):
            source, state = found["audio"]
            found = found | {"audio": (source, turned(state))}
        self.load_towers(found, stage_rules, method="AVID")


def _pairs(count: int) -> Tensor:
    """Bank (count + 1, count / 2 + 1) that keeps the first bin and averages the others in pairs."""
    bank = torch.zeros(count + 1, count // 2 + 1)
    bank[0, 0] = 1.0
    bins = torch.arange(count)
    bank[bins + 1, bins // 2 + 1] = 0.5
    return bank


def _statistics(path: str | None) -> tuple[Tensor | None, Tensor | float]:
    if path is None:
        return None, 1.0
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            mean, std = (torch.as_tensor(np.asarray(file[name], dtype=np.float32)) for name in ("mean", "std"))
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not an .npz file with the arrays mean and std: {error}.") from error
    if mean.shape != (257,) or std.shape != (257,):
        raise CheckpointError(f"{path}: mean and std must have 257 values, got {mean.shape} and {std.shape}.")
    # the small number is that of AVID's code
    return mean, std + 1e-5
