"""Audio-visual models of transformers: a local folder, a hub name, or random weights from a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import CheckpointError
from mmssl.lengths import pad
from mmssl.nn.patch import standardize_pictures
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.av_tokens import check_pair
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.checkpoints import read_json, read_transformers_folder
from mmssl.upstreams.hf import DTYPES, build_model, check_arguments, find_folder, make_config, read_config
from mmssl.upstreams.hf_audio import CodecFrames

FAMILIES = ("pe_audio_video_encoder",)
# the model of text, sound and video whose audio-visual encoder is taken
_WHOLE = "pe_audio_video"
# of PeAudioFeatureExtractor; the configuration of the codec inside says another rate, which nothing reads
SAMPLE_RATE = 48000
_PREPROCESSING = ("video_preprocessor_config.json", "preprocessor_config.json")


class HFAudioVideo(Upstream):
    """The audio-visual encoder of PE-AV: a sound encoder, a video encoder, and a transformer over both.

    Streams "audio" and "video" are the hidden states of the two encoders, given for the inputs that are there;
    "fusion", for which both are needed, those of the transformer that reads them, at the sound's frame rate (each frame
    with the nearest picture's features). The class tokens are left out. The last hidden state of each comes after its
    final norm and projection, the others before it. As in PeAudioFeatureExtractor, a clip is reflected at its end to
    whole frames. Norms over frames would read padding, so that clips run one by one.

    Args:
        path: folder in transformers format (config.json and model.safetensors or pytorch_model.bin), or a hub name.
        config: instead of `path`, the configuration of a model with random weights: `model_type` and any of its fields.
        attn_implementation: "sdpa" or "eager"; None is "sdpa".
        image_mean, image_std: of the video's channels; None takes those of the folder, or 0.5 with random weights.
        video_fps: rate in Hz at which video is given. The model reads any.
        dtype: type of the loaded weights and of the computation: "float32", "float16" or "bfloat16".

    Attributes:
        model: the transformers module.

    Raises:
        ConfigError: an unknown model type or wrong arguments, or timm, which holds the picture network, is missing.
        CheckpointError: the folder lacks what is needed.
    """

    invariance = "clip by clip"

    def __init__(
        self,
        path: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        video_fps: float = 25.0,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        check_arguments(path, config, attn_implementation, dtype)
        folder, stated = None, {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
        if path is not None:
            folder = find_folder(path)
            hf_config = read_config(folder, (*FAMILIES, _WHOLE))
            stated = next((read_json(folder / name) for name in _PREPROCESSING if (folder / name).is_file()), {})
        else:
            hf_config = make_config(config or {}, FAMILIES)
        self.image_mean = _colours("image_mean", image_mean, stated, path)
        self.image_std = _colours("image_std", image_std, stated, path)
        if hf_config.model_type == _WHOLE and folder is not None:
            self.model: Any = build_model(hf_config.audio_video_config, None, attn_implementation, DTYPES[dtype])
            _load_from_whole(self.model, folder)
        else:
            self.model = build_model(hf_config, folder, attn_implementation, DTYPES[dtype])
        embedder = self.model.embedder
        embedder.audio_encoder.embedder = CodecFrames(embedder.audio_encoder.embedder)
        self.model.embedder = _BothEncoders(embedder)
        self._declare(self.model.config, video_fps)

    def _declare(self, config: Any, video_fps: float) -> None:
        self.hop = int(config.audio_config.dac_config.hop_length)
        pictures = self.model.embedder.video_encoder.embedder.vision_model.timm_model
        height, width = pictures.patch_embed.img_size

        def stream(part: Any, hop: int) -> StreamSpec:
            layers = part.num_hidden_layers + 1
            return StreamSpec((part.hidden_size,) * layers, (hop,) * layers)

        self.spec = UpstreamSpec(
            inputs=("waveforms", "video"),
            streams={
                "audio": stream(config.audio_config, self.hop),
                "video": stream(config.video_config, 1),
                "fusion": stream(config, self.hop),
            },
            sample_rate=SAMPLE_RATE,
            video_fps=video_fps,
            min_length=self.hop,
            image_size=(height, width),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "fusion", layer: int = -1) -> Tensor:
        """Frames (B,) that clips of `lengths` (B,) samples (audio, fusion) or video frames (video) reach into."""
        return lengths if stream == "video" else (lengths + self.hop - 1) // self.hop

    def extract(self, inputs: Inputs) -> Representation:
        """All hidden states of the streams whose inputs are there, and of the fusion where both are."""
        check_pair(inputs)
        sounds = [] if inputs.waveforms is None else [self._whole_frames(clip) for clip in inputs.waveforms.unpad()]
        videos = [] if inputs.video is None else [self._scaled(clip) for clip in inputs.video.unpad()]
        if not videos:
            encoder = self.model.embedder.audio_encoder
            return {"audio": _batch([_states(encoder(sound, output_hidden_states=True)) for sound in sounds])}
        if not sounds:
            encoder = self.model.embedder.video_encoder
            return {"video": _batch([_states(encoder(video, output_hidden_states=True)) for video in videos])}
        found: dict[str, list[list[Tensor]]] = {"audio": [], "video": [], "fusion": []}
        for sound, video in zip(sounds, videos, strict=True):
            output = self.model(input_values=sound, pixel_values_videos=video, output_hidden_states=True)
            found["audio"].append(_states(output.audio_model_output))
            found["video"].append(_states(output.video_model_output))
            found["fusion"].append(_states(output))
        return {name: _batch(clips) for name, clips in found.items()}

    def _whole_frames(self, clip: Tensor) -> Tensor:
        """(1, 1, T) of whole frames."""
        sound = clip[None, None].float()
        missing = -len(clip) % self.hop
        return (F.pad(sound, (0, missing), mode="reflect") if missing else sound).to(self.dtype)

    def _scaled(self, clip: Tensor) -> Tensor:
        return standardize_pictures(clip, self.image_mean, self.image_std, self.dtype)[None]


class _BothEncoders(nn.Module):
    """The parts of transformers' PeAudioVideoEncoderEmbedder under their names, keeping the encoders' layers."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.audio_encoder, self.video_encoder = embedder.audio_encoder, embedder.video_encoder
        self.video_proj, self.video_norm = embedder.video_proj, embedder.video_norm
        self.concat_modality_proj, self.data_proj = embedder.concat_modality_proj, embedder.data_proj

    def forward(
        self, input_values: Tensor, pixel_values_videos: Tensor, padding_mask: None, padding_mask_videos: None
    ) -> tuple[Tensor, None, Any, Any]:
        """One clip: (1, 1, T) and (1, F, C, H, W) -> frames (1, T', D), no mask, and the outputs of the encoders."""
        audio = self.audio_encoder(input_values, output_hidden_states=True)
        video = self.video_encoder(pixel_values_videos, output_hidden_states=True)
        heard = audio.last_hidden_state
        seen = self.video_proj(video.last_hidden_state.transpose(1, 2))
        if seen.shape[2] != heard.shape[1]:
            seen = F.interpolate(seen, size=heard.shape[1], mode="nearest")
        joined = torch.cat([heard, self.video_norm(seen.transpose(1, 2))], dim=-1)
        return self.data_proj(self.concat_modality_proj(joined)), None, audio, video


def _load_from_whole(encoder: nn.Module, folder: Path) -> None:
    """Take the encoder's weights out of a model of text, sound and video, where they are stored once for all parts."""
    parts = {
        "audio_video_encoder.": "",
        "audio_model.audio_encoder.": "embedder.audio_encoder.",
        "video_model.video_encoder.": "embedder.video_encoder.",
    }
    _, _, state = read_transformers_folder(folder)
    found = {
        own + name.removeprefix(prefix): tensor
        for prefix, own in parts.items()
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    missing = sorted(set(encoder.state_dict()) - set(found))
    if missing:
        raise CheckpointError(
            f"The weights in {str(folder)!r} lack {len(missing)} tensors of the audio-visual encoder, for example "
            f"{', '.join(missing[:5])}: they would be random. Use the complete checkpoint of this model."
        )
    try:
        encoder.load_state_dict(found)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {str(folder)!r} do not fit its config.json: {error}") from error


def _states(output: Any) -> list[Tensor]:
    """Hidden states (T', D) of one clip; the class token comes first, and the last of the list comes without it."""
    count = output.last_hidden_state.shape[1]
    return [h[0, -count:] for h in output.hidden_states]


def _batch(clips: Sequence[Sequence[Tensor]]) -> Layers:
    padded = [pad(list(states)) for states in zip(*clips, strict=True)]
    return Layers(tuple(data for data, _ in padded), tuple(lengths for _, lengths in padded))


def _colours(
    name: str, given: Sequence[float] | None, stated: Mapping[str, Any], path: str | None
) -> tuple[float, ...]:
    if given is not None:
        return tuple(given)
    if name not in stated:
        raise CheckpointError(
            f"{path!r} does not say how colours are scaled: none of {' or '.join(_PREPROCESSING)} gives {name}. "
            "Put that file of the model there, or give image_mean and image_std."
        )
    return tuple(stated[name])
