from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.errors import ConfigError, DataError, InputError
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.store import FeatureStore
from mmssl.probing.leakage import _deal, leakage, store_leakage
from mmssl.stages.cli import main
from mmssl.types import Clip


def vectors(strength: float, speakers: int = 6, clips: int = 10, size: int = 8) -> tuple[np.ndarray, list[str]]:
    generator = np.random.default_rng(0)
    voices = generator.normal(size=(speakers, size))
    truth = np.repeat(np.arange(speakers), clips)
    return strength * voices[truth] + generator.normal(size=(len(truth), size)), [f"s{k}" for k in truth]


def test_it_finds_what_is_there_and_nothing_else() -> None:
    clear, nothing = leakage(*vectors(5.0)), leakage(*vectors(0.0))
    assert clear.accuracy > 0.95
    assert nothing.accuracy < 0.35
    assert nothing.chance == clear.chance == pytest.approx(1 / 6)
    for found in (clear, nothing):
        assert found.interval[0] <= found.accuracy <= found.interval[1]
        assert (found.num_clips, found.num_speakers) == (60, 6)
        assert found.correct.mean() == found.accuracy
    assert leakage(*vectors(0.5)).accuracy < clear.accuracy


def test_the_interval_is_that_of_speakers_drawn_anew() -> None:
    features, speakers = vectors(1.0)
    found = leakage(features, speakers, num_samples=4000, seed=3)
    names = np.unique(speakers)
    generator = np.random.default_rng(9)
    shares = [found.correct[np.asarray(speakers) == name].mean() for name in names]
    drawn = [np.mean(generator.choice(shares, len(names))) for _ in range(4000)]
    assert found.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_no_clip_is_judged_by_a_probe_that_saw_it() -> None:
    """Vectors of pure noise, one for each clip and known by heart: a probe that saw them would be right."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(60, 200))
    speakers = [f"s{k % 6}" for k in range(60)]
    assert leakage(features, speakers).accuracy < 0.4


def test_every_speaker_is_in_as_many_folds_as_it_can() -> None:
    truth = np.array([0] * 7 + [1] * 2 + [2] * 4)
    fold = _deal(truth, 3, 0)
    counts = np.array([[np.sum((truth == s) & (fold == k)) for k in range(3)] for s in range(3)])
    assert (counts.max(1) - counts.min(1) <= 1).all()


def test_the_result_does_not_depend_on_the_names() -> None:
    features, speakers = vectors(1.0)
    renamed = leakage(features, [f"z{name}" for name in speakers])
    assert renamed.accuracy == leakage(features, speakers).accuracy


def test_wrong_input_is_refused() -> None:
    features, speakers = vectors(1.0)
    with pytest.raises(InputError, match="finite features"):
        leakage(features[:-1], speakers)
    with pytest.raises(InputError, match="'lonely' has 1 clips"):
        leakage(features, ["lonely", *speakers[1:]])
    with pytest.raises(InputError, match="1 speakers"):
        leakage(features, ["one"] * 60)
    with pytest.raises(ConfigError, match="folds"):
        leakage(features, speakers, folds=2)


def test_layers_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    generator = np.random.default_rng(0)
    clips = []
    for speaker in range(3):
        for number in range(4):
            time = np.arange(4000) / 16000
            tone = 0.2 * np.sin(2 * np.pi * 400 * (speaker + 1) * time) + 0.01 * generator.normal(size=4000)
            path = tmp_path / f"{speaker}{number}.wav"
            soundfile.write(path, tone, 16000)
            clips.append(Clip(path.stem, audio=str(path), speaker=f"s{speaker}"))
    alone = Clip("alone", audio=clips[0].audio, speaker="alone")
    extract(
        "fbank", [*clips, alone], tmp_path / "store", pooled=("mean", "std"), options=ExtractOptions(progress=False)
    )
    store = FeatureStore(tmp_path / "store")
    (found,) = store_leakage(store, [*clips, alone]).values()
    assert (found.num_clips, found.num_speakers, found.accuracy) == (12, 3, 1.0)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"id": c.id, "audio": c.audio, "speaker": c.speaker}) + "\n" for c in clips))
    assert main(["leakage", str(tmp_path / "store"), "--manifest", str(manifest)]) == 0
    shown = capsys.readouterr().out
    assert "100.0 %" in shown
    assert "12 clips of 3 speakers; chance 33.3 %." in shown
    with pytest.raises(DataError, match="no speaker"):
        store_leakage(store, [Clip("alone", audio="x.wav")])
    with pytest.raises(DataError, match="no speaker has two"):
        store_leakage(store, [alone])
