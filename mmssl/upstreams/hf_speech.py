"""Speech models of transformers: what each family takes, how long its output is, and how padding is kept out of it.

Padding reaches a frame in four ways: the statistics of a norm over time, convolutions that read beyond the clip's end,
attention, and preprocessing over the batch. Every class below closes them for its families; where that takes more than
masks, clips of equal length run together, which is exact for any model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.lengths import conv_length, conv_stack_length, hop_length, receptive_field, valid_mask
from mmssl.nn.filterbank import mel_bank
from mmssl.nn.masked import MaskedGroupNorm, length_scope, scoped_lengths, zero_steps
from mmssl.types import Inputs, Layers, Padded, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.spectral import Fbank

Hidden = tuple[Tensor, ...]


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint says of its input.

    Attributes:
        sample_rate: in Hz.
        do_normalize: zero mean and unit variance per clip; None where the checkpoint does not say.
    """

    sample_rate: int = 16000
    do_normalize: bool | None = None


class SpeechFamily(ABC):
    """Turns waveforms into what a transformers model takes and its hidden states into `Layers`.

    A subclass sets `self.convs`, the (kernel, stride) stack from samples to frames, before it calls `declare`.

    Attributes:
        invariance: how padding is kept out of the features.
        model_class: name in transformers of what holds the weights.
        optional: parts of the names of weights that a checkpoint may lack, because they touch no hidden state.
    """

    invariance: ClassVar[str]
    model_class: ClassVar[str] = "AutoModel"
    optional: ClassVar[tuple[str, ...]] = ("masked_spec_embed",)
    convs: list[tuple[int, int]]
    spec: UpstreamSpec

    @abstractmethod
    def __init__(self, config: Any, preprocessing: Preprocessing, do_normalize: bool | None) -> None: ...

    def declare(self, sample_rate: int, num_layers: int, hidden_size: int, max_length: int | None = None) -> None:
        """Set `spec`: the first hidden state and one per block, all of one width and rate."""
        stream = StreamSpec((hidden_size,) * (num_layers + 1), (hop_length(self.convs),) * (num_layers + 1))
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={"audio": stream},
            sample_rate=sample_rate,
            min_length=receptive_field(self.convs),
            max_length=max_length,
        )

    def prepare(self, model: nn.Module) -> nn.Module:
        """Change what lets padding in; the weights and their names stay."""
        return model

    def output_lengths(self, lengths: Tensor, stream: str, layer: int) -> Tensor:
        """Frames for waveforms of `lengths` samples."""
        return conv_stack_length(lengths, self.convs)

    def run(self, model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Representation:
        """All hidden states of a checked batch."""
        assert inputs.waveforms is not None  # `Upstream.forward` has checked it
        waveforms = inputs.waveforms
        hidden = self.hidden_states(model, Padded(waveforms.data.float(), waveforms.lengths), dtype)
        lengths = self.output_lengths(waveforms.lengths, "audio", -1)
        longest = int(lengths.max())
        return {"audio": Layers(tuple(h[:, :longest] for h in hidden), (lengths,) * len(hidden))}

    @abstractmethod
    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> Hidden:
        """Hidden states (B, at least the longest output, D), arbitrary past each clip's length."""


class ConvTransformer(SpeechFamily):
    """wav2vec 2.0 and its kin: a convolutional front end on the waveform, then a transformer.

    The group norm of the first layer ("base" models) takes its statistics over the valid frames; frames past the end
    are zero before every convolution that reads beyond it (positional, or depthwise in a conformer); attention is
    masked.
    """

    invariance = "group norm over valid frames, zeros before each padded convolution, masked attention"

    def __init__(self, config: Any, preprocessing: Preprocessing, do_normalize: bool | None) -> None:
        self.front_end = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        squeeze = getattr(config, "squeeze_factor", 1)
        # SEW pools frames after the front end and lists its hidden states at the lower rate
        self.convs = self.front_end + ([(squeeze, squeeze)] if squeeze > 1 else [])
        default = getattr(config, "feat_extract_norm", "layer") == "layer"
        choices = (do_normalize, preprocessing.do_normalize, default)
        self.do_normalize = next(choice for choice in choices if choice is not None)
        self.declare(preprocessing.sample_rate, config.num_hidden_layers, config.hidden_size)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Mask the front end's group norm and zero what convolutions over frames read past the end."""
        first: Any = model.get_submodule("feature_extractor").get_submodule("conv_layers.0")
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = MaskedGroupNorm.like(first.layer_norm, scope="first_conv")
        for module in model.get_submodule("encoder").modules():
            if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
                module.register_forward_pre_hook(_zero_padded_frames)
        return model

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> Hidden:
        """Run the batch with a mask; without one where all clips have the same length."""
        data = normalize_waveforms(waveforms) if self.do_normalize else waveforms.data
        lengths, samples = waveforms.lengths, data.shape[1]
        mask = None if int(lengths.min()) == samples else valid_mask(lengths, samples).long()
        scope = {
            "first_conv": conv_stack_length(lengths, self.front_end[:1]),
            "frames": conv_stack_length(lengths, self.front_end),
        }
        with length_scope(**scope):
            return model(data.to(dtype), attention_mask=mask, output_hidden_states=True).hidden_states


class SpeechT5(ConvTransformer):
    """SpeechT5's encoder with its prenet for speech; of the checkpoints those that take speech (asr, vc) have it."""

    model_class = "SpeechT5ForSpeechToText"
    optional = ("masked_spec_embed", "decoder")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Keep the encoder alone; then as for wav2vec 2.0, under SpeechT5's names."""
        encoder: Any = model.get_submodule("speecht5.encoder")
        first = encoder.prenet.feature_encoder.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = MaskedGroupNorm.like(first.layer_norm, scope="first_conv")
        encoder.prenet.pos_conv_embed.conv.register_forward_pre_hook(_zero_padded_frames)
        return encoder


class EqualLengths(ConvTransformer):
    """SEW and SEW-D: a pooled frame may straddle a clip's end, so that clips of equal length run together, unmasked."""

    invariance = "clips of equal length run together"

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> Hidden:
        """One run per distinct length."""
        run = super().hidden_states
        return by_length(waveforms, lambda clips: run(model, clips, dtype))


class FbankConformer(SpeechFamily):
    """w2v-BERT 2.0: pairs of Kaldi log-mel frames, each bin scaled per clip, then a causal conformer.

    The features are those of SeamlessM4TFeatureExtractor: 80 bins, zero mean and unit variance (n - 1, + 1e-7) over the
    clip's frames, two frames stacked; an odd last frame is dropped, as the extractor masks it out.
    """

    invariance = "filterbank scaled over valid frames, causal convolutions, masked attention"

    def __init__(self, config: Any, preprocessing: Preprocessing, do_normalize: bool | None) -> None:
        bins, rest = divmod(config.feature_projection_input_dim, 2)
        if rest:
            raise ConfigError(
                "feature_projection_input_dim must be even, as two frames are stacked, "
                f"got {config.feature_projection_input_dim}."
            )
        self.do_normalize = True if do_normalize is None else do_normalize
        self.fbank = Fbank(num_mel_bins=bins, sample_rate=preprocessing.sample_rate)
        self.convs = [(self.fbank.window, self.fbank.hop), (2, 2)]
        self.declare(preprocessing.sample_rate, config.num_hidden_layers, config.hidden_size)

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> Hidden:
        """Filterbank, per-clip scaling, stacking, then the model with a mask."""
        device = waveforms.data.device
        frames = self.fbank.to(device)(waveforms.data, waveforms.lengths)["audio"][0]
        if self.do_normalize:
            frames = Padded(_normalize_rows(frames, correction=1, dim=0), frames.lengths)
        lengths = frames.lengths // 2
        longest = int(lengths.max())
        stacked = frames.data[:, : 2 * longest].reshape(len(lengths), longest, -1)
        mask = None if int(lengths.min()) == longest else valid_mask(lengths, longest).long()
        return model(stacked.to(dtype), attention_mask=mask, output_hidden_states=True).hidden_states


class Whisper(SpeechFamily):
    """Whisper's encoder: every clip is padded with silence to one window (30 s), and its own frames are returned.

    A frame belongs to the clip if its centre does: ceil(samples / 320) frames. The log-mel spectrogram is that of
    WhisperFeatureExtractor (centred 400-sample windows, dynamic range of 8 below the clip's peak). The model attends to
    the silence, as it was trained to, so that one clip costs what 30 s cost. Longer clips are refused: cut them.
    """

    invariance = "every clip is padded to the model's window of 30 s and trimmed to its own frames"
    HOP, FFT = 160, 400

    def __init__(self, config: Any, preprocessing: Preprocessing, do_normalize: bool | None) -> None:
        if do_normalize:
            raise ConfigError("Whisper takes waveforms as they are: leave do_normalize out.")
        rate = preprocessing.sample_rate
        self.window = config.max_source_positions * 2 * self.HOP
        self.bank = mel_bank(config.num_mel_bins, self.FFT, rate, 0.0, min(8000.0, rate / 2), "slaney", "slaney")
        self.convs = [(1, 2 * self.HOP)]
        self.declare(rate, config.encoder_layers, config.d_model, max_length=self.window)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Keep the encoder alone."""
        return getattr(model, "encoder", model)

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> Hidden:
        """Encode whole windows; `run` trims them."""
        features = self.log_mel(waveforms.data)
        return model(features.to(dtype), output_hidden_states=True).hidden_states

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """(B, T) in [-1, 1], zero past each clip -> (B, mel bins, frames of the window)."""
        with torch.autocast(waveforms.device.type, enabled=False):
            padded = nn.functional.pad(waveforms, (0, self.window - waveforms.shape[1]))
            window = torch.hann_window(self.FFT, device=padded.device)
            spectrum = torch.stft(padded, self.FFT, self.HOP, window=window, return_complex=True)[..., :-1]
            mel = self.bank.to(padded.device).T @ spectrum.abs().pow(2)
            log = mel.clamp(min=1e-10).log10()
            return (torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class Moonshine(SpeechFamily):
    """Moonshine's encoder: three convolutions on the waveform, a group norm over time after one, a transformer."""

    invariance = "group norm over valid frames, masked attention"

    def __init__(self, config: Any, preprocessing: Preprocessing, do_normalize: bool | None) -> None:
        self.convs = [(127, 64), (7, 3), (3, 2)]
        self.do_normalize = bool(preprocessing.do_normalize) if do_normalize is None else do_normalize
        self.declare(preprocessing.sample_rate, config.encoder_num_hidden_layers, config.hidden_size)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Keep the encoder alone and mask its group norm."""
        encoder: Any = getattr(model, "encoder", model)
        encoder.groupnorm = MaskedGroupNorm.like(encoder.groupnorm, scope="first_conv")
        return encoder

    def hidden_states(self, model: nn.Module, waveforms: Padded, dtype: torch.dtype) -> Hidden:
        """Run the batch with a mask that is exact after the model has thinned it out."""
        data = normalize_waveforms(waveforms) if self.do_normalize else waveforms.data
        frames = conv_stack_length(waveforms.lengths, self.convs)
        mask = None
        if int(frames.min()) < int(frames.max()):
            # the model keeps every 384th value of the mask, so that this many samples leave just the valid frames
            mask = valid_mask((frames - 1) * hop_length(self.convs) + 1, data.shape[1]).long()
        with length_scope(first_conv=conv_length(waveforms.lengths, *self.convs[0])):
            return model(data.to(dtype), attention_mask=mask, output_hidden_states=True).hidden_states


def _zero_padded_frames(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook of a convolution over frames (B, C, T)."""
    return (zero_steps(args[0], scoped_lengths("frames")), *args[1:])


def normalize_waveforms(waveforms: Padded) -> Tensor:
    """Zero mean and unit variance of each clip over its valid samples, as Wav2Vec2FeatureExtractor does."""
    return _normalize_rows(waveforms, correction=0)


def _normalize_rows(sequences: Padded, correction: int, dim: int | None = None) -> Tensor:
    """Each sequence on its own stretch, so that its values are bit-equal in any batch."""
    rows = []
    for row, size in zip(sequences.data, sequences.lengths.tolist(), strict=True):
        valid = row[:size]
        variance, mean = torch.var_mean(valid, dim=dim, correction=correction, keepdim=dim is not None)
        rows.append((valid - mean) / (variance + 1e-7).sqrt())
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def by_length(waveforms: Padded, run: Callable[[Padded], Hidden]) -> Hidden:
    """Run clips of equal length together, without padding, and lay the results out as one zero-padded batch.

    Args:
        waveforms: the batch.
        run: maps a batch without padding to its hidden states.
    """
    clips: dict[int, Hidden] = {}
    for length in waveforms.lengths.unique().tolist():
        index = (waveforms.lengths == length).nonzero()[:, 0]
        hidden = run(Padded(waveforms.data[index, :length], waveforms.lengths[index]))
        for position, clip in enumerate(index.tolist()):
            clips[clip] = tuple(h[position] for h in hidden)
    ordered = [clips[clip] for clip in range(len(waveforms.lengths))]
    return tuple(nn.utils.rnn.pad_sequence(list(layer), batch_first=True) for layer in zip(*ordered, strict=True))


FAMILIES: Mapping[str, type[SpeechFamily]] = {
    "data2vec-audio": ConvTransformer,
    "hubert": ConvTransformer,
    "moonshine": Moonshine,
    "sew": EqualLengths,
    "sew-d": EqualLengths,
    "speecht5": SpeechT5,
    "unispeech": ConvTransformer,
    "unispeech-sat": ConvTransformer,
    "wav2vec2": ConvTransformer,
    "wav2vec2-bert": FbankConformer,
    "wav2vec2-conformer": ConvTransformer,
    "wavlm": ConvTransformer,
    "whisper": Whisper,
}
"""transformers' model type -> the family's class, whose `invariance` says how padding is kept out."""
