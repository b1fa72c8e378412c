"""BYOL-A: the AudioNTT2020 encoder of log-mel spectrograms, with its frames over time.

Source: Niizumi et al. 2021, "BYOL for Audio", section III-C, whose encoder is that of Koizumi et al. 2020 for DCASE
task 6; the authors' code (v1). The v2 encoder, which joins local and global features, is another network.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from mmssl.errors import CheckpointError, ConfigError
from mmssl.lengths import shortest_input, valid_mask
from mmssl.nn.log_mel import LogMel
from mmssl.types import Padded
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import ClipwiseUpstream
from mmssl.upstreams.renaming import load_renamed, settled, weights

POOLING = 2
"""Each of the three convolutions is followed by a maximum over 2 x 2."""
MEAN, STD = -5.4919195, 5.0389895
"""Of the log-mel values in the authors' pretraining data, with their 64-band weights."""
_FLOAT32_EPS = 1.1920928955078125e-07
_RULES = ((r"(?:.*\.)?(features|fc)\.(\d+\.\w+)", r"\1.\2"),)


class ByolA(ClipwiseUpstream):
    """AudioNTT2020 over log-mel frames of 10 ms; layers: the convolutions, then both linear maps, every 80 ms.

    The convolutions' layer has 64 channels for each eighth of the mel bands, channels within bands.

    Args:
        hidden_size: width of the linear maps; None for 2048.
        num_mel_bins: bands from 60 to 7800 Hz, a multiple of 8; None for 64.
        mean, std: what the log-mel values are normalised by.
        checkpoint: a file of the authors' v1 code (`AudioNTT2020-BYOLA-64x96d2048.pth`), whose sizes then hold; None
            draws weights.

    Raises:
        ConfigError: the bands are not a multiple of 8, or `std` is not positive.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        hidden_size: int | None = None,
        num_mel_bins: int | None = None,
        mean: float = MEAN,
        std: float = STD,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        state: dict[str, Any] = {}
        found: dict[str, Any] = {}
        if checkpoint is not None:
            state = weights(read_checkpoint(checkpoint), checkpoint, "state_dict")
            found = _sizes(state, checkpoint)
        size = settled("hidden_size", hidden_size, found.get("hidden_size"), 2048, checkpoint)
        bins = settled("num_mel_bins", num_mel_bins, found.get("num_mel_bins"), 64, checkpoint)
        if bins < 8 or bins % 8 or std <= 0:
            raise ConfigError(f"num_mel_bins must be a multiple of 8 and std positive, got {bins} and {std}.")
        self.mean, self.std = mean, std
        self.log_mel = LogMel(bins, n_fft=1024, low_freq=60.0, high_freq=7800.0, offset=_FLOAT32_EPS)
        channels = (1, 64, 64, 64)
        self.features = nn.Sequential(
            *(
                layer
                for i, o in pairwise(channels)
                for layer in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(POOLING))
            )
        )
        flat = channels[-1] * bins // POOLING**3
        self.fc = nn.Sequential(nn.Linear(flat, size), nn.ReLU(), nn.Dropout(0.3), nn.Linear(size, size), nn.ReLU())
        hop = self.log_mel.hop_length
        shortest = shortest_input([(self.log_mel.n_fft, hop, 2 * (self.log_mel.n_fft // 2))], POOLING**3)
        self.declare((flat, size, size), hop * POOLING**3, max(shortest, self.log_mel.min_length))
        if checkpoint is not None:
            load_renamed(self, state, _RULES, source=checkpoint, ignore=r"(?!(?:.*\.)?(features|fc)\.).*")

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples: a whole eighth of the log-mel frames."""
        return self.log_mel.output_lengths(lengths) // POOLING**3

    def frame_context(self) -> int | None:
        """Two: the convolutions see 7 log-mel frames beyond the eight of a frame, which see 512 samples more."""
        return 2

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> convolutions (B, T', 512), both linear maps after their ReLU (B, T', 2048)."""
        mel = ((self.log_mel(waveforms) - self.mean) / self.std).to(self.dtype)
        maps = self.features(mel.transpose(1, 2)[:, None])
        convolved = maps.permute(0, 3, 2, 1).flatten(2)
        hidden = self.fc[:2](convolved)
        return [convolved, hidden, self.fc[2:](hidden)]

    def embed(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The authors' clip embedding (B, hidden_size): maximum plus mean over the valid frames of the last layer."""
        return max_plus_mean(self(waveforms, lengths)["audio"][-1])


def max_plus_mean(frames: Padded) -> Tensor:
    """Sum of the maximum and the mean over valid frames (BYOL-A, section III-C): (B, T, D) -> (B, D)."""
    valid = valid_mask(frames.lengths, frames.data.shape[1])[..., None]
    largest = frames.data.masked_fill(~valid, float("-inf")).amax(dim=1)
    total = frames.data.masked_fill(~valid, 0).sum(dim=1)
    return largest + total / frames.lengths[:, None].to(total.dtype)


def _sizes(state: dict[str, Any], source: str) -> dict[str, Any]:
    first = next((v for name, v in state.items() if name == "fc.0.weight" or name.endswith(".fc.0.weight")), None)
    if first is None:
        raise CheckpointError(
            f"{source} is no AudioNTT2020 (features.0-9, fc.0, fc.3); it has {', '.join(list(state)[:4])} ..."
        )
    return {"hidden_size": first.shape[0], "num_mel_bins": first.shape[1] // 64 * POOLING**3}
