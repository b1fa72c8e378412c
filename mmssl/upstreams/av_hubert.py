"""AV-HuBERT: the voice and the mouth, fused frame by frame at 25 Hz, then one transformer.

Source: Shi et al. 2022, "Learning Audio-Visual Speech Representation by Masked Multimodal Cluster Prediction".

Clips are computed end to end without padding (`mmssl.nn.packed`): only the first convolution over the mouth and the
transformer look along time, and both stay within a clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmssl.errors import CheckpointError, ConfigError, InputError, did_you_mean
from mmssl.nn.av_frontend import MouthFrontEnd, StackedFilterbank, mouth_crops
from mmssl.nn.packed import Packed
from mmssl.nn.positional import ConvPositions
from mmssl.nn.transformer import TransformerEncoder
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.av_weights import AV_HUBERT_PRESETS, AvHubertConfig, print_licence, read_av_hubert
from mmssl.upstreams.base import Upstream

SAMPLE_RATE = 16000
VIDEO_FPS = 25.0
TOLERANCE = 2
"""Frames by which waveform and video of a clip may differ in length; the longer one is cut."""


class AvHubert(Upstream):
    """AV-HuBERT on audio, on video of the mouth, or on both; a modality that is not given is zero, as in its training.

    Streams:
        "fusion": the input of the first block and the output of each, as the speech transformers; in pre-norm models
            `encoder.finish` applies the norm after the last block. It needs either input.
        "audio": the stacked filterbank frames and their projection.
        "video": the mouth network's frames and their projection.

    Both inputs of a clip must last equally long; where one has a frame or two more, the fusion ends with the shorter.

    Args:
        preset: "base", "large" or "tiny"; a checkpoint overrides its sizes.
        checkpoint: a file of the authors, pretrained or fine-tuned (its decoder is left out); None draws weights.
            Their licence is printed.
        hidden_size, num_layers, num_heads, feed_forward_size: of the transformer, instead of the preset's. With a
            checkpoint, `num_layers` keeps the first blocks, and the others must be those of the checkpoint.
        image_size: height and width of the mouth pictures, of which the middle is cut; 96 in the paper.
        dropout, layer_drop: of the transformer in training; None as the checkpoint or preset says.

    Raises:
        ConfigError: an unknown preset, or sizes that do not go together.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        preset: str = "base",
        checkpoint: str | None = None,
        *,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        image_size: int | None = None,
        dropout: float | None = None,
        layer_drop: float | None = None,
    ) -> None:
        super().__init__()
        if preset not in AV_HUBERT_PRESETS:
            raise ConfigError(
                f"There is no AV-HuBERT preset {preset!r}.{did_you_mean(preset, AV_HUBERT_PRESETS)} "
                f"Presets: {', '.join(AV_HUBERT_PRESETS)}."
            )
        sizes = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "feed_forward_size": feed_forward_size,
        }
        training = {"dropout": dropout, "layer_drop": layer_drop}
        if checkpoint is None:
            config = _with_encoder(AV_HUBERT_PRESETS[preset], **sizes, **training)
            self._build(config, image_size)
            return
        stated, state = read_av_hubert(checkpoint)
        config = _with_encoder(_fitted(stated, sizes, checkpoint), **training)
        self._build(config, image_size)
        beyond = tuple(f"encoder.blocks.{i}." for i in range(config.encoder.num_layers, stated.encoder.num_layers))
        try:
            self.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(beyond)})
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint} does not fit the sizes that it states: {error}") from error
        print_licence("AV-HuBERT", checkpoint)

    def _build(self, config: AvHubertConfig, image_size: int | None) -> None:
        self.config = config
        encoder, size = config.encoder, config.encoder.hidden_size
        if image_size is None:
            # the paper cuts 88 out of 96
            image_size = config.crop_size + config.crop_size // 11
        if image_size < config.crop_size or size % encoder.position_groups:
            raise ConfigError(
                f"AV-HuBERT needs pictures of at least {config.crop_size} pixels and a hidden_size that is a multiple "
                f"of {encoder.position_groups}, got {image_size} and {size}."
            )
        self.filterbank = StackedFilterbank(normalize=config.normalize)
        if self.filterbank.output_size != config.audio_size:
            raise CheckpointError(
                f"The checkpoint takes audio frames of {config.audio_size} values; built here are stacks of "
                f"{self.filterbank.output_size}, as in all published models."
            )
        self.mouth = MouthFrontEnd(config.video_width, config.activation)
        self.audio_projection = nn.Linear(config.audio_size, size)
        self.video_projection = nn.Linear(self.mouth.output_size, size)
        self.fusion_norm = nn.LayerNorm(2 * size)
        self.fusion_projection = nn.Linear(2 * size, size)
        self.encoder = TransformerEncoder(
            ConvPositions(size, encoder.position_kernel, encoder.position_groups),
            hidden_size=size,
            num_layers=encoder.num_layers,
            num_heads=encoder.num_heads,
            feed_forward_size=encoder.feed_forward_size,
            layer_norm_first=encoder.layer_norm_first,
            dropout=encoder.dropout,
            attention_dropout=encoder.attention_dropout,
            activation_dropout=encoder.activation_dropout,
            layer_drop=encoder.layer_drop,
        )
        layers, hop = encoder.num_layers + 1, self.filterbank.hop_length
        self.spec = UpstreamSpec(
            inputs=("waveforms", "video"),
            streams={
                "fusion": StreamSpec((size,) * layers, (hop,) * layers),
                "audio": StreamSpec((config.audio_size, size), (hop, hop)),
                "video": StreamSpec((self.mouth.output_size, size), (1, 1)),
            },
            sample_rate=SAMPLE_RATE,
            video_fps=VIDEO_FPS,
            min_length=hop,
            image_size=(image_size, image_size),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "fusion", layer: int = -1) -> Tensor:
        """Frames (B,) for `lengths` (B,) samples (fusion, audio) or video frames (video)."""
        return lengths if stream == "video" else self.filterbank.output_lengths(lengths)

    def extract(self, inputs: Inputs) -> Representation:
        """The fusion of what is there, and the front ends' features of each input."""
        found: dict[str, Layers] = {}
        audio = video = None
        if inputs.waveforms is not None:
            frames = self.audio_frames(inputs.waveforms.unpad())
            audio = frames.replace(self.audio_projection(frames.data))
            found["audio"] = _layers([frames, audio])
        if inputs.video is not None:
            frames = self.mouth(self.mouth_frames(inputs.video.unpad()))
            video = frames.replace(self.video_projection(frames.data))
            found["video"] = _layers([frames, video])
        found["fusion"] = _layers(self.encoder.forward_packed(self.fuse(audio, video)))
        return found

    def audio_frames(self, waveforms: Sequence[Tensor]) -> Packed:
        """Stacked filterbank frames (N, 104) of clips (T_b,): what AV-HuBERT masks on the audio side."""
        return Packed.of([self.filterbank(waveform).to(self.dtype) for waveform in waveforms])

    def mouth_frames(self, videos: Sequence[Tensor]) -> list[Tensor]:
        """Scaled grey crops (T_b, 1, crop, crop) of clips (T_b, C, H, W): what it masks on the video side."""
        config = self.config
        return [mouth_crops(v, config.crop_size, config.image_mean, config.image_std).to(self.dtype) for v in videos]

    def fuse(self, audio: Packed | None, video: Packed | None) -> Packed:
        """Join projected frames of both modalities to the transformer's input.

        Args:
            audio, video: packed (N, D) of the same clips; None stands for zeros (modality dropout).

        Returns:
            Packed (N', D), each clip as long as its shorter modality.

        Raises:
            InputError: neither is given, or a clip's lengths differ by more than two frames.
        """
        if audio is not None and video is not None:
            audio, video = _trimmed(audio, video)
        given = audio if audio is not None else video
        if given is None:
            raise InputError("AV-HuBERT needs waveforms, video or both.")
        parts = [torch.zeros_like(given.data) if part is None else part.data for part in (audio, video)]
        return given.replace(self.fusion_projection(self.fusion_norm(torch.cat(parts, dim=-1))))


def _trimmed(audio: Packed, video: Packed) -> tuple[Packed, Packed]:
    """Cut each clip to its shorter modality."""
    if len(audio.lengths) != len(video.lengths):
        raise InputError(f"Got {len(audio.lengths)} waveforms and {len(video.lengths)} videos: give one per clip.")
    for clip, (a, v) in enumerate(zip(audio.lengths, video.lengths, strict=True)):
        if abs(a - v) > TOLERANCE:
            raise InputError(
                f"Clip {clip} has {a} frames of audio ({a / VIDEO_FPS:.2f} s) and {v} of video "
                f"({v / VIDEO_FPS:.2f} s); they may differ by {TOLERANCE}. "
                f"Cut both to the same stretch of time, with {VIDEO_FPS:g} pictures a second."
            )
    sizes = [min(pair) for pair in zip(audio.lengths, video.lengths, strict=True)]
    cut = [Packed.of([c[:n] for c, n in zip(part.split(), sizes, strict=True)]) for part in (audio, video)]
    return cut[0], cut[1]


def _layers(states: Sequence[Packed]) -> Layers:
    padded = [state.pad() for state in states]
    return Layers(tuple(p.data for p in padded), tuple(p.lengths for p in padded))


def _with_encoder(config: AvHubertConfig, **values: float | None) -> AvHubertConfig:
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **given))  # type: ignore[arg-type]


def _fitted(stated: AvHubertConfig, sizes: dict[str, int | None], source: str) -> AvHubertConfig:
    """The checkpoint's sizes, with fewer layers if asked for; any other wish must agree with them."""
    wanted = sizes["num_layers"]
    for name, value in sizes.items():
        found = getattr(stated.encoder, name)
        fewer = name == "num_layers" and value is not None and 0 < value <= found
        if value is not None and value != found and not fewer:
            raise CheckpointError(f"{source} has {name} = {found}, {value} was asked for.")
    return _with_encoder(stated, num_layers=wanted)
