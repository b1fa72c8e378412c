"""Parts of recipes/spk: files to speakers, splits, trial lists and what is wrong with them, margins, baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.data.trials import Trials
from mmssl.errors import ConfigError, DataError, InputError, MediaError
from mmssl.media.silence import speech_extent
from mmssl.metrics.speaker_bootstrap import speaker_bootstrap
from mmssl.metrics.verification import eer
from mmssl.stages.spk_corpus import pooled, speaker_files, with_splits
from mmssl.stages.spk_embed import Embedded, batches, read_embedded, write_embedded
from mmssl.stages.spk_margin import eer_margin
from mmssl.stages.spk_prepare import check_disjoint, check_list, make_lists
from mmssl.stages.spk_score import QualityRange, Scorer, Side
from mmssl.stages.spk_silence import trimmed
from mmssl.stages.trial_scores import det_curve
from mmssl.types import Clip

RNG = np.random.default_rng(0)


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(1600) / 10), 16000)


def clips(names: Sequence[str], each: int = 3, split: str | None = None) -> list[Clip]:
    return [Clip(f"{name}-{k}", audio="x.wav", speaker=name, split=split) for name in names for k in range(each)]


def test_files_name_their_speakers(tmp_path: Path) -> None:
    for name in ("anna/one.wav", "anna/deep/two.flac", "b 2/one.wav"):
        sound(tmp_path / name)
    (tmp_path / "anna" / "notes.txt").write_text("no sound")
    found = speaker_files(tmp_path)
    assert [(clip.id, clip.speaker) for clip in found] == [
        ("anna/deep/two.flac", "anna"),
        ("anna/one.wav", "anna"),
        ("b_2/one.wav", "b 2"),
    ]
    assert found[0].labels == {"speaker": "anna"}
    named = speaker_files(tmp_path, "mine", "*/*.wav", r"^(\w)\w*(?: (\d))?/")
    assert [(clip.id, clip.speaker) for clip in named] == [
        ("mine/anna/one.wav", "mine-a"),
        ("mine/b_2/one.wav", "mine-b-2"),
    ]
    assert named[0].labels == {"speaker": "mine-a", "corpus": "mine"}


def test_files_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        speaker_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no sound file"):
        speaker_files(tmp_path)
    sound(tmp_path / "loose.wav")
    with pytest.raises(DataError, match=r"'loose.wav' names no speaker .* a folder for each speaker"):
        speaker_files(tmp_path)
    for wrong, message in (("(", "cannot be read"), ("a", "needs a group")):
        with pytest.raises(ConfigError, match=message):
            speaker_files(tmp_path, speaker=wrong)
    sound(tmp_path / "a b" / "x.wav")
    sound(tmp_path / "a_b" / "x.wav")
    with pytest.raises(DataError, match=r"have the same id 'a_b/x.wav'"):
        speaker_files(tmp_path, files="*/*.wav")


def test_splits_are_of_whole_speakers() -> None:
    corpus = clips(["s1", "s10", "s2", "s9", "s3"])
    parts = {clip.speaker: clip.split for clip in with_splits(corpus)}
    # a third of five, rounded up to an even number, the last in natural order
    assert parts == {"s1": "train", "s2": "train", "s3": "train", "s9": "test", "s10": "test"}
    parts = {clip.speaker: clip.split for clip in with_splits(corpus, ["s1"], 2)}
    assert parts == {"s1": "test", "s2": "train", "s3": "train", "s9": "dev", "s10": "dev"}
    with pytest.raises(ConfigError, match=r"no speaker 's11'. Did you mean 's1"):
        with_splits(corpus, ["s11"])
    with pytest.raises(ConfigError, match="there are 5 speakers"):
        with_splits(corpus, 6)
    with pytest.raises(ConfigError, match=r"write \[s1\]"):
        with_splits(corpus, "s1")


def test_a_pool_of_corpora(tmp_path: Path) -> None:
    for name in ("a/x/1.wav", "a/y/1.wav", "b/7_kim_0.wav", "b/7_lee_0.wav"):
        sound(tmp_path / name)
    sources = {"a": {"path": "a", "test_speakers": ["y"]}, "b": {"path": "b", "speaker": "_(\\w+)_"}, "c": None}
    found = pooled(sources, tmp_path, tmp_path)
    assert [(c.speaker, c.split) for c in found] == [
        ("a-x", "train"),
        ("a-y", "test"),
        ("b-kim", "train"),
        ("b-lee", "train"),
    ]
    with pytest.raises(ConfigError, match=r"no key 'paths'. Did you mean 'path'"):
        pooled({"a": {"paths": "a"}}, tmp_path, tmp_path)


def test_lists_within_each_corpus() -> None:
    corpus = [
        Clip(f"{name}-{k}", speaker=name, labels={"corpus": name[0]})
        for name in ("a1", "a2", "b1", "b2", "c1")
        for k in "12"
    ]
    settings = {"within": "corpus", "per_speaker": 5, "seed": 0}
    lists = make_lists(corpus, settings)
    assert list(lists) == ["a", "b"]  # of one speaker no trials can be made
    for name, trials in lists.items():
        assert {clip[0] for clip in (*trials.enrol, *trials.test)} == {name}
        assert 0 < sum(trials.is_target) < len(trials)
    with pytest.raises(DataError, match="No trials can be made"):
        make_lists(corpus[-2:], settings)
    with pytest.raises(DataError, match=r"has no such label. Did you mean 'corpus'"):
        make_lists(corpus, settings | {"within": "corpora"})


def burst(path: Path, silence: tuple[float, float], seconds: float = 1.0, rate: int = 16000) -> None:
    """Loud noise between two stretches of noise 60 dB below it."""
    rng = np.random.default_rng(1)
    before, loud, after = (int(s * rate) for s in (silence[0], seconds, silence[1]))
    wave = 1e-4 * rng.standard_normal(before + loud + after)
    wave[before : before + loud] = 0.1 * rng.standard_normal(loud)
    soundfile.write(path, wave, rate, subtype="FLOAT")


def test_silence_at_both_ends_is_found() -> None:
    rng = np.random.default_rng(2)
    wave = 1e-4 * rng.standard_normal(24000)
    wave[6400:8000] = wave[12000:16000] = 0.1
    # frames of 80 samples at 8 kHz, smoothed over three, and 50 ms on both sides; the gap inside stays
    assert speech_extent(wave, 8000, 30) == pytest.approx((0.79 - 0.05, 2.01 + 0.05))
    # neither the level nor a click decides
    clicked = 1e-3 * wave
    clicked[20000] = 1.0
    assert speech_extent(clicked[:18000], 8000, 30) == speech_extent(wave[:18000], 8000, 30)
    assert speech_extent(np.ones(8000), 8000, 30) == (0.0, 1.0)
    assert speech_extent(np.ones(50), 8000, 30) == (0.0, 50 / 8000)
    with pytest.raises(ConfigError, match="trim_silence must be above 0 dB"):
        speech_extent(wave, 8000, 0)
    with pytest.raises(DataError, match="without samples"):
        speech_extent([], 8000, 30)


def test_clips_are_trimmed_within_their_segment(tmp_path: Path) -> None:
    burst(tmp_path / "a.wav", (0.5, 0.3))
    soundfile.write(tmp_path / "zeros.wav", np.zeros(8000), 16000)
    whole, late = (
        Clip("a", audio=str(tmp_path / "a.wav")),
        Clip("b", audio=str(tmp_path / "a.wav"), start=0.7, duration=1.0),
    )
    found, left_out = trimmed([whole, Clip("z", audio=str(tmp_path / "zeros.wav")), late], 30, "skip")
    # a smoothed frame is loud where its neighbour is
    assert [(c.id, round(c.start, 2), round(c.duration or 0, 2)) for c in found] == [
        ("a", 0.44, 1.12),
        ("b", 0.7, 0.86),
    ]
    assert list(left_out) == ["z"]
    with pytest.raises(MediaError, match=r"data.on_error=skip"):
        trimmed([Clip("z", audio=str(tmp_path / "zeros.wav"))], 30, "raise")


PARTS = {"train": clips(["t1", "t2"]), "dev": clips(["d1", "d2"]), "test": clips(["x", "y"])}
SPEAKERS = {clip.id: str(clip.speaker) for part in PARTS.values() for clip in part}


def test_wrong_trial_lists_are_refused() -> None:
    good = Trials(("x-0", "x-0"), ("x-1", "y-0"), (True, False))
    assert check_list("mine", good, PARTS, SPEAKERS) == {
        "trials": 2,
        "targets": 1,
        "speakers": 2,
        "clips": 3,
        "notes": [],
    }
    missing = Trials(("x-0", "x-0"), ("x-1", "z-0"), (True, False))
    with pytest.raises(DataError, match=r"data/trials/mine.txt: 1 clips of the trial list are not among .*z-0"):
        check_list("mine", missing, PARTS, SPEAKERS)
    with pytest.raises(DataError, match="error rates need both"):
        check_list("mine", Trials(("x-0",), ("x-1",), (True,)), PARTS, SPEAKERS)
    with pytest.raises(DataError, match="contradict"):
        check_list("mine", Trials(("x-0", "x-0"), ("x-1", "y-0"), (False, True)), PARTS, SPEAKERS)
    known = Trials(("x-0", "x-0"), ("x-1", "t1-0"), (True, False))
    with pytest.raises(DataError, match="1 speakers of the trials are in training or development: t1"):
        check_list("mine", known, PARTS, SPEAKERS)
    twice = Trials(("x-0", "x-0", "x-0"), ("x-1", "x-1", "y-0"), (True, True, False))
    assert check_list("mine", twice, PARTS, SPEAKERS)["notes"] == ["1 of 3 trials repeat another one and count again."]


def test_speakers_in_two_parts_are_refused() -> None:
    check_disjoint(PARTS)
    with pytest.raises(DataError, match="1 speakers are both in train and in test: x"):
        check_disjoint(PARTS | {"train": [*PARTS["train"], *clips(["x"])]})


def vectors(speakers: Sequence[str], size: int = 4) -> Embedded:
    count = len(speakers)
    values = RNG.standard_normal((count, size)).astype(np.float32)
    ids = tuple(f"c{k}" for k in range(count))
    log_mel = RNG.standard_normal((count, 3)).astype(np.float32)
    return Embedded(ids, tuple(speakers), np.full(count, 2, np.float32), values, values, log_mel)


def test_embeddings_come_back_equal(tmp_path: Path) -> None:
    given = vectors(["a", "b", "ü"])
    write_embedded(tmp_path / "part.npz", given)
    found = read_embedded(tmp_path / "part.npz")
    assert (found.ids, found.speakers) == (given.ids, given.speakers)
    for name in ("seconds", "embeddings", "whole", "log_mel"):
        assert np.array_equal(getattr(found, name), getattr(given, name))


def test_batches_hold_every_clip_once() -> None:
    corpus = clips(["a", "b"], 5)
    seconds = [3.0, 0.5, 9.0, 1.0, 0.5, 0.5, 2.0, 1.0, 4.0, 0.1]
    found = list(batches(corpus, seconds, 4.0))
    assert sorted(c.id for batch in found for c in batch) == sorted(c.id for c in corpus)
    of = dict(zip((c.id for c in corpus), seconds, strict=True))
    assert all(len(batch) == 1 or len(batch) * max(of[c.id] for c in batch) <= 4.0 for batch in found)


def test_scores_of_the_baseline_against_plain_sums() -> None:
    train, test = vectors(["a", "b", "b"]), vectors(["x", "x", "y"])
    side = Side(test, Trials(("c0", "c0"), ("c1", "c2"), (True, False)))
    scorer = Scorer(train, 300)
    for method, rows in (
        ("cosine", test.whole),
        ("log_mel", test.log_mel),
        ("log_mel_standardized", (test.log_mel - train.log_mel.mean(0)) / train.log_mel.std(0)),
    ):
        wanted = [rows[0] @ rows[k] / np.sqrt((rows[0] @ rows[0]) * (rows[k] @ rows[k])) for k in (1, 2)]
        assert np.allclose(scorer(method, side), wanted, atol=1e-5)
    assert side.speakers == (["x", "x"], ["x", "y"])
    assert scorer("qmf", side).shape == (2, 7)


def test_quality_measures_stay_in_the_range_of_development() -> None:
    dev = np.array([[0.1, 3.0, 1.0], [0.9, 3.0 + 1e-9, 2.0], [0.5, 3.0, 1.5]])
    limited = QualityRange(dev)
    # the score goes through as it is, what hardly varies is left out, the rest ends where development ends
    found = limited(np.array([[5.0, 8.0, 0.0], [-5.0, 3.0, 9.0], [0.0, 1.0, 1.2]]))
    assert found.tolist() == [[5.0, 1.0], [-5.0, 2.0], [0.0, 1.2]]
    scores = np.array([0.3, 0.3])
    assert QualityRange(scores)(scores) is scores


def trial_table(count: int = 300) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    speakers = [f"s{k}" for k in range(8)]
    pairs = [(speakers[a], speakers[b]) for a, b in RNG.integers(0, 8, (count, 2))]
    target = np.array([a == b for a, b in pairs])
    scores = np.round(RNG.standard_normal(count) + target, 1)  # ties
    return scores, target, [a for a, _ in pairs], [b for _, b in pairs]


def test_margin_uses_the_draws_of_the_bootstrap() -> None:
    scores, target, enrol, test = trial_table()
    # against a system that is always right, the difference is minus the EER itself, draw for draw
    low, high = eer_margin(scores, target.astype(float), target, enrol, test, num_samples=50)
    wanted = speaker_bootstrap(scores, target, enrol, test, ["eer"], num_samples=50)["eer"]
    assert (low, high) == pytest.approx((-wanted[1], -wanted[0]))
    assert eer_margin(scores, scores, target, enrol, test, num_samples=20) == (0.0, 0.0)


def test_margin_against_a_slow_computation() -> None:
    scores, target, enrol, test = trial_table(120)
    other = scores + 0.5 * RNG.standard_normal(120)
    low, high = eer_margin(scores, other, target, enrol, test, num_samples=40, seed=3)
    names = sorted({*enrol, *test})
    gains = []
    for draw in np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=40):
        times = dict(zip(names, draw, strict=True))
        rows = [k for k in range(120) for _ in range(times[enrol[k]] * (1 if target[k] else times[test[k]]))]
        if 0 < target[rows].sum() < len(rows):
            gains.append(eer(other[rows], target[rows]) - eer(scores[rows], target[rows]))
    assert (low, high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])))


def test_margin_needs_three_speakers() -> None:
    with pytest.raises(InputError, match="at least three"):
        eer_margin([1.0, 0.0], [1.0, 0.0], [True, False], ["a", "a"], ["a", "b"])


def test_the_det_curve_keeps_its_ends_and_its_shape() -> None:
    scores, target, _, _ = trial_table(3000)
    alarms, misses = det_curve(scores, target)
    assert (alarms[0], misses[0], alarms[-1], misses[-1]) == (1.0, 0.0, 0.0, 1.0)
    crossing = min(max(a, m) for a, m in zip(alarms, misses, strict=True))
    assert crossing == pytest.approx(eer(scores, target), abs=0.03)
