"""wav2vec 2.0, HuBERT, WavLM, data2vec-audio, UniSpeech-SAT and DistilHuBERT: one implementation, exact in any batch.

A waveform goes through convolutions to frames of 20 ms, a projection, convolutional positions and a transformer. The
models differ in sizes, in where their norms stand, and in how they know positions; `SpeechConfig` lists all of it.

Clips are computed end to end without padding (`mmssl.nn.packed`), so that a clip's features do not depend on its batch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.nn.conv_frontend import ConvFrontEnd
from mmssl.nn.mel_frontend import MelFrontEnd
from mmssl.nn.packed import Packed
from mmssl.nn.positional import ConvPositions, ConvStackPositions
from mmssl.nn.transformer import TransformerEncoder
from mmssl.types import Inputs, Layers, Padded, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.checkpoints import write_file
from mmssl.upstreams.distillation_heads import NUM_HEADS, DistillationHeads, heads_of_s3prl
from mmssl.upstreams.speech_config import PRESETS, SpeechConfig, preset_config, to_transformers
from mmssl.upstreams.speech_weights import from_canonical, read_speech_checkpoint

_LOG = logging.getLogger(__name__)
_SAMPLE_RATE = 16000


class SpeechTransformer(Upstream):
    """A speech transformer of any of the families.

    The layers are those of transformers' `output_hidden_states`: the input of the first block, then the output of each
    block. In models with pre-norm blocks (large, lv60) the norm after the last block belongs to none of them;
    `encoder.finish` applies it.

    Args:
        preset: sizes by name, such as "hubert_base" (`mmssl.upstreams.speech_config.PRESETS`); None for the family's
            base model. With a checkpoint, sizes come from there, and the preset only fills in what it does not state.
        checkpoint: a transformers folder, or a file of fairseq, WavLM, S3PRL or torchaudio; None draws weights.
        hidden_size, num_layers, num_heads, feed_forward_size: of the transformer, instead of the preset's. With a
            checkpoint, `num_layers` keeps the first blocks only, and the others must be those of the checkpoint.
        conv_channels: channels of every convolution of the front end, instead of the preset's.
        mel_bins: filters of a front end of log-mel frames of 20 ms in the place of the convolutions and the norm after
            them (MelHuBERT, Lin et al. 2023), far cheaper to train; 0 for convolutions, None as the preset says.
        position_kernel: taps of the convolution that gives positions, instead of the preset's.
        normalize: bring each clip to zero mean and unit variance first; None as the checkpoint or preset says.
        dropout: in training, of hidden states; None as the checkpoint or preset says.
        layer_drop: in training, the probability with which a block is passed over; the number of layers stays.
        prediction_heads: for DistilHuBERT: after the layers, append what its heads predict of the teacher's layers
            (4, 8 and 12 in the published model). A checkpoint must hold them, as S3PRL's file does.

    Raises:
        ConfigError: an unknown preset, or sizes that do not go together.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    default_preset = "wav2vec2_base"

    def __init__(
        self,
        preset: str | None = None,
        checkpoint: str | None = None,
        *,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        conv_channels: int | None = None,
        mel_bins: int | None = None,
        position_kernel: int | None = None,
        normalize: bool | None = None,
        dropout: float | None = None,
        layer_drop: float | None = None,
        prediction_heads: bool = False,
    ) -> None:
        super().__init__()
        config = preset_config(preset or self.default_preset)
        if prediction_heads and config.family != "distilhubert":
            raise ConfigError(f"prediction_heads are DistilHuBERT's: a {config.family} model has none.")
        if type(self) is not SpeechTransformer:
            self._check_family(config)
        given = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "feed_forward_size": feed_forward_size,
            "conv_channels": None if conv_channels is None else (conv_channels,) * len(config.conv_channels),
            "mel_bins": mel_bins,
            "position_kernel": position_kernel,
            "normalize": normalize,
            "dropout": dropout,
            "layer_drop": layer_drop,
        }
        overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if mel_bins:
            if conv_channels is not None:
                raise ConfigError(
                    "mel_bins puts log-mel frames in the place of the convolutions: leave conv_channels out."
                )
            # a norm over the values of a frame, or over the clip, would take its loudness away
            overrides = {"feature_norm": False, "normalize": False} | overrides
        if checkpoint is None:
            self.config = dataclasses.replace(config, **overrides)
            size = self.config.hidden_size
            self._build(self.config, DistillationHeads(size, size, size, NUM_HEADS) if prediction_heads else None)
        else:
            self._load(checkpoint, config, overrides, prediction_heads)

    def _check_family(self, config: SpeechConfig) -> None:
        family = PRESETS[self.default_preset].family
        if config.family != family:
            allowed = [name for name, sizes in PRESETS.items() if sizes.family == family]
            raise ConfigError(
                f"{type(self).__name__} takes the presets {', '.join(allowed)}, got one of {config.family}."
            )

    def _build(self, config: SpeechConfig, heads: DistillationHeads | None = None) -> None:
        self.front_end: ConvFrontEnd | MelFrontEnd = (
            MelFrontEnd(config.mel_bins)
            if config.mel_bins
            else ConvFrontEnd(
                config.conv_channels, config.conv_kernels, config.conv_strides, config.conv_bias, config.conv_norm
            )
        )
        width, size = self.front_end.output_size, config.hidden_size
        self.feature_norm = nn.LayerNorm(width) if config.feature_norm else None
        self.feature_projection = nn.Linear(width, size)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        kernel, groups, depth = config.position_kernel, config.position_groups, config.position_depth
        if size % groups:
            raise ConfigError(f"hidden_size must be a multiple of the {groups} position groups, got {size}.")
        self.encoder = TransformerEncoder(
            ConvPositions(size, kernel, groups) if depth == 1 else ConvStackPositions(size, kernel, groups, depth),
            hidden_size=size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            feed_forward_size=config.feed_forward_size,
            layer_norm_first=config.layer_norm_first,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            layer_drop=config.layer_drop,
            relative_buckets=config.relative_buckets,
            relative_distance=config.relative_distance,
        )
        self.heads = heads
        predicted = () if heads is None else (heads.output_size,) * heads.num_heads
        widths = (size,) * (config.num_layers + 1) + predicted
        stream = StreamSpec(widths, (self.front_end.hop_length,) * len(widths))
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={"audio": stream},
            sample_rate=_SAMPLE_RATE,
            min_length=self.front_end.min_length,
        )

    def _load(self, checkpoint: str, fallback: SpeechConfig, overrides: dict[str, Any], with_heads: bool) -> None:
        wanted = overrides.pop("num_layers", None)
        # a bare state dict does not tell the number of heads
        known = {"num_heads": overrides["num_heads"]} if "num_heads" in overrides else {}
        read = read_speech_checkpoint(checkpoint, dataclasses.replace(fallback, **known), wanted)
        for name in ("hidden_size", "num_heads", "feed_forward_size", "conv_channels", "mel_bins", "position_kernel"):
            if name in overrides and overrides[name] != getattr(read.config, name):
                raise CheckpointError(
                    f"{checkpoint} has {name} = {getattr(read.config, name)}, {overrides[name]} was asked for. "
                    f"Leave {name} out: sizes come from the checkpoint."
                )
        self.config = dataclasses.replace(read.config, **overrides)
        heads = heads_of_s3prl(read.left_out, checkpoint) if with_heads else {}
        left_out = [name for name in read.left_out if not (with_heads and name.startswith("output_layer."))]
        if left_out:
            _LOG.info(
                "%s: weights left out, %d, no part of the encoder: %s", checkpoint, len(left_out), ", ".join(left_out)
            )
        with torch.device("meta"):
            self._build(self.config, DistillationHeads.shaped(heads) if heads else None)
        try:
            self.load_state_dict(read.state | {f"heads.{k}": v for k, v in heads.items()}, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint} holds weights of other sizes than it states: {error}") from error

    def extract(self, inputs: Inputs) -> Representation:
        """All layers of a checked batch, under the stream "audio"."""
        if inputs.waveforms is None:
            raise InputError(f"{type(self).__name__} takes waveforms.")
        return {"audio": self.encode(inputs.waveforms)}

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        return self.front_end.output_lengths(lengths)

    def extract_packed(self, waveforms: Sequence[Tensor]) -> list[Representation]:
        """All layers of each clip, computed without any padding.

        Args:
            waveforms: clips (T_b,) in [-1, 1] at 16 kHz, each at least `spec.min_length` samples.

        Returns:
            Per clip, the stream "audio": a `Layers` of tensors (T', D) and scalar lengths.
        """
        for clip in waveforms:
            if clip.dim() != 1 or len(clip) < self.spec.min_length:
                raise InputError(
                    f"extract_packed takes clips (T,) of at least {self.spec.min_length} samples, "
                    f"got {tuple(clip.shape)}."
                )
        states = self._states(self.features(self.latents(waveforms)))
        per_layer = [state.split() for state in states]
        lengths = [torch.tensor(n, device=states[0].data.device) for n in states[0].lengths]
        return [
            {"audio": Layers(tuple(clips[b] for clips in per_layer), (length,) * len(states))}
            for b, length in enumerate(lengths)
        ]

    def encode(self, waveforms: Padded, mask: Tensor | None = None, mask_embedding: Tensor | None = None) -> Layers:
        """All layers of a padded batch, with some frames hidden from the transformer if asked.

        Args:
            waveforms: (B, T) with lengths in samples.
            mask: (B, T') bool, True for frames whose projected features are replaced; T' at least the longest clip's
                number of frames.
            mask_embedding: (D,), what replaces them; belongs to whoever masks.

        Returns:
            Layers (B, T', D), zero past each length.
        """
        features = self.features(self.latents(waveforms.unpad()))
        if mask is not None:
            features = self._masked(features, mask, mask_embedding)
        states = [state.pad() for state in self._states(features)]
        return Layers(tuple(s.data for s in states), (states[0].lengths,) * len(states))

    def _states(self, features: Packed) -> list[Packed]:
        """All layers of features (N, D), the heads' predictions last."""
        states = self.encoder.forward_packed(features)
        if self.heads is not None:
            last = states[-1]
            states += [last.replace(prediction) for prediction in self.heads(self.encoder.finish(last.data))]
        return states

    def latents(self, waveforms: Sequence[Tensor]) -> Packed:
        """Frames (N, C) of the front end, before norm and projection."""
        return self.front_end([self._prepared(waveform) for waveform in waveforms])

    def features(self, latents: Packed) -> Packed:
        """Frames (N, D) as the transformer takes them."""
        x = latents.data if self.feature_norm is None else self.feature_norm(latents.data)
        return latents.replace(self.feature_dropout(self.feature_projection(x)))

    def _prepared(self, waveform: Tensor) -> Tensor:
        if self.config.normalize:
            waveform = waveform.float()
            variance, mean = torch.var_mean(waveform, correction=0)
            waveform = (waveform - mean) / torch.sqrt(variance + self.config.normalize_eps)
        return waveform.to(self.dtype)

    def _masked(self, features: Packed, mask: Tensor, embedding: Tensor | None) -> Packed:
        longest = max(features.lengths)
        size = self.config.hidden_size
        if mask.dtype != torch.bool or mask.dim() != 2 or len(mask) != len(features.lengths) or mask.shape[1] < longest:
            raise InputError(
                f"mask must be bool ({len(features.lengths)}, {longest} or more), got {mask.dtype} {tuple(mask.shape)}."
            )
        if embedding is None or embedding.shape != (size,):
            raise InputError(f"A mask needs a mask_embedding ({size},).")
        hidden = torch.cat([row[:n] for row, n in zip(mask, features.lengths, strict=True)])
        return features.replace(torch.where(hidden[:, None], embedding.to(features.data.dtype), features.data))

    def save_transformers(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json, which transformers' `AutoModel` loads.

        Each file is written whole or not at all. Masking during training is switched off in the configuration, since
        no mask embedding belongs to the encoder; prediction heads are left out, since transformers has no place for
        them.

        Raises:
            ConfigError: the front end is one of log-mel frames, which transformers' models do not have.
        """
        from safetensors.torch import save

        described = _json(to_transformers(self.config))

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.float() for name, tensor in from_canonical(self.state_dict(), self.config).items()}
        if self.config.family == "unispeech_sat":
            state["masked_spec_embed"] = torch.zeros(self.config.hidden_size)
        preprocessor: dict[str, object] = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": _SAMPLE_RATE,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": self.config.normalize,
            "normalize_eps": self.config.normalize_eps,
            "return_attention_mask": self.config.conv_norm == "layer",
        }
        write_file(folder / "model.safetensors", save(state, {"format": "pt"}))
        write_file(folder / "preprocessor_config.json", _json(preprocessor))
        write_file(folder / "config.json", described)


def _json(values: dict[str, object]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


class Wav2Vec2(SpeechTransformer):
    """wav2vec 2.0 (Baevski et al. 2020); presets wav2vec2_base, wav2vec2_large, wav2vec2_lv60."""


class Hubert(SpeechTransformer):
    """HuBERT (Hsu et al. 2021); presets hubert_base, hubert_large, hubert_xlarge, mel_hubert_base (Lin et al. 2023)."""

    default_preset = "hubert_base"


class WavLM(SpeechTransformer):
    """WavLM (Chen et al. 2022), with gated relative positions; presets wavlm_base, wavlm_base_plus, wavlm_large."""

    default_preset = "wavlm_base"


class Data2VecAudio(SpeechTransformer):
    """data2vec on speech (Baevski et al. 2022), positions by five convolutions; presets data2vec_audio_base, _large."""

    default_preset = "data2vec_audio_base"


class UniSpeechSat(SpeechTransformer):
    """UniSpeech-SAT (Chen et al. 2022); presets unispeech_sat_base, unispeech_sat_large."""

    default_preset = "unispeech_sat_base"


class DistilHubert(SpeechTransformer):
    """DistilHuBERT (Chang et al. 2022): two layers of HuBERT's kind, no norm before the projection.

    `prediction_heads=True` appends what its heads predict.
    """

    default_preset = "distilhubert"
