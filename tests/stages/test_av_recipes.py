"""The audio-visual recipes of egs/mini on a corpus of a few small clips, from files to pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmssl.faces.write import write_video
from mmssl.stages.recipe import main

ROOT = Path(__file__).parents[2]
PREPARE = """
from pathlib import Path
from mmssl.types import Clip

def prepare(root: Path | None, folder: Path) -> list[Clip]:
    clips = []
    for path in sorted(root.glob("*.mkv")):
        speaker, emotion, number = path.stem.split("-")
        split = "pretrain" if speaker.startswith("p") else None
        clips.append(Clip(path.stem, video=str(path), labels={"emotion": emotion, "level": float(number)},
                          speaker=speaker, split=split))
    return clips
"""
TINY = (
    "~data.options.seed",
    "~data.options.num_speakers",
    "~data.options.task_speakers",
    "~data.options.pretrain_speakers",
    "~data.options.pretrain_sentences",
    "~data.options.num_sentences",
    "~data.options.sentences_per_speaker",
    "protocol.k=2",
    "protocol.dev_groups=1",
    "upstream.width=2",
    "upstream.image_size=16",
    "pretraining.seconds=0.7",
    "pretraining.settings.max_steps=2",
    "pretraining.settings.warmup_steps=0",
    "pretraining.settings.batch_size=2",
    "train.learning_rates=[1e-2]",
    "train.max_steps=2",
    "train.eval_every=2",
    "train.refit=false",
)
QUICK = ("untrained=false", "plain=false", "streams=[both]", "--overwrite")


def clip(path: Path, emotion: str, seed: int, sound: bool = True, frames: int = 20) -> None:
    """Noise whose loudness and brightness move together, louder and brighter for the second class."""
    rng = np.random.default_rng(seed)
    level = 0.3 + 0.5 * rng.random(frames) * (1.0 if emotion == "b" else 0.4)
    pictures = (255 * level[:, None, None, None] * rng.uniform(0.8, 1, (frames, 16, 16, 3))).astype(np.uint8)
    envelope = np.repeat(level, 640)
    waveform = (0.5 * envelope * rng.standard_normal(len(envelope))).clip(-1, 1).astype(np.float32)[None]
    write_video(path, pictures, 25.0, waveform if sound else None, 16000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 speakers of 2 clips for each of 2 classes, and one speaker to pretrain on."""
    folder = tmp_path_factory.mktemp("av")
    for s, speaker in enumerate(("s1", "s2", "s3", "s4", "p1")):
        for e, emotion in enumerate("ab"):
            for k in range(2):
                clip(folder / f"{speaker}-{emotion}-{k}.mkv", emotion, 100 * s + 10 * e + k)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, Path]]:
    """run("aver", ...) -> exit code, what was printed, and the recipe's folder."""

    def call(task: str, *words: str, root: Path = corpus) -> tuple[int, str, Path]:
        folder = tmp_path / "egs" / "mini" / task
        if not folder.is_dir():
            shutil.copytree(ROOT / "egs" / "mini" / task / "conf", folder / "conf")
            (folder / "local").mkdir()
            (folder / "local" / "prepare.py").write_text(PREPARE)
            shutil.copytree(ROOT / "recipes", tmp_path / "recipes", dirs_exist_ok=True)
        monkeypatch.setenv("MMSSL_CALLER_DIR", str(folder))
        capsys.readouterr()
        crop = "crop_seconds=0.3" if task == "av_sync" else "audio_seconds=0.4"
        words = (f"pretraining.objective.{crop}", f"data.root={root}", *words)
        code = main(["--nj", "1", *TINY, *words], folder)
        captured = capsys.readouterr()
        return code, captured.out + captured.err, folder

    return call


@pytest.mark.slow
def test_emotion(run: Callable[..., tuple[int, str, Path]]) -> None:
    code, printed, folder = run("aver", "exp=x")
    assert code == 0, printed
    results = json.loads((folder / "exp" / "x" / "results.json").read_text())
    names = {system["name"] for system in results["systems"]}
    assert len(names) == 15
    assert {"l3, pretrained: both", "l3, pretrained: both, audio alone at test", "l3, untrained: video"} <= names
    assert {"log-mel and pixels: audio"} <= names
    for system in results["systems"]:
        assert sum(map(sum, system["confusion"])) == 16
        found = system["metrics"]["uar"]
        assert found["speaker_low"] <= found["pooled"] <= found["speaker_high"]
    assert len(results["differences"]) == 12
    page = (folder / "exp" / "x" / "report.html").read_text()
    assert "<svg" in page
    assert "chance" in page
    assert "No test speaker was among them." in page
    assert (folder / "exp" / "x" / "details" / "report.html").is_file()
    # nothing changed: nothing is done again
    _, printed, _ = run("aver", "exp=x")
    assert printed.count("unchanged, skipped") == 6
    # another fusion, on frames, takes the encoder that is there
    code, printed, _ = run("aver", "exp=x", "fusion=routed", "fusion.hidden_size=8", *QUICK)
    assert code == 0, printed


@pytest.mark.slow
def test_values_are_scored_by_ccc(run: Callable[..., tuple[int, str, Path]]) -> None:
    words = ("task=regression", "label=level", "untrained=false", "plain=true", "streams=[both]", "pretraining=null")
    code, printed, folder = run("aver", "exp=v", *words)
    assert code == 0, printed
    results = json.loads((folder / "exp" / "v" / "results.json").read_text())
    assert results["primary_metric"] == "ccc"
    assert {fold["num_test"] for fold in results["systems"][0]["folds"]} == {8}


@pytest.mark.parametrize(
    "words",
    [
        ("retrieval.match=clips", "features.statistics=mean_std"),
        ("retrieval.frames.max_shift=3", "retrieval.frames.least_frames=4"),
    ],
    ids=["clips", "frames"],
)
def test_retrieval(run: Callable[..., tuple[int, str, Path]], words: tuple[str, ...]) -> None:
    code, printed, folder = run("av_retrieval", "exp=x", *words)
    assert code == 0, printed
    found = json.loads((folder / "exp" / "x" / "scores.json").read_text())
    assert len(found["scores"]) == 12
    for row in found["scores"]:
        size = 8 if row["gallery"] == "all" else 4
        assert (row["queries"], row["gallery_size"]) == (16, size)
        assert row["chance_r1"] == pytest.approx(1 / size)
        assert row["r1"]["value"] <= row["r5"]["value"] <= row["r10"]["value"]
    page = (folder / "exp" / "x" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<svg" in page


@pytest.mark.slow
def test_synchrony(run: Callable[..., tuple[int, str, Path]]) -> None:
    code, printed, folder = run("av_sync", "exp=x", "sync.max_shift=3", "sync.least_frames=4")
    assert code == 0, printed
    found = json.loads((folder / "exp" / "x" / "scores.json").read_text())
    assert found["frame_shift"] == pytest.approx(0.04)
    rows = {row["encoder"]: row for row in found["scores"]}
    assert set(rows) == {"l3", "l3-untrained", "mel_pixels"}
    assert rows["l3"]["clips"] == 16
    assert rows["l3"]["chance"]["exact"] == pytest.approx(1 / 7)
    for row in rows.values():
        # two clips of each speaker and class: everybody has somebody to be dubbed with
        for name in ("within_1", "exact", "choice", "auc_match", "auc_shifted", "auc_dubbed", "control"):
            assert 0 <= row[name]["value"] <= 1
        assert row["exact"]["value"] <= row["within_1"]["value"]
    assert "<svg" in (folder / "exp" / "x" / "report.html").read_text()


@pytest.mark.slow
def test_clips_that_lack_a_stream(run: Callable[..., tuple[int, str, Path]], corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "partial"
    shutil.copytree(corpus, root)
    clip(root / "s1-a-5.mkv", "a", 7, sound=False)
    code, printed, _ = run("aver", "exp=x", "--stop_stage", "1", root=root)
    assert code == 1
    assert "1 of 17 clips have no audio (s1-a-5)" in printed
    assert "data.missing=keep" in printed
    words = ("exp=x", "pretraining=null", "untrained=false", "plain=false")
    code, printed, folder = run("aver", *words, "data.missing=keep", "streams=[audio,both]", root=root)
    assert code == 0, printed
    assert "WARNING: 1 of 17 clips have no audio" in printed
    systems = json.loads((folder / "exp" / "x" / "results.json").read_text())["systems"]
    tested = {system["name"]: sum(map(sum, system["confusion"])) for system in systems}
    assert tested == {
        "l3: audio": 16,
        "l3: both": 17,
        "l3: both, audio alone at test": 16,
        "l3: both, video alone at test": 17,
    }
    assert "17 clips have no audio" in (folder / "exp" / "x" / "report.html").read_text()
    code, printed, folder = run("aver", "exp=y", "data.missing=skip", "--stop_stage", "1", root=root)
    assert code == 0, printed
    assert [item["id"] for item in json.loads((folder / "data" / "skipped.json").read_text())] == ["s1-a-5"]


def test_mistakes(run: Callable[..., tuple[int, str, Path]], corpus: Path, tmp_path: Path) -> None:
    silent, one_class, shared = (tmp_path / name for name in ("silent", "one", "shared"))
    for folder in (silent, one_class, shared):
        folder.mkdir()
    for name in ("s1-a-0", "s2-b-0"):
        clip(silent / f"{name}.mkv", "a", 1, sound=False)
    code, printed, _ = run("aver", "data.missing=keep", "--stop_stage", "1", root=silent)
    assert (code, "None of the 2 clips has audio" in printed) == (1, True), printed
    for path in corpus.glob("*-a-*.mkv"):
        shutil.copy(path, one_class)
    code, printed, _ = run("aver", "--stop_stage", "1", root=one_class)
    assert (code, "has the same class 'a'" in printed) == (1, True), printed
    for path in corpus.glob("s*.mkv"):
        shutil.copy(path, shared)
    # several folds and no speakers to pretrain on
    code, printed, _ = run("aver", "exp=z", "--stop_stage", "2", root=shared)
    assert (code, "pretraining=null" in printed) == (1, True), printed
    (shared / "broken-a-0.mkv").write_bytes(b"no video")
    code, printed, _ = run("aver", "--stop_stage", "1", root=shared)
    assert (code, "data.on_error=skip" in printed) == (1, True), printed


@pytest.mark.slow
def test_what_does_not_go_together(run: Callable[..., tuple[int, str, Path]]) -> None:
    none = ("pretraining=null", "untrained=false", "plain=false")
    code, printed, _ = run("aver", "exp=a", *none, "fusion=hicmae")
    assert (code, "joins the streams audio, video and fusion" in printed) == (1, True), printed
    code, printed, _ = run("aver", "exp=b", *none, "streams=[sound]")
    assert (code, "streams must be a list of audio, video, both" in printed) == (1, True), printed
    code, printed, _ = run("av_sync", "exp=c", *none, "sync.max_shift=12")
    assert (code, "lower them" in printed) == (1, True), printed
    code, printed, _ = run("av_retrieval", "exp=d", *none, "upstream.modalities=[audio]")
    assert (code, "takes audio only" in printed) == (1, True), printed


@pytest.mark.slow
def test_an_encoder_that_fuses_one_input_alone(run: Callable[..., tuple[int, str, Path]]) -> None:
    sizes = ("hidden_size=32", "num_layers=1", "num_heads=2", "feed_forward_size=32", "image_size=26", "preset=tiny")
    words = ("pretraining=null", "untrained=false", "plain=false", "~upstream.width", "~upstream.sample_rate")
    code, printed, folder = run("aver", "exp=h", *words, "upstream=av_hubert", *(f"upstream.{size}" for size in sizes))
    assert code == 0, printed
    (record,) = json.loads((folder / "exp" / "h" / "av_features.json").read_text()).values()
    # its fusion of sound alone is not the one of both
    assert record["separate"]
    assert set(record["stores"]) == {"both", "audio", "video"}
    from mmssl.stages.av_features import AvStore

    store = AvStore(folder, record)
    assert set(store.specs("audio")) == {"fusion", "audio"}
    assert set(store.specs("both")) == {"fusion", "audio", "video"}
    alone, both = (store.read("s1-a-0", view)["fusion"].hidden_states[-1] for view in ("audio", "both"))
    assert not (alone == both).all()
