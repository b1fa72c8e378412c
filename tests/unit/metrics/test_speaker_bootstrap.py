from __future__ import annotations

import numpy as np
import pytest

from mmssl.errors import ConfigError, InputError
from mmssl.metrics.speaker_bootstrap import speaker_bootstrap
from mmssl.metrics.verification import eer


def trials(num_speakers: int, per_pair: int, spread: float, seed: int = 0):
    """All pairs of speakers, several trials each; every pair has its own level, so that its trials are alike."""
    generator = np.random.default_rng(seed)
    first, second = (m.ravel().repeat(per_pair) for m in np.meshgrid(range(num_speakers), range(num_speakers)))
    keep = first <= second
    first, second = first[keep], second[keep]
    level = generator.normal(size=(num_speakers, num_speakers)) * spread
    scores = level[first, second] + 2.0 * (first == second) + generator.normal(size=len(first)) * 0.1
    return scores, first == second, first, second


def test_repeated_trials_of_the_same_speakers_do_not_narrow_it() -> None:
    few, many = (speaker_bootstrap(*trials(20, n, 1.0), ["eer"], 300)["eer"] for n in (1, 10))
    widths = few[1] - few[0], many[1] - many[0]
    assert widths[1] > 0.7 * widths[0] > 0.05


def test_more_speakers_narrow_it_and_it_holds_the_value() -> None:
    for num_speakers, most in ((10, 1.0), (80, 0.12)):
        scores, labels, first, second = trials(num_speakers, 1, 1.0)
        low, high = speaker_bootstrap(scores, labels, first, second, ["eer"], 300)["eer"]
        assert low <= eer(scores, labels) <= high
        assert high - low < most


def test_default_metrics_seed_and_names_as_speakers() -> None:
    scores, labels, first, second = trials(9, 2, 1.0)
    names = np.array([f"id{i}" for i in range(9)])
    found = speaker_bootstrap(scores, labels, names[first], names[second], num_samples=30)
    assert list(found) == ["eer", "min_dcf_p01", "min_dcf_p05"]
    assert found == speaker_bootstrap(scores, labels, names[first], names[second], num_samples=30)
    assert found != speaker_bootstrap(scores, labels, names[first], names[second], num_samples=30, seed=1)
    assert speaker_bootstrap(scores + 100 * labels, labels, first, second, num_samples=30)["eer"] == (0, 0)


def test_mistakes_are_named() -> None:
    scores, labels, first, second = trials(4, 1, 1.0)
    with pytest.raises(InputError, match="label that their speakers contradict"):
        speaker_bootstrap(scores, ~labels, first, second)
    with pytest.raises(InputError, match="two speakers per trial"):
        speaker_bootstrap(scores, labels, first[1:], second)
    with pytest.raises(InputError, match="at least three, the trials have 2"):
        speaker_bootstrap([0, 1], [True, False], ["a", "a"], ["a", "b"])
    with pytest.raises(ConfigError, match="Did you mean 'cllr'"):
        speaker_bootstrap(scores, labels, first, second, ["clr"])
    with pytest.raises(ConfigError, match="does not end in a prior"):
        speaker_bootstrap(scores, labels, first, second, ["min_dcf_pxx"])
    with pytest.raises(ConfigError, match="level"):
        speaker_bootstrap(scores, labels, first, second, level=95)
