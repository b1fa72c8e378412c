from __future__ import annotations

import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from mmssl.errors import MediaError
from mmssl.media.espeak import Request, Utterance, synthesize

REQUEST = Request("The window is open.", "en+f5", seed=3)


def same(one: Utterance, other: Utterance) -> bool:
    return np.array_equal(one.samples, other.samples) and one.phones == other.phones


def test_an_utterance_depends_on_its_request_alone() -> None:
    alone = synthesize([REQUEST])[0]
    among = synthesize([Request("Something else.", "en+m1", rate=120), REQUEST, REQUEST])
    assert same(alone, among[1])
    assert same(alone, among[2])
    assert not same(alone, synthesize([replace(REQUEST, seed=4)])[0])
    results: list[Utterance] = []
    threads = [threading.Thread(target=lambda: results.extend(synthesize([REQUEST]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(same(alone, result) for result in results)


def test_phones_come_in_order_within_the_samples() -> None:
    utterance = synthesize([REQUEST])[0]
    assert utterance.sample_rate == 22_050
    starts = [start for start, _ in utterance.phones]
    assert starts == sorted(starts)
    assert starts[0] >= 0
    assert starts[-1] <= len(utterance.samples)
    said = [symbol.strip("ˈ") for _, symbol in utterance.phones if symbol]
    assert said[:5] == ["ð", "ə", "w", "ɪ", "n"]


def test_parameters_are_heard() -> None:
    slow, fast = synthesize([replace(REQUEST, rate=120), replace(REQUEST, rate=240)])
    assert len(slow.samples) > 1.4 * len(fast.samples)
    low, high = synthesize([replace(REQUEST, voice="en", pitch=20), replace(REQUEST, voice="en", pitch=80)])
    assert pitch(high) > 1.4 * pitch(low)


def pitch(utterance: Utterance) -> float:
    samples = utterance.samples.astype(float)
    spectrum = np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2
    autocorrelation = np.fft.irfft(spectrum)
    shortest, longest = utterance.sample_rate // 300, utterance.sample_rate // 50
    return utterance.sample_rate / (shortest + int(np.argmax(autocorrelation[shortest:longest])))


def test_the_library_stays_out_of_this_process() -> None:
    synthesize([REQUEST])
    assert "espeakng_loader" not in sys.modules


def test_an_unknown_voice_is_named() -> None:
    for voice in ("en+nobody", "xx-nowhere"):
        with pytest.raises(MediaError, match=f"no voice '{voice}'".replace("+", r"\+")):
            synthesize([replace(REQUEST, voice=voice)])
