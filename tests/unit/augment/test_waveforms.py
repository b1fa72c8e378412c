"""Augmentations of waveforms against numbers computed another way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Chain, OneOf, With, clip_generator, integer, uniform
from mmssl.augment.level import BandLimit, Gain, LimitPeak, Polarity
from mmssl.augment.noise import AdditiveNoise, coloured_noise
from mmssl.augment.reverb import Reverberation, synthetic_response
from mmssl.augment.speed import PitchShift, SpeakerPerturbation, SpeedPerturbation, equalise, shift_pitch, warp_envelope
from mmssl.augment.time import TemporalCrop, TemporalShift
from mmssl.errors import ConfigError, DataError, InputError

RATE = 16000


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tone(frequency: float, size: int = RATE) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(size) / RATE)


def peak(x: Tensor) -> float:
    """Frequency of the highest peak, in Hz, from numpy's FFT of the middle half."""
    middle = x[len(x) // 4 : 3 * len(x) // 4].numpy()
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 8 * len(middle)))
    return float(power.argmax()) * RATE / (8 * len(middle))


def decibels(power: float) -> float:
    return 10 * math.log10(power)


ALL: list[Augmentation] = [
    AdditiveNoise(),
    AdditiveNoise((0, 10), [torch.randn(700, generator=draw())]),
    Reverberation(t60=(0.05, 0.1)),
    SpeedPerturbation((0.9, 1.1)),
    PitchShift(),
    SpeakerPerturbation(),
    BandLimit(),
    Gain(),
    Polarity(),
    LimitPeak(0.1),
    TemporalCrop(1000, 320),
    TemporalShift(500),
    With(0.5, Gain()),
    OneOf([Gain(), Polarity()]),
]


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("size", [4000, 300])
def test_what_comes_out_follows_the_generator_alone(augmentation: Augmentation, size: int) -> None:
    x = torch.randn(size, generator=draw(3)) * 0.2
    before, state = x.clone(), torch.get_rng_state()
    one, two = augmentation(x, draw(1)), augmentation(x, draw(1))
    assert torch.equal(one, two)
    assert torch.equal(x, before), "the clip was changed in place"
    assert torch.equal(state, torch.get_rng_state())
    assert one.dtype == torch.float32
    assert torch.isfinite(one).all()
    silent = augmentation(torch.zeros(size), draw(1))
    assert not silent.any()
    if not isinstance(augmentation, Polarity | LimitPeak) and not (
        isinstance(augmentation, TemporalCrop) and size < 1000
    ):
        assert any(not torch.equal(one, augmentation(x, draw(k))) for k in range(2, 9))


@pytest.mark.parametrize("augmentation", ALL[:-2], ids=lambda a: type(a).__name__)
def test_other_kinds_of_clips_are_refused(augmentation: Augmentation) -> None:
    with pytest.raises(InputError, match="takes"):
        augmentation(torch.zeros(2, 3, 4), draw()) if not isinstance(augmentation, With) else Gain()(
            torch.zeros(2, 2), draw()
        )


@pytest.mark.parametrize("snr", [-5.0, 0.0, 17.3, 40.0])
@pytest.mark.parametrize("kind", ["coloured", "long", "short"])
def test_the_measured_snr_is_the_one_asked_for(snr: float, kind: str) -> None:
    noise = {"coloured": None, "long": [3 * coloured_noise(9000, 1, draw(4))], "short": [torch.randn(777)]}[kind]
    x = torch.randn(5000, generator=draw(2)) * 0.1
    added = (AdditiveNoise((snr, snr), noise)(x, draw()).double() - x.double()).numpy()
    measured = decibels(float(np.mean(x.double().numpy() ** 2)) / float(np.mean(added**2)))
    assert abs(measured - snr) < 0.01


def test_noise_comes_from_files_at_their_own_rate(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hum.wav", tone(1000, 8000).numpy()[:4000], 8000)  # 500 Hz when played at 8 kHz
    noisy = AdditiveNoise((0, 0), [str(tmp_path / "hum.wav")])(0.01 * tone(3000), draw())
    assert abs(peak(noisy - 0.01 * tone(3000)) - 500) < 5


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_spectrum_of_coloured_noise_falls_as_asked(exponent: float) -> None:
    power = sum(torch.fft.rfft(coloured_noise(4096, exponent, draw(k))).abs().square() for k in range(40)).numpy()
    index = np.arange(8, 2000)
    slope = np.polyfit(np.log(index), np.log(power[8:2000]), 1)[0]
    assert abs(slope + exponent) < 0.06
    assert abs(float(coloured_noise(999, exponent, draw()).square().mean()) - 1) < 1e-5


def test_a_room_keeps_place_and_level() -> None:
    click = torch.zeros(4000)
    click[1234] = 0.5
    wet = Reverberation(t60=(0.1, 0.1), direct=(6, 6))(click, draw())
    assert int(wet.abs().argmax()) == 1234
    assert float(wet[:1234].abs().max()) < 1e-5
    assert torch.allclose(wet.square().mean(), click.square().mean(), rtol=1e-4)
    # a response whose direct sound comes late, against numpy's convolution
    response = torch.cat([torch.zeros(37), synthetic_response(0.05, 3, RATE, draw(1))])
    x = torch.randn(2000, generator=draw(2))
    expected = np.convolve(x.double().numpy(), response.double().numpy())[37:2037]
    expected *= np.sqrt(np.mean(x.numpy() ** 2) / np.mean(expected**2))
    assert np.allclose(Reverberation([response])(x, draw()).numpy(), expected, atol=1e-4)


def test_a_synthetic_room_decays_by_60_db() -> None:
    curves = []
    for seed in range(20):
        tail = synthetic_response(0.4, 0, RATE, draw(seed))[1:].double()
        assert abs(float(tail.square().sum()) - 1) < 1e-5  # direct sound and tail of equal energy: 0 dB
        curves.append(tail.square())
    power = torch.stack(curves).mean(0)
    early, late = power[:320].mean(), power[3200:3520].mean()  # 0.2 s apart: half of t60
    assert abs(decibels(float(early / late)) - 30) < 1.5


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 1.37])
@pytest.mark.parametrize("size", [16000, 12345])
def test_speed_moves_frequencies_and_length(factor: float, size: int) -> None:
    out = SpeedPerturbation([factor])(tone(1000, size), draw())
    assert len(out) == math.ceil(size / factor - 1e-9)
    assert abs(peak(out) - 1000 * factor) < 2
    assert abs(float(out[500:-500].abs().max()) - 0.5) < 0.01


def test_all_factors_of_speed_are_drawn() -> None:
    sizes = [len(SpeedPerturbation()(torch.zeros(990), draw(k))) for k in range(300)]
    assert set(sizes) == {1100, 990, 900}
    assert all(70 < sizes.count(size) < 130 for size in set(sizes))


@pytest.mark.parametrize("semitones", [-7.0, -1.0, 0.0, 3.0, 12.0])
def test_pitch_moves_by_semitones_at_the_same_length(semitones: float) -> None:
    out = PitchShift((semitones, semitones))(tone(1000, 16001), draw())
    assert len(out) == 16001
    assert abs(peak(out) / 1000 / 2 ** (semitones / 12) - 1) < 0.006  # a tenth of a semitone


def vowel(pitch: float, formant: float) -> Tensor:
    """Harmonics of a pitch under a resonance."""
    time = torch.arange(RATE) / RATE
    partials = torch.arange(1, int(7000 / pitch) + 1) * pitch
    levels = torch.exp(-0.5 * ((partials - formant) / 400) ** 2) + 0.003
    waves = levels[:, None] * torch.cos(2 * math.pi * partials[:, None] * time + partials[:, None])
    return 0.2 * waves.sum(0) / waves.sum(0).abs().max()


def fundamental(x: Tensor) -> float:
    """Pitch between 80 and 320 Hz by autocorrelation, in Hz."""
    y = x[4000:12000].numpy()
    spectrum = np.abs(np.fft.rfft(y, 2 * len(y))) ** 2
    correlation = np.fft.irfft(spectrum)[: RATE // 80]
    return RATE / (50 + float(correlation[50:].argmax()))


def centre(x: Tensor) -> float:
    """Power-weighted mean frequency, in Hz."""
    power = np.abs(np.fft.rfft(x[4000:12000].numpy())) ** 2
    return float((power * np.fft.rfftfreq(8000, 1 / RATE)).sum() / power.sum())


def test_formants_move_without_the_pitch_and_pitch_without_the_formants() -> None:
    x = vowel(120, 1500)
    for factor in (1.3, 1 / 1.3):
        moved = warp_envelope(x, factor, RATE)
        assert abs(fundamental(moved) - fundamental(x)) < 2
        assert abs(centre(moved) / centre(x) / factor - 1) < 0.08
        shifted = warp_envelope(shift_pitch(x, factor), 1 / factor, RATE)
        assert abs(fundamental(shifted) / fundamental(x) / factor - 1) < 0.02
        assert abs(centre(shifted) / centre(x) - 1) < 0.1


def test_another_speaker_keeps_length_level_and_place() -> None:
    x = torch.zeros(RATE)
    x[6000:10000] = vowel(150, 1200)[:4000]
    for seed in range(4):
        out = SpeakerPerturbation()(x, draw(seed))
        assert torch.allclose(out.square().mean(), x.square().mean(), rtol=1e-3)
        inside = float(out[5400:10600].square().sum() / out.square().sum())
        assert inside > 0.97
    assert torch.allclose(SpeakerPerturbation(1, 1, 0)(x, draw()), x, atol=1e-6)


def test_the_equaliser_stays_within_its_gains() -> None:
    noise = torch.randn(RATE, generator=draw(1))
    out = equalise(noise, 12.0, RATE, draw(2))
    ratio = (torch.fft.rfft(out).abs() / torch.fft.rfft(noise).abs()).numpy()
    smooth = np.convolve(ratio, np.ones(50) / 50, mode="valid")[50:-50]
    assert 20 * np.log10(smooth.max()) < 25
    assert 20 * np.log10(smooth.max() / smooth.min()) > 3
    assert torch.allclose(equalise(noise, 0.0, RATE, draw(2)), noise, atol=1e-4)


def test_a_band_is_left_and_the_rest_is_gone() -> None:
    band = BandLimit((300, 300), (3400, 3400), RATE)
    for frequency, expected in ((100, None), (180, None), (450, 0.5), (1000, 0.5), (3250, 0.5), (3520, None)):
        out = band(tone(frequency), draw())[2000:-2000].double()
        level = 20 * math.log10(float(out.abs().max()) / 0.5)
        assert (level < -40) if expected is None else abs(level) < 0.05, (frequency, level)
    # no delay: what is left lies on the tone
    assert torch.allclose(band(tone(1000), draw())[2000:-2000], tone(1000)[2000:-2000], atol=2e-3)
    low = BandLimit((0, 0), (3400, 3400))(torch.ones(4000), draw())
    assert torch.allclose(low[500:-500], torch.ones(3000), atol=1e-3)
    high = BandLimit((300, 300), (8000, 8000))(torch.ones(4000), draw())
    assert float(high[500:-500].abs().max()) < 1e-2
    everything = torch.randn(500)
    assert torch.equal(BandLimit((0, 0), (8000, 8000))(everything, draw()), everything)


def test_levels() -> None:
    x = torch.randn(100)
    assert torch.allclose(Gain((6, 6))(x, draw()), x * 1.9952623, rtol=1e-5)
    assert torch.equal(Polarity()(x, draw()), -x)
    loud = LimitPeak(0.9)(x * 10, draw())
    assert abs(float(loud.abs().max()) - 0.9) < 1e-6
    assert torch.allclose(loud / loud[0], x / x[0], rtol=1e-4)
    quiet = torch.full((3,), 0.2)
    assert torch.equal(LimitPeak()(quiet, draw()), quiet)


def test_crops_and_shifts_of_time() -> None:
    x = torch.arange(1, 1001).float()
    starts = {int(TemporalCrop(400, 100)(x, draw(k))[0]) - 1 for k in range(200)}
    assert starts == {0, 100, 200, 300, 400, 500, 600}
    assert torch.equal(TemporalCrop(2000)(x, draw()), x)
    seen = set()
    for seed in range(200):
        out = TemporalShift(3)(x[:10], draw(seed))
        kept = out[out != 0]
        shift = int((out != 0).nonzero()[0]) - int(kept[0]) + 1
        assert torch.equal(kept, x[:10][max(-shift, 0) : 10 - max(shift, 0)])  # nothing comes back at the other end
        seen.add(shift)
    assert seen == {-3, -2, -1, 0, 1, 2, 3}
    video = torch.rand(6, 3, 4, 4)
    assert TemporalShift(2)(video, draw()).shape == video.shape


def test_chains_and_probabilities() -> None:
    x = torch.ones(4)
    both = Chain([Gain((20, 20)), Polarity()])
    assert torch.allclose(both(x, draw()), -10 * x)
    assert torch.equal(Chain([])(x, draw()), x)
    flips = sum(float(With(0.3, Polarity())(x, draw(k))[0]) < 0 for k in range(2000))
    assert abs(flips / 2000 - 0.3) < 0.04
    assert torch.equal(With(0, Polarity())(x, draw()), x)
    assert torch.equal(With(1, Polarity())(x, draw()), -x)
    values = [uniform(2, 3, clip_generator(5, k)) for k in range(1000)]
    assert 2 <= min(values) < 2.02
    assert 2.98 < max(values) < 3
    assert {integer(1, 3, draw(k)) for k in range(50)} == {1, 2, 3}


def test_bad_settings_are_refused() -> None:
    for build in (
        lambda: AdditiveNoise((10, 0)),
        lambda: AdditiveNoise((0, 5), []),
        lambda: AdditiveNoise((0, 5), None, (0, 9)),
        lambda: Reverberation(t60=(0, 0.5)),
        lambda: Reverberation([]),
        lambda: SpeedPerturbation([]),
        lambda: SpeedPerturbation([0.01]),
        lambda: PitchShift((3, -3)),
        lambda: SpeakerPerturbation(formant=0.5),
        lambda: BandLimit((0, 4000), (3000, 5000)),
        lambda: BandLimit((0, 100), (3000, 9000)),
        lambda: BandLimit(transition=0),
        lambda: Gain((1,)),  # type: ignore[arg-type]
        lambda: LimitPeak(0),
        lambda: With(1.5, Polarity()),
        lambda: OneOf([]),
        lambda: TemporalCrop(0),
        lambda: TemporalShift(-1),
        lambda: synthetic_response(0.0, 0.0, RATE, draw()),
    ):
        with pytest.raises(ConfigError):
            build()
    for bad in (torch.zeros(10), torch.randn(2, 10), torch.tensor([1.0, math.nan])):
        with pytest.raises(DataError, match="noise clip number 0"):
            AdditiveNoise((0, 5), [bad])
