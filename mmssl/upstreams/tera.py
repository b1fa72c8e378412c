"""Mockingjay and TERA: a transformer on log-mel frames, trained to restore frames that were altered.

Source: Liu et al. 2020, "Mockingjay"; Liu et al. 2021, "TERA: Self-Supervised Learning of Transformer Encoder
Representation for Speech", section III.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import CheckpointError, ConfigError
from mmssl.nn.filterbank import add_deltas
from mmssl.nn.log_mel import LogMel, standardize_frames
from mmssl.nn.packed import Packed
from mmssl.nn.sinusoidal import SinusoidalPositions
from mmssl.nn.transformer import TransformerEncoder
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import ClipwiseUpstream
from mmssl.upstreams.renaming import count, load_renamed, options, settled, weights

_LAYER_NORM_EPS = 1e-12
_BLOCK = r"encoder\.layer\.(\d+)\."
_RULES = (
    (r"input_representations\.spec_transform\.(\w+)", r"projection.\1"),
    (r"input_representations\.LayerNorm\.(\w+)", r"encoder.layer_norm.\1"),
    (_BLOCK + r"attention\.qkv\.(\w+)", r"encoder.blocks.\1.attention.qkv.\2"),
    (_BLOCK + r"attention\.output\.dense\.(\w+)", r"encoder.blocks.\1.attention.output.\2"),
    (_BLOCK + r"attention\.output\.LayerNorm\.(\w+)", r"encoder.blocks.\1.attention_norm.\2"),
    (_BLOCK + r"intermediate\.dense\.(\w+)", r"encoder.blocks.\1.expand.\2"),
    (_BLOCK + r"output\.dense\.(\w+)", r"encoder.blocks.\1.contract.\2"),
    (_BLOCK + r"output\.LayerNorm\.(\w+)", r"encoder.blocks.\1.feed_forward_norm.\2"),
)


class Tera(ClipwiseUpstream):
    """Transformer on log-mel frames; layers: the input of the first block, then the output of each.

    A clip is scaled to -25 dB, its log-mel frames to mean 0 and deviation 1 over the clip. As in S3PRL, a clip of more
    than `max_frames` frames is cut into equal pieces that do not see each other.

    Args:
        hidden_size: width; None for 768.
        num_layers: blocks; None for 3.
        num_heads: attention heads; None for 12.
        feed_forward_size: None for 3072.
        num_mel_bins: filters; None for 80.
        deltas: 1 appends first differences over time (Mockingjay's 160 features); None for 0.
        max_frames: frames that attend to each other; 0 for no limit, None for the method's.
        dropout: in training.
        checkpoint: a file of S3PRL's `tera` or `mockingjay` with its own front end, whose sizes then hold; None draws
            weights.

    Raises:
        ConfigError: sizes that do not go together.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    default_layers = 3
    default_max_frames = 1500

    def __init__(
        self,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        num_mel_bins: int | None = None,
        deltas: int | None = None,
        max_frames: int | None = None,
        dropout: float = 0.1,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        state: dict[str, Any] = {}
        found: dict[str, Any] = {}
        self.target_level: float = -25.0
        self.standardize = True
        if checkpoint is not None:
            content = options(read_checkpoint(checkpoint))
            state = _plain_names(weights(content, checkpoint, "Transformer"))
            found = _sizes(content, state, checkpoint)
            self.target_level, self.standardize = found["target_level"], found["standardize"]
        size = settled("hidden_size", hidden_size, found.get("hidden_size"), 768, checkpoint)
        layers = settled("num_layers", num_layers, found.get("num_layers"), self.default_layers, checkpoint)
        heads = settled("num_heads", num_heads, found.get("num_heads"), 12, checkpoint)
        inner = settled("feed_forward_size", feed_forward_size, found.get("feed_forward_size"), 3072, checkpoint)
        bins = settled("num_mel_bins", num_mel_bins, found.get("num_mel_bins"), 80, checkpoint)
        self.deltas = settled("deltas", deltas, found.get("deltas"), 0, checkpoint)
        self.max_frames = settled(
            "max_frames", max_frames, found.get("max_frames"), self.default_max_frames, checkpoint
        )
        if self.deltas not in (0, 1) or self.max_frames < 0:
            raise ConfigError(
                f"deltas must be 0 or 1 and max_frames at least 0, got {self.deltas} and {self.max_frames}."
            )
        self.log_mel = LogMel(bins)
        self.projection = nn.Linear(bins * (1 + self.deltas), size)
        self.encoder = TransformerEncoder(
            SinusoidalPositions(size), size, layers, heads, inner, dropout=dropout, attention_dropout=dropout
        )
        for module in self.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = _LAYER_NORM_EPS
        self.declare((size,) * (layers + 1), self.log_mel.hop_length, self.log_mel.min_length)
        if checkpoint is not None:
            load_renamed(self, state, _RULES, source=checkpoint)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples: one every 160 samples and one more."""
        return self.log_mel.output_lengths(lengths)

    def features(self, waveforms: Tensor) -> Tensor:
        """Log-mel frames (B, T', F) float32 of clips (B, T) without padding, as the projection takes them."""
        waveforms = waveforms.float()
        rms = waveforms.pow(2).mean(dim=1, keepdim=True).clamp(min=1e-30).sqrt()
        mel = self.log_mel(waveforms * (10 ** (self.target_level / 20) / (rms + 1e-10)))
        if self.deltas:
            lengths = torch.full((len(mel),), mel.shape[1], device=mel.device)
            mel = add_deltas(mel, lengths, self.deltas)
        return standardize_frames(mel) if self.standardize else mel

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> all layers (B, T', D)."""
        frames = self.projection(self.features(waveforms).to(self.dtype))
        batch, size = frames.shape[:2]
        pieces = -(-size // self.max_frames) if self.max_frames else 1
        packed = Packed.of([piece for clip in frames for piece in clip.chunk(pieces)])
        return [state.data.unflatten(0, (batch, size)) for state in self.encoder.forward_packed(packed)]


class Mockingjay(Tera):
    """Mockingjay's large model, 12 blocks on pieces of at most 500 frames; see `Tera`."""

    default_layers = 12
    default_max_frames = 500


def _plain_names(state: dict[str, Any]) -> dict[str, Any]:
    """Norms called weight and bias, and query, key and value of a block merged into one."""
    state = {re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name)): value for name, value in state.items()}
    plain = {name: value for name, value in state.items() if ".attention.self." not in name}
    for name in state:
        if match := re.fullmatch(r"(.*\.attention\.)self\.query\.(\w+)", name):
            try:
                parts = [state[f"{match[1]}self.{part}.{match[2]}"] for part in ("query", "key", "value")]
            except KeyError as missing:
                raise CheckpointError(f"The checkpoint lacks {missing}.") from None
            plain[f"{match[1]}qkv.{match[2]}"] = torch.cat(parts)
    return plain


def _sizes(content: dict[str, Any], state: dict[str, Any], source: str) -> dict[str, Any]:
    """Sizes that an S3PRL checkpoint of the transformer family states."""
    config = next(
        (c for c in (options(content.get(k)) for k in ("Upstream_Config", "Config")) if "transformer" in c), {}
    )
    model, task, audio = (options(config.get(part)) for part in ("transformer", "task", "audio"))
    mel = options(audio.get("input"))
    first = state.get("input_representations.spec_transform.weight")
    expand = state.get("encoder.layer.0.intermediate.dense.weight")
    if not model or first is None or expand is None or model.get("share_layer") or model.get("pre_layer_norm"):
        raise CheckpointError(
            f"{source} is no transformer of S3PRL with layers of its own and norms after them "
            f"(Transformer, and Config or Upstream_Config); it has {', '.join(list(content)[:6])}."
        )
    expected = {"feat_type": "mel", "log": True}
    frames = (audio.get("win_ms"), audio.get("hop_ms"), audio.get("n_freq"))
    if (
        frames != (25, 10, 201)
        or any(mel.get(k) != v for k, v in expected.items())
        or model.get("hidden_act") != "gelu"
    ):
        raise CheckpointError(
            f"{source} takes {mel.get('feat_type')!r} features with (win_ms, hop_ms, n_freq) = {frames} and the "
            f"activation {model.get('hidden_act')!r}; here it is log mel of (25, 10, 201) and gelu."
        )
    return {
        "hidden_size": first.shape[0],
        "num_layers": count(state, _BLOCK + ".*"),
        "num_heads": int(model["num_attention_heads"]),
        "feed_forward_size": expand.shape[0],
        "num_mel_bins": int(audio["n_mels"]),
        "deltas": int(mel.get("delta", 0)),
        "max_frames": int(task.get("sequence_length", 0)),
        "target_level": float(audio.get("target_level", -25)),
        "standardize": bool(mel.get("cmvn", False)),
    }
