"""What the three scorers of trials share."""

from __future__ import annotations

import numpy as np
import pytest

from mmssl.data.folds import Fold
from mmssl.data.trials import Trials
from mmssl.errors import ConfigError, DataError, InputError
from mmssl.metrics.speaker_bootstrap import speaker_bootstrap
from mmssl.metrics.verification import eer, min_dcf
from mmssl.stages.trial_scores import (
    COLUMNS,
    check_methods,
    intervals,
    judged,
    speaker_numbers,
    speakers_of,
    trained_speakers,
)
from mmssl.types import Clip

SPEAKERS = {f"{name}{k}": name for name in "abcdef" for k in range(3)}


def all_pairs(speakers: dict[str, str]) -> Trials:
    pairs = [(x, y) for x in speakers for y in speakers if x < y]
    return Trials(
        tuple(x for x, _ in pairs), tuple(y for _, y in pairs), tuple(speakers[x] == speakers[y] for x, y in pairs)
    )


def test_scores_are_judged_with_intervals_over_speakers() -> None:
    trials = all_pairs(SPEAKERS)
    target = np.array(trials.is_target)
    scores = np.random.default_rng(0).normal(size=len(trials)) + target
    found = judged(scores, trials, SPEAKERS, 50)
    assert found["metrics"] == {
        "eer": eer(scores, target),
        "min_dcf_p01": min_dcf(scores, target, 0.01),
        "min_dcf_p05": min_dcf(scores, target, 0.05),
    }
    assert [name for name, _, _ in COLUMNS] == list(found["metrics"]) == list(found["intervals"])
    first, second = ([clip[0] for clip in side] for side in (trials.enrol, trials.test))
    assert found["intervals"] == speaker_bootstrap(scores, target, first, second, num_samples=50)
    assert judged(scores, trials, SPEAKERS, 0)["intervals"] == {}


def test_there_is_no_interval_of_too_few_speakers() -> None:
    two = {clip: name for clip, name in SPEAKERS.items() if name in "ab"}
    trials = all_pairs(two)
    scores = np.arange(len(trials), dtype=float)
    found = judged(scores, trials, two, 20)
    assert set(found) == {"metrics", "intervals"}
    assert found["intervals"] == {}
    # three speakers and two trials: most draws lack one of them
    target, sides = np.array([True, False]), (["a", "b"], ["a", "c"])
    scores = np.arange(2.0)
    with pytest.raises(InputError, match="too few speakers"):
        speaker_bootstrap(scores, target, *sides, ("eer",), num_samples=200)
    assert intervals([(scores, ["eer"]), (scores, ["cllr"])], target, sides, 200) == {}


def test_training_speakers_have_the_first_numbers() -> None:
    train = ["d0", "b2", "d1"]
    numbers, count = speaker_numbers(SPEAKERS, train)
    assert numbers == {"b": 0, "d": 1, "a": 2, "c": 3, "e": 4, "f": 5}
    assert count == 2


def test_speakers_that_were_trained_on_are_said() -> None:
    trials = Trials(("a0", "a0"), ("a1", "b0"), (True, False))
    assert trained_speakers(trials, SPEAKERS, Fold("f", ("c0",), ("d0",), ("a0", "a1", "b0"))) == []
    said = trained_speakers(trials, SPEAKERS, Fold("f", ("c0", "b1"), ("a2",), ("a0", "a1", "b0")))
    assert said == ["2 speakers of the trials were trained on, among them a."]


def test_mistakes() -> None:
    assert speakers_of([Clip("x", audio="x.wav", speaker="s")]) == {"x": "s"}
    with pytest.raises(DataError, match="1 clips have no speaker, among them 'y'"):
        speakers_of([Clip("x", audio="x.wav", speaker="s"), Clip("y", audio="y.wav")])
    check_methods("a.methods", ["cosine"], ("cosine", "plda"))
    with pytest.raises(
        ConfigError, match=r"a\.methods: there is no 'cosin'. Did you mean 'cosine'\? Known: cosine, plda"
    ):
        check_methods("a.methods", ["cosin"], ("cosine", "plda"))
