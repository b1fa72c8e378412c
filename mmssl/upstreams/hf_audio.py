"""Sound models of transformers: the Audio Spectrogram Transformer, CLAP's audio encoder and that of PE-AV."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import conv_length
from mmssl.nn.filterbank import mel_bank
from mmssl.nn.spectrogram import LogSpectrogram
from mmssl.types import Inputs, Layers, Padded, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.checkpoints import read_json
from mmssl.upstreams.hf import DTYPES, build_model, check_arguments, find_folder, make_config, read_config
from mmssl.upstreams.hf_speech import by_length
from mmssl.upstreams.mel_patches import AUDIOSET_MEAN, AUDIOSET_STD
from mmssl.upstreams.spectral import KALDI_SCALE, Fbank

WINDOW = "every clip is padded to the model's window and trimmed to its own frames"


class SoundFamily(ABC):
    """What a model type takes, how long its output is, and how its hidden states become sequences over time.

    Attributes:
        model_class: name in transformers of what holds the weights.
        invariance: how padding is kept out of the features.
        spec: what the upstream declares.
    """

    model_class: ClassVar[str] = "AutoModel"
    invariance: ClassVar[str] = WINDOW
    spec: UpstreamSpec

    @abstractmethod
    def __init__(self, config: Any, preprocessing: Mapping[str, Any]) -> None: ...

    def prepare(self, model: nn.Module) -> nn.Module:
        """Change what stands in the way of the contract; the weights and their names stay."""
        return model

    @abstractmethod
    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """Tokens (B,) of a layer for clips of `lengths` (B,) samples."""

    @abstractmethod
    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Hidden states (B, tokens of the window or at least of the longest clip, D_k), in order of time."""


class Ast(SoundFamily):
    """Audio Spectrogram Transformer: overlapping patches of a filterbank of 1024 frames, with trained positions.

    The filterbank is that of ASTFeatureExtractor (AudioSet's statistics; zeros, scaled as the rest, after the clip).
    Tokens are time-major: the patches of a time step from low to high frequency, then the next step. A step belongs to
    the clip if all of its frames do. Class and distillation tokens have no time and are left out.
    """

    def __init__(self, config: Any, preprocessing: Mapping[str, Any]) -> None:
        rate = int(preprocessing.get("sampling_rate", 16000))
        normalize = preprocessing.get("do_normalize", True)
        self.mean = float(preprocessing.get("mean", AUDIOSET_MEAN)) if normalize else 0.0
        self.scale = 2 * float(preprocessing.get("std", AUDIOSET_STD)) if normalize else 1.0
        self.fbank = Fbank(config.num_mel_bins, rate, window_type="hanning")
        self.frames, self.patch, self.stride = config.max_length, config.patch_size, config.time_stride
        self.rows = conv_length(config.num_mel_bins, config.patch_size, config.frequency_stride)
        layers, hop = config.num_hidden_layers + 1, self.fbank.hop
        stream = StreamSpec((config.hidden_size,) * layers, (hop * self.stride,) * layers, self.rows)
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={"audio": stream},
            sample_rate=rate,
            min_length=self.fbank.window + (self.patch - 1) * hop,
            max_length=self.fbank.window + self.frames * hop - 1,
        )

    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """All patches of every whole time step."""
        return conv_length(self.fbank.output_lengths(lengths), self.patch, self.stride) * self.rows

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Run whole windows."""
        fbank = self.fbank.to(waveforms.data.device)
        # a power of two: the filterbank multiplies by it again, without rounding
        frames = fbank(waveforms.data / KALDI_SCALE, waveforms.lengths)["audio"].hidden_states[0]
        frames = F.pad(frames, (0, 0, 0, self.frames - frames.shape[1]))
        hidden = model(((frames - self.mean) / self.scale).to(dtype), output_hidden_states=True).hidden_states
        return tuple(h[:, 2:].unflatten(1, (self.rows, -1)).transpose(1, 2).flatten(1, 2) for h in hidden)


class Clap(SoundFamily):
    """CLAP's audio encoder, HTSAT: a Swin transformer on a log-mel spectrogram of 10 s that is folded to a square.

    Each hidden state is unfolded to its time axis and averaged over frequency: 256 steps per window after the patches,
    then half as many with each merging of patches. A clip is repeated as often as it fits and zeros follow, as in
    ClapFeatureExtractor with "repeatpad"; the steps of its first copy are returned. Longer clips are refused. Models
    with feature fusion get the same spectrogram four times, marked as not longer than the window; transformers marks
    one clip of such a batch as longer, at random.
    """

    model_class = "ClapAudioModelWithProjection"

    def __init__(self, config: Any, preprocessing: Mapping[str, Any]) -> None:
        rate = int(preprocessing.get("sampling_rate", 48000))
        hop, n_fft = int(preprocessing.get("hop_length", 480)), int(preprocessing.get("fft_window_size", 1024))
        edges = (float(preprocessing.get("frequency_min", 0)), float(preprocessing.get("frequency_max", 14000)))
        # with feature fusion its authors computed spectrograms by torchaudio, without by librosa
        fusion = config.enable_fusion
        scale, norm = ("htk", None) if fusion else ("slaney", "slaney")
        bank = mel_bank(config.num_mel_bins, n_fft, rate, edges[0], min(edges[1], rate / 2), scale, norm)
        self.spectrogram = LogSpectrogram(
            n_fft, hop, None, bank, center=True, decibels=True, dynamic_range=float("inf")
        )
        self.window, self.fusion = int(preprocessing.get("max_length_s", 10)) * rate, fusion
        self.fold = config.spec_size // config.num_mel_bins
        stages = len(config.depths)
        steps = config.spec_size * self.fold // config.patch_stride[1]
        halvings = [0, *range(1, stages), stages - 1]
        too_long = self.window // hop + 1 > config.spec_size * self.fold
        if too_long or self.window % steps or steps % 2 ** (stages - 1):
            raise ConfigError(
                f"A window of {self.window} samples, {self.window // hop + 1} frames, does not go into a square of "
                f"{config.spec_size} that is folded {self.fold} times: max_length_s and spec_size must fit each other."
            )
        self.hops = [self.window // steps * 2**n for n in halvings]
        widths = tuple(config.patch_embeds_hidden_size * 2**n for n in halvings)
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={"audio": StreamSpec(widths, tuple(self.hops))},
            sample_rate=rate,
            min_length=n_fft,
            max_length=self.window,
        )

    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """Steps that the clip reaches into."""
        return (lengths + self.hops[layer] - 1) // self.hops[layer]

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Run whole windows, clips repeated."""
        clips = []
        for clip in waveforms.unpad():
            repeated = clip.repeat(self.window // len(clip))
            clips.append(F.pad(repeated, (0, self.window - len(repeated))))
        mel = self.spectrogram(torch.stack(clips)).transpose(1, 2)[:, None].to(dtype)
        if self.fusion:
            mel = mel.expand(-1, 4, -1, -1)
        longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        hidden = model(mel, is_longer=longer, output_hidden_states=True).hidden_states
        # rows of a map: a stretch of time after the other, each from low to high frequency
        return tuple(h.unflatten(2, (self.fold, -1)).mean(3).flatten(2).transpose(1, 2) for h in hidden)


class PeAudio(SoundFamily):
    """The sound encoder of PE-AV: the convolutions of a codec to frames of 40 ms, then a transformer.

    As in PeAudioFeatureExtractor, a clip is reflected at its end to whole frames. The class token is left out. Norms
    and convolutions over frames would read padding, so that clips of equal length run together. The last hidden state
    comes after the final norm and projection, the others before it.
    """

    invariance = "clips of equal length run together"

    def __init__(self, config: Any, preprocessing: Mapping[str, Any]) -> None:
        self.hop = config.dac_config.hop_length
        layers = config.num_hidden_layers + 1
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={"audio": StreamSpec((config.hidden_size,) * layers, (self.hop,) * layers)},
            sample_rate=int(preprocessing.get("sampling_rate", 48000)),
            min_length=self.hop,
        )

    def prepare(self, model: nn.Module) -> nn.Module:
        """Keep the sound encoder alone, and let gradients through its codec, which transformers runs without."""
        encoder: Any = getattr(model, "audio_encoder", model)
        encoder.embedder = CodecFrames(encoder.embedder)
        return encoder

    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """Frames that the clip reaches into."""
        return (lengths + self.hop - 1) // self.hop

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Run clips of one length at a time."""

        def run(clips: Padded) -> tuple[Tensor, ...]:
            missing = -clips.data.shape[1] % self.hop
            whole = F.pad(clips.data[:, None], (0, missing), mode="reflect") if missing else clips.data[:, None]
            hidden = model(whole.to(dtype), output_hidden_states=True).hidden_states
            # the class token comes first, and the last of the list comes without it
            return tuple(h[:, -(whole.shape[2] // self.hop) :] for h in hidden)

        return by_length(waveforms, run)


class CodecFrames(nn.Module):
    """The parts of transformers' PeAudioEncoderEmbedder under their names, with gradients."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.dac_encoder, self.bottleneck, self.data_proj = (
            embedder.dac_encoder,
            embedder.bottleneck,
            embedder.data_proj,
        )

    def forward(self, input_values: Tensor, padding_mask: None = None) -> tuple[Tensor, None]:
        """(B, 1, T) of whole frames without padding -> frames (B, T', D)."""
        return self.data_proj(self.bottleneck(self.dac_encoder(input_values)).transpose(1, 2)), None


FAMILIES: Mapping[str, type[SoundFamily]] = {
    "audio-spectrogram-transformer": Ast,
    "clap_audio_model": Clap,
    "pe_audio_encoder": PeAudio,
}
"""transformers' model type -> its class."""


# models of text and sound whose sound encoder is taken
_WITH_TEXT = ("clap", "pe_audio")


class HFAudio(Upstream):
    """A sound model of transformers (AST and CLAP with their fixed windows, PE-AV's encoder), preprocessing included.

    The hidden states are those that transformers lists under `output_hidden_states=True`, in order of time; `Ast`,
    `Clap` and `PeAudio` say how. From a CLAP or PE-AV of text and sound the audio encoder is taken.

    Args:
        path: folder in transformers format (config.json and model.safetensors or pytorch_model.bin), or a hub name.
        config: instead of `path`, the configuration of a model with random weights: `model_type` and any of its fields.
        attn_implementation: "sdpa" or "eager"; None is "sdpa" where the family has it, else "eager".
        dtype: type of the loaded weights and of the computation: "float32", "float16" or "bfloat16".

    Attributes:
        model: the transformers module.

    Raises:
        ConfigError: an unknown model type or wrong arguments.
        CheckpointError: the folder lacks what is needed.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        check_arguments(path, config, attn_implementation, dtype)
        folder, preprocessing = None, {}
        if path is not None:
            folder = find_folder(path)
            hf_config = read_config(folder, (*FAMILIES, *_WITH_TEXT))
            file = folder / "preprocessor_config.json"
            preprocessing = read_json(file) if file.is_file() else {}
        else:
            hf_config = make_config(config or {}, FAMILIES)
        # CLAP's encoder is loaded alone; that of PE-AV has its place in the whole model
        whole = hf_config
        if hf_config.model_type in _WITH_TEXT:
            hf_config = hf_config.audio_config
        if whole.model_type == "clap":
            whole = hf_config
        self.family = FAMILIES[hf_config.model_type](hf_config, preprocessing)
        model = build_model(
            whole,
            folder,
            attn_implementation,
            DTYPES[dtype],
            ("audio_projection", "classifier"),
            self.family.model_class,
        )
        self.model = self.family.prepare(model)
        self.invariance = self.family.invariance
        self.spec = self.family.spec

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Tokens (B,) of a layer for clips of `lengths` (B,) samples."""
        return self.family.output_lengths(lengths, layer)

    def extract(self, inputs: Inputs) -> Representation:
        """All hidden states, in the type of the parameters."""
        assert inputs.waveforms is not None  # `forward` has checked it
        waveforms = Padded(inputs.waveforms.data.float(), inputs.waveforms.lengths)
        hidden = self.family.hidden_states(self.model, waveforms, self.dtype)
        lengths = tuple(self.output_lengths(waveforms.lengths, "audio", k) for k in range(len(hidden)))
        return {"audio": Layers(tuple(h[:, : int(n.max())] for h, n in zip(hidden, lengths, strict=True)), lengths)}
