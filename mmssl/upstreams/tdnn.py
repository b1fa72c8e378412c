"""ECAPA-TDNN and x-vector networks with all their layers over frames, and the speaker embedding as a method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl.errors import CheckpointError
from mmssl.lengths import window_count
from mmssl.nn.log_mel import LogMel
from mmssl.nn.tdnn import EcapaEncoder, XVectorEncoder
from mmssl.types import Padded
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import SAMPLE_RATE, ClipwiseUpstream
from mmssl.upstreams.renaming import load_renamed, settled, weights
from mmssl.upstreams.spectral import Fbank

HOP = 160
_PREFIX = r"(?:speaker_encoder\.)?"
_ECAPA_RULES = (
    (_PREFIX + r"conv1\.(\w+)", r"stem.conv.\1"),
    (_PREFIX + r"bn1\.(\w+)", r"stem.norm.\1"),
    *(
        (rf"{_PREFIX}layer{layer}\.{theirs}\.(\w+)", rf"blocks.{layer - 1}.{ours}")
        for layer in (1, 2, 3)
        for theirs, ours in (
            ("conv1", r"expand.conv.\1"),
            ("bn1", r"expand.norm.\1"),
            (r"convs\.(\d+)", r"steps.\1.conv.\2"),
            (r"bns\.(\d+)", r"steps.\1.norm.\2"),
            ("conv3", r"contract.conv.\1"),
            ("bn3", r"contract.norm.\1"),
            (r"se\.se\.1", r"gate.squeeze.\1"),
            (r"se\.se\.3", r"gate.excite.\1"),
        )
    ),
    (_PREFIX + r"layer4\.(\w+)", r"join.\1"),
    (_PREFIX + r"attention\.0\.(\w+)", r"pooling.hidden.conv.\1"),
    (_PREFIX + r"attention\.2\.(\w+)", r"pooling.hidden.norm.\1"),
    (_PREFIX + r"attention\.4\.(\w+)", r"pooling.scores.\1"),
    (_PREFIX + r"bn5\.(\w+)", r"pooled_norm.\1"),
    (_PREFIX + r"fc6\.(\w+)", r"embedding.\1"),
    (_PREFIX + r"bn6\.(\w+)", r"embedding_norm.\1"),
)


class EcapaTdnn(ClipwiseUpstream):
    """ECAPA-TDNN over 80 log-mel filters; layers: the first convolution, three blocks, the dense layer that joins them.

    Front end: pre-emphasis, log of mel power from 20 to 7600 Hz in Hamming windows of 25 ms every 10 ms, less the
    clip's mean. The squeeze-excitation sees the whole clip: a frame of any layer after the first depends on all frames.

    Args:
        channels: width of the blocks, 512 or 1024 in the paper; None for 1024.
        embedding_size: of the speaker embedding; None for 192.
        attention_size: of the attentive pooling; None for 128.
        checkpoint: a file of the PyTorch implementation by Tao Ruijie (`pretrain.model`), whose sizes then hold; None
            draws weights. SpeechBrain's model has another front end, reflected ends and no summed inputs: not this one.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        channels: int | None = None,
        embedding_size: int | None = None,
        attention_size: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        state: dict[str, Any] = {}
        found: dict[str, Any] = {}
        if checkpoint is not None:
            state = weights(read_checkpoint(checkpoint), checkpoint, "state_dict", "model")
            found = _sizes(state, checkpoint)
        width = settled("channels", channels, found.get("channels"), 1024, checkpoint)
        size = settled("embedding_size", embedding_size, found.get("embedding_size"), 192, checkpoint)
        attention = settled("attention_size", attention_size, found.get("attention_size"), 128, checkpoint)
        self.log_mel = LogMel(
            80, 512, HOP, window_length=400, window="hamming", low_freq=20.0, high_freq=7600.0, offset=1e-6
        )
        self.encoder = EcapaEncoder(80, width, embedding_size=size, attention_size=attention)
        self.declare(self.encoder.layer_sizes, HOP, self.log_mel.min_length)
        if checkpoint is not None:
            ignored = r".*torchfbank\..*|speaker_loss\..*"
            load_renamed(self.encoder, state, _ECAPA_RULES, source=checkpoint, ignore=ignored)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples: one every 160 samples and one more."""
        return self.log_mel.output_lengths(lengths)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> the five layers (B, T', D)."""
        waveforms = waveforms.float()
        # the sample before the first is taken to equal the second
        emphasized = waveforms - 0.97 * torch.cat([waveforms[:, 1:2], waveforms[:, :-1]], dim=1)
        mel = self.log_mel(emphasized)
        features = (mel - mel.mean(dim=1, keepdim=True)).to(self.dtype)
        return [layer.transpose(1, 2) for layer in self.encoder.frame_layers(_whole(features))]

    def embed(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Speaker embeddings (B, embedding_size) of waveforms (B, T)."""
        frames = self(waveforms, lengths)["audio"][-1]
        return self.encoder.pool(frames.data.transpose(1, 2), frames.lengths)


class XVector(ClipwiseUpstream):
    """x-vector network over a Kaldi filterbank less the clip's mean; layers: the five TDNN layers.

    The paper subtracts a mean over three seconds; that of the clip stands in for it here. No weights in PyTorch are
    published for this network, so that `checkpoint` takes those of this class only.

    Args:
        num_mel_bins: filters.
        channels: width of the first four layers.
        wide_size: width of the fifth.
        embedding_size: of the speaker embedding.
        checkpoint: a file of the weights of `encoder`; None draws them.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        num_mel_bins: int = 24,
        channels: int = 512,
        wide_size: int = 1500,
        embedding_size: int = 512,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.fbank = Fbank(num_mel_bins, SAMPLE_RATE)
        self.encoder = XVectorEncoder(num_mel_bins, channels, wide_size, embedding_size)
        self.declare(self.encoder.layer_sizes, self.fbank.hop, self.fbank.window)
        if checkpoint is not None:
            state = weights(read_checkpoint(checkpoint), checkpoint, "state_dict")
            load_renamed(self.encoder, state, [(r"encoder\.(.*)", r"\1")], source=checkpoint)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Whole windows of 25 ms (B,) in clips of `lengths` (B,) samples; all layers have the same."""
        return window_count(lengths, self.fbank.window, self.fbank.hop)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> the five layers (B, T', D)."""
        windows = waveforms.float().unfold(1, self.fbank.window, self.fbank.hop)
        mel = self.fbank.features(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        features = (mel - mel.mean(dim=1, keepdim=True)).to(self.dtype)
        return [layer.transpose(1, 2) for layer in self.encoder.frame_layers(_whole(features))]

    def embed(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Speaker embeddings (B, embedding_size) of waveforms (B, T)."""
        frames = self(waveforms, lengths)["audio"][-1]
        return self.encoder.pool(frames.data.transpose(1, 2), frames.lengths)


def _whole(features: Tensor) -> Padded:
    """Frames (B, T, D) as a batch in which all are valid."""
    return Padded(features, torch.full((len(features),), features.shape[1], device=features.device))


def _sizes(state: dict[str, Any], source: str) -> dict[str, Any]:
    plain = {name.removeprefix("speaker_encoder."): value for name, value in state.items()}
    parts = [plain.get(name) for name in ("conv1.weight", "fc6.weight", "attention.0.weight")]
    if any(part is None for part in parts):
        raise CheckpointError(
            f"{source} is no ECAPA-TDNN of the layout conv1, layer1-4, attention, fc6; it has "
            f"{', '.join(list(state)[:4])} ..."
        )
    names = ("channels", "embedding_size", "attention_size")
    return {name: part.shape[0] for name, part in zip(names, parts, strict=True) if part is not None}
