"""Autoregressive predictive coding: recurrent levels over log-mel frames that predict frames to come.

Source: Chung et al. 2019, "An Unsupervised Autoregressive Model for Speech Representation Learning", section 3; Chung
et al. 2020, "Vector-Quantized Autoregressive Predictive Coding", whose quantizer after the last level is left out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmssl.errors import CheckpointError
from mmssl.lengths import window_count
from mmssl.nn.log_mel import standardize_frames
from mmssl.nn.recurrent import RecurrentStack
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import SAMPLE_RATE, ClipwiseUpstream
from mmssl.upstreams.renaming import count, load_renamed, options, settled, weights
from mmssl.upstreams.spectral import KALDI_SCALE, Fbank

_RULES = ((r"rnn_layers\.(\d+)\.(\w+)", r"levels.\1.\2"),)
# what kaldi.fbank is called with, beside the window, the rate and the number of bins
_FBANK = ("frame_length", "frame_shift", "low_freq", "high_freq", "preemphasis_coefficient")


class APC(ClipwiseUpstream):
    """Causal GRU levels over 80 Kaldi log-mel filters; layers: the output of each level.

    Each clip's filterbank is brought to mean 0 and deviation 1 over the clip, so that the features as a whole are not
    causal. From the second level on, a level's input is added to its output.

    Args:
        hidden_size: width of the levels; None for 512.
        num_layers: levels; None for 3.
        num_mel_bins: filters; None for 80.
        residual: whether a level's input is added to its output; None for True.
        dropout: of each level's output, in training.
        checkpoint: a file of S3PRL's `apc` or `vq_apc`, whose sizes then hold; None draws weights.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        num_mel_bins: int | None = None,
        residual: bool | None = None,
        dropout: float = 0.0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        state: dict[str, Any] = {}
        found: dict[str, Any] = {}
        front_end: dict[str, Any] = {}
        self.standardize = True
        if checkpoint is not None:
            content = read_checkpoint(checkpoint)
            state = weights(content, checkpoint, "model")
            found, front_end, self.standardize = _sizes(options(content), state, checkpoint)
        hidden_size = settled("hidden_size", hidden_size, found.get("hidden_size"), 512, checkpoint)
        levels = settled("num_layers", num_layers, found.get("num_layers"), 3, checkpoint)
        bins = settled("num_mel_bins", num_mel_bins, found.get("num_mel_bins"), 80, checkpoint)
        residual = settled("residual", residual, found.get("residual"), True, checkpoint)
        self.fbank = Fbank(bins, SAMPLE_RATE, window_type="hamming", **front_end)
        self.context = RecurrentStack(bins, hidden_size, levels, "gru", residual, dropout)
        self.declare((hidden_size,) * levels, self.fbank.hop, self.fbank.window)
        if checkpoint is not None:
            load_renamed(self.context, state, _RULES, source=checkpoint, ignore=r"(postnet|vq_layers)\..*")

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Whole windows of 25 ms (B,) in clips of `lengths` (B,) samples; all layers have the same."""
        return window_count(lengths, self.fbank.window, self.fbank.hop)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> the output (B, T', D) of each level."""
        # the published models take Kaldi's filterbank of samples in [-1, 1], where its floors bite earlier
        frames = (waveforms.float() / KALDI_SCALE).unfold(1, self.fbank.window, self.fbank.hop)
        mel = self.fbank.features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        if self.standardize:
            mel = standardize_frames(mel)
        return self.context(mel.to(self.dtype))


def _sizes(
    content: dict[str, Any], state: dict[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, float], bool]:
    """Sizes, arguments of the filterbank, and whether it is standardised, as an S3PRL checkpoint states them."""
    config = options(content.get("config"))
    audio = options(options(config.get("data")).get("audio"))
    model = options(options(config.get("model")).get("paras"))
    first = state.get("rnn_layers.0.weight_ih_l0")
    if first is None:
        raise CheckpointError(
            f"{source} is no APC with GRU levels (rnn_layers.0): it has {', '.join(list(state)[:4])} ..."
        )
    kind = audio.get("feat_type", "fbank")
    unknown = set(audio) - {"feat_type", "feat_dim", "decode_wav", "cmvn", *_FBANK}
    if kind != "fbank" or unknown:
        raise CheckpointError(
            f"{source} takes features {kind!r} with {', '.join(sorted(unknown)) or 'no other options'}; "
            f"APC here takes fbank with {', '.join(_FBANK)}."
        )
    sizes = {
        "hidden_size": first.shape[0] // 3,
        "num_layers": count(state, r"rnn_layers\.(\d+)\..*"),
        "num_mel_bins": first.shape[1],
        "residual": model.get("residual"),
    }
    return sizes, {name: float(audio[name]) for name in _FBANK if name in audio}, bool(audio.get("cmvn", True))
