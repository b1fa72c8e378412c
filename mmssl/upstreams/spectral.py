"""Spectral features as upstreams of one layer: Kaldi filterbank, MFCC and spectrogram, and the plain log-mel.

Waveforms come in [-1, 1]. The Kaldi features multiply them by 2**15 first, because Kaldi reads 16-bit integers and its
floors (energy 1.0, power 1.19e-7) are meant for that scale: they equal `torchaudio.compliance.kaldi` on
`2**15 * waveform`.
No dither, and only whole windows (snip_edges=True), so that frames are a function of the clip and never read past it.
Tables stay in float32 and so does the arithmetic, whatever type the module is cast to: only the result is cast.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.lengths import valid_mask, window_count
from mmssl.nn.filterbank import (
    add_deltas,
    fft_size,
    kaldi_mel_bank,
    liftered_dct,
    mel_bank,
    normalize_frames,
    window_function,
)
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream

KALDI_SCALE = 2.0**15
KALDI_EPSILON = torch.finfo(torch.float32).eps
ENERGY_FLOOR = 1.0
NORMALIZE = ("none", "mean", "mean_variance")


class Spectral(Upstream):
    """Base of the spectral upstreams: cuts whole windows, packs the valid ones, and adds deltas and normalisation.

    A subclass implements `features` and gives the tables that it needs.

    Args:
        window: window length in samples.
        hop: hop length in samples.
        size: number of features per frame before deltas.
        sample_rate: in Hz.
        deltas: order of the differences appended: 0 none, 1 deltas, 2 deltas and delta-deltas (Kaldi's add-deltas).
        normalize: "mean" (or True) subtracts the clip's mean per feature, "mean_variance" also divides by its standard
            deviation; over the valid frames, after the deltas. False or "none" leaves features as they are.
    """

    def __init__(
        self, *, window: int, hop: int, size: int, sample_rate: int, deltas: int = 0, normalize: bool | str = False
    ) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        if window < 2 or hop < 1:
            raise ConfigError(f"A window needs at least 2 samples and a hop 1, got {window} and {hop}.")
        if not isinstance(deltas, int) or deltas not in (0, 1, 2):
            raise ConfigError(f"deltas must be 0, 1 or 2, got {deltas!r}.")
        self.normalize = ("mean" if normalize else "none") if isinstance(normalize, bool) else normalize
        if self.normalize not in NORMALIZE:
            raise ConfigError(f"normalize must be true, false or one of {', '.join(NORMALIZE)}, got {normalize!r}.")
        self.deltas = deltas
        self._tables: dict[str, Tensor] = {}
        # holds the module's device and type; the tables themselves are never cast
        self.register_buffer("marker", torch.zeros(1), persistent=False)
        self.spec = UpstreamSpec(
            inputs=("waveforms",),
            streams={"audio": StreamSpec(hidden_sizes=(size * (1 + deltas),), hop_lengths=(hop,))},
            sample_rate=sample_rate,
            min_length=window,
        )

    @abstractmethod
    def features(self, frames: Tensor) -> Tensor:
        """Windows (N, window) of samples in [-1, 1], float32 -> features (N, size)."""

    def table(self, name: str) -> Tensor:
        """A constant on the module's device, float32."""
        stored = self._tables[name]
        if stored.device != self.device:
            stored = self._tables[name] = stored.to(self.device)
        return stored

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Number of whole windows."""
        return window_count(lengths, self.window, self.hop)

    def frame_context(self) -> int | None:
        """Two frames per order of deltas; None where features are normalised over the clip."""
        return 2 * self.deltas if self.normalize == "none" else None

    def extract(self, inputs: Inputs) -> Representation:
        """One layer (B, frames, size * (1 + deltas))."""
        assert inputs.waveforms is not None  # `forward` has checked it
        waveforms, samples = inputs.waveforms.data, inputs.waveforms.lengths
        lengths = self.output_lengths(samples)
        with torch.autocast(waveforms.device.type, enabled=False):
            frames = waveforms.float().unfold(1, self.window, self.hop)
            valid = valid_mask(lengths, frames.shape[1])
            packed = self.features(frames[valid])
            data = packed.new_zeros(*frames.shape[:2], packed.shape[-1])
            data[valid] = packed
            data = self.finish(data, lengths)
        return {"audio": Layers((data.to(self.dtype),), (lengths,))}

    def finish(self, data: Tensor, lengths: Tensor) -> Tensor:
        """Deltas and normalisation of features (B, frames, size) that are zero past each length (B,)."""
        if self.deltas:
            data = add_deltas(data, lengths, self.deltas)
        if self.normalize != "none":
            data = normalize_frames(data, lengths, variance=self.normalize == "mean_variance")
        return data


class _Kaldi(Spectral):
    """What the Kaldi features share: DC removal, pre-emphasis, window, power-of-two FFT, log energy."""

    def __init__(
        self,
        *,
        size: int,
        sample_rate: int,
        frame_length: float,
        frame_shift: float,
        window_type: str,
        preemphasis_coefficient: float,
        remove_dc_offset: bool,
        deltas: int,
        normalize: bool | str,
    ) -> None:
        # Kaldi truncates: 10 ms at 22.05 kHz are 220 samples
        window, hop = (int(sample_rate * milliseconds * 0.001) for milliseconds in (frame_length, frame_shift))
        super().__init__(window=window, hop=hop, size=size, sample_rate=sample_rate, deltas=deltas, normalize=normalize)
        if not 0 <= preemphasis_coefficient <= 1:
            raise ConfigError(f"preemphasis_coefficient must be between 0 and 1, got {preemphasis_coefficient}.")
        self.preemphasis = preemphasis_coefficient
        self.remove_dc_offset = remove_dc_offset
        self.fft_size = fft_size(window)
        self._tables["window"] = window_function(window_type, window)

    def spectrum(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (N, window) -> power spectrum (N, fft / 2 + 1) and log energy (N,) before pre-emphasis."""
        frames = frames * KALDI_SCALE
        if self.remove_dc_offset:
            frames = frames - frames.mean(dim=1, keepdim=True)
        energy = frames.pow(2).sum(dim=1).clamp(min=max(KALDI_EPSILON, ENERGY_FLOOR)).log()
        if self.preemphasis:
            frames = frames - self.preemphasis * torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = frames * self.table("window")
        return torch.fft.rfft(frames, n=self.fft_size).abs().pow(2), energy


class Fbank(_Kaldi):
    """Kaldi log-mel filterbank (compute-fbank-feats), equal to `torchaudio.compliance.kaldi.fbank` on 2**15 * waveform.

    Args:
        num_mel_bins: number of triangular filters.
        sample_rate: in Hz.
        frame_length, frame_shift: in milliseconds.
        low_freq: lower edge of the filters in Hz.
        high_freq: upper edge in Hz; zero or less counts from half the sample rate.
        window_type: "povey", "hamming", "hanning", "rectangular" or "blackman".
        preemphasis_coefficient: 0 to 1.
        remove_dc_offset: subtract each window's mean.
        use_energy: add the log energy as the first feature, or as the last with `htk_compat`.
        htk_compat: put the energy last.
        deltas, normalize: see `Spectral`.
    """

    def __init__(
        self,
        num_mel_bins: int = 80,
        sample_rate: int = 16000,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        low_freq: float = 20.0,
        high_freq: float = 0.0,
        window_type: str = "povey",
        preemphasis_coefficient: float = 0.97,
        remove_dc_offset: bool = True,
        use_energy: bool = False,
        htk_compat: bool = False,
        deltas: int = 0,
        normalize: bool | str = False,
    ) -> None:
        super().__init__(
            size=num_mel_bins + int(use_energy),
            sample_rate=sample_rate,
            frame_length=frame_length,
            frame_shift=frame_shift,
            window_type=window_type,
            preemphasis_coefficient=preemphasis_coefficient,
            remove_dc_offset=remove_dc_offset,
            deltas=deltas,
            normalize=normalize,
        )
        self.use_energy, self.htk_compat = use_energy, htk_compat
        self._tables["bank"] = kaldi_mel_bank(num_mel_bins, self.fft_size, sample_rate, low_freq, high_freq)

    def features(self, frames: Tensor) -> Tensor:
        """Log mel energies, with the log energy of the window where asked for."""
        power, energy = self.spectrum(frames)
        mel = (power @ self.table("bank")).clamp(min=KALDI_EPSILON).log()
        if not self.use_energy:
            return mel
        return torch.cat([mel, energy[:, None]] if self.htk_compat else [energy[:, None], mel], dim=1)


class Mfcc(_Kaldi):
    """Kaldi MFCC (compute-mfcc-feats), equal to `torchaudio.compliance.kaldi.mfcc` on 2**15 * waveform.

    Args:
        num_ceps: number of cepstral coefficients, C0 included; at most `num_mel_bins`.
        num_mel_bins: number of triangular filters.
        sample_rate: in Hz.
        frame_length, frame_shift: in milliseconds.
        low_freq, high_freq: edges of the filters in Hz, as for `Fbank`.
        window_type: as for `Fbank`.
        preemphasis_coefficient: 0 to 1.
        cepstral_lifter: strength of the liftering; 0 for none.
        use_energy: put the log energy in the place of C0.
        deltas, normalize: see `Spectral`.
    """

    def __init__(
        self,
        num_ceps: int = 13,
        num_mel_bins: int = 23,
        sample_rate: int = 16000,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        low_freq: float = 20.0,
        high_freq: float = 0.0,
        window_type: str = "povey",
        preemphasis_coefficient: float = 0.97,
        cepstral_lifter: float = 22.0,
        use_energy: bool = False,
        deltas: int = 0,
        normalize: bool | str = False,
    ) -> None:
        if not 1 <= num_ceps <= num_mel_bins:
            raise ConfigError(f"num_ceps must be between 1 and num_mel_bins ({num_mel_bins}), got {num_ceps}.")
        super().__init__(
            size=num_ceps,
            sample_rate=sample_rate,
            frame_length=frame_length,
            frame_shift=frame_shift,
            window_type=window_type,
            preemphasis_coefficient=preemphasis_coefficient,
            remove_dc_offset=True,
            deltas=deltas,
            normalize=normalize,
        )
        self.use_energy = use_energy
        self._tables["bank"] = kaldi_mel_bank(num_mel_bins, self.fft_size, sample_rate, low_freq, high_freq)
        self._tables["dct"] = liftered_dct(num_mel_bins, num_ceps, cepstral_lifter)

    def features(self, frames: Tensor) -> Tensor:
        """Liftered cepstra of the log mel energies."""
        power, energy = self.spectrum(frames)
        cepstra = (power @ self.table("bank")).clamp(min=KALDI_EPSILON).log() @ self.table("dct")
        return torch.cat([energy[:, None], cepstra[:, 1:]], dim=1) if self.use_energy else cepstra


class Spectrogram(_Kaldi):
    """Kaldi log power spectrogram, equal to `torchaudio.compliance.kaldi.spectrogram` on 2**15 * waveform.

    The first bin holds the log energy of the window, as in compute-spectrogram-feats.

    Args:
        sample_rate: in Hz.
        frame_length, frame_shift: in milliseconds.
        window_type, preemphasis_coefficient, remove_dc_offset: as for `Fbank`.
        deltas, normalize: see `Spectral`.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        window_type: str = "povey",
        preemphasis_coefficient: float = 0.97,
        remove_dc_offset: bool = True,
        deltas: int = 0,
        normalize: bool | str = False,
    ) -> None:
        super().__init__(
            size=fft_size(int(sample_rate * frame_length * 0.001)) // 2 + 1,
            sample_rate=sample_rate,
            frame_length=frame_length,
            frame_shift=frame_shift,
            window_type=window_type,
            preemphasis_coefficient=preemphasis_coefficient,
            remove_dc_offset=remove_dc_offset,
            deltas=deltas,
            normalize=normalize,
        )

    def features(self, frames: Tensor) -> Tensor:
        """Log power of each FFT bin; the log energy in bin 0."""
        power, energy = self.spectrum(frames)
        return torch.cat([energy[:, None], power[:, 1:].clamp(min=KALDI_EPSILON).log()], dim=1)


class Mel(Spectral):
    """Plain log-mel: log of `torchaudio.transforms.MelSpectrogram(center=False)` of the waveform in [-1, 1].

    Periodic Hann window of `n_fft` samples, power spectrum, triangular filters, natural logarithm with a floor. It
    equals `librosa.feature.melspectrogram(center=False)` with the same `mel_scale` and `norm`. Windows are not centred,
    so that no frame reads past the clip.

    Args:
        num_mel_bins: number of filters.
        sample_rate: in Hz.
        n_fft: window and FFT length in samples.
        hop_length: in samples.
        low_freq, high_freq: edges of the filters in Hz; a `high_freq` of zero or less counts from half the sample rate.
        mel_scale: "htk" or "slaney" (librosa's default).
        norm: None, or "slaney" for filters of equal area (librosa's default).
        floor: smallest mel power before the logarithm.
        deltas, normalize: see `Spectral`.
    """

    def __init__(
        self,
        num_mel_bins: int = 80,
        sample_rate: int = 16000,
        n_fft: int = 400,
        hop_length: int = 160,
        low_freq: float = 0.0,
        high_freq: float = 0.0,
        mel_scale: str = "htk",
        norm: str | None = None,
        floor: float = 1e-10,
        deltas: int = 0,
        normalize: bool | str = False,
    ) -> None:
        super().__init__(
            window=n_fft, hop=hop_length, size=num_mel_bins, sample_rate=sample_rate, deltas=deltas, normalize=normalize
        )
        if floor <= 0:
            raise ConfigError(f"floor must be more than 0, got {floor}.")
        self.floor = floor
        self._tables["window"] = torch.hann_window(n_fft)
        self._tables["bank"] = mel_bank(num_mel_bins, n_fft, sample_rate, low_freq, high_freq, mel_scale, norm)

    def features(self, frames: Tensor) -> Tensor:
        """Natural logarithm of the mel power."""
        power = torch.fft.rfft(frames * self.table("window")).abs().pow(2)
        return (power @ self.table("bank")).clamp(min=self.floor).log()
