"""The speaker recipes from corpus to report, on miniature trees in the layout of the published corpora."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zlib
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmssl.errors import ConfigError, DataError
from mmssl.stages.recipe import main
from mmssl.types import Clip

ROOT = Path(__file__).parents[2]
TINY = (
    "encoder=ecapa_tdnn_64",
    "encoder.channels=16",
    "encoder.joined_size=48",
    "training.first.steps=12",
    "training.first.learning_rate=5.0e-3",
    "training.first.warmup_steps=0",
    "training.first.crop_seconds=[0.3,0.3]",
    "training.batch_size=12",
    "training.optimizer=adamw",
    "training.eval_every=6",
    "training.num_workers=0",
    "training.speeds=[1.0,1.1]",
    "scoring.bootstrap=20",
    "exp=x",
)


def voice(path: Path, number: int, seconds: float = 0.4, rate: int = 16000) -> None:
    """Noise in two bands that belong to the speaker, at a level that does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(f"{path.parent.name}/{path.name}".encode()))
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(
        np.sin(2 * np.pi * (f + 20 * rng.standard_normal()) * time) for f in (250 + 130 * number, 3000 - 90 * number)
    )
    soundfile.write(path, 0.05 * (1 + rng.random()) * tones + 0.003 * rng.standard_normal(len(time)), rate)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    """recipe("voxceleb") -> a copy of egs/voxceleb/spk beside the recipes."""

    def copy(corpus: str) -> Path:
        for part in (f"egs/{corpus}/spk/conf", f"egs/{corpus}/spk/local", "recipes/spk"):
            shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        return tmp_path / "egs" / corpus / "spk"

    return copy


@pytest.fixture
def voxceleb(tmp_path: Path) -> Path:
    """VoxCeleb1 of 4 speakers, VoxCeleb2 of 8 as m4a's place takers, MUSAN, and two lists of trials."""
    root = tmp_path / "corpora"
    ones, twos = [f"id1{k:04d}" for k in range(4)], [f"id0{k:04d}" for k in range(8)]
    for number, name in enumerate(ones):
        for k in range(4):
            part = "test" if number < 3 else "dev"
            voice(root / "voxceleb1" / part / "wav" / name / f"v{k}" / "00001.wav", number)
    for number, name in enumerate(twos):
        for k in range(3):
            voice(root / "voxceleb2" / "dev" / "wav" / name / f"v{k}" / "00001.wav", 4 + number)
    voice(root / "musan" / "noise" / "free" / "n.wav", 20, 1.0)
    lines = [
        f"{int(a == b)} {a}/v{i}/00001.wav {b}/v{j}/00001.wav"
        for a, b in [*((n, n) for n in ones), *combinations(ones, 2)]
        for i, j in ((0, 1), (1, 2))
    ]
    (root / "veri_test2.txt").write_text("\n".join(lines[:6] + lines[8:12]) + "\n")
    (root / "voxceleb1" / "list_test_hard2.txt").write_text("\n".join(lines) + "\n")
    return root


def run(folder: Path, *words: str) -> int:
    return main(["--nj", "1", *TINY, *words], folder)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "exp" / "x" / "error_rates.json").read_text())


def test_voxceleb_end_to_end(recipe: Callable[[str], Path], voxceleb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmssl.training.speaker_calibration import read_calibration
    from mmssl.training.speaker_files import load_speaker_model

    folder = recipe("voxceleb")
    words = (
        f"data.root={voxceleb}",
        "protocol.dev_groups=3",
        f"augmentation.noise={voxceleb / 'musan'}",
        "training.large_margin.steps=3",
        "training.large_margin.crop_seconds=[0.4,0.4]",
        "embedding.crops=2",
        "embedding.crop_seconds=0.3",
    )
    assert run(folder, *words) == 0, capsys.readouterr().err
    found = results(folder)
    assert {name: row["trials"] for name, row in found["trials"].items()} == {"vox1-h": 20, "vox1-o": 10}
    methods = ["cosine", "as_norm", "plda", "qmf", "log_mel", "log_mel_standardized"]
    assert [row["method"] for row in found["scores"]["rows"]] == [m for m in methods for _ in range(2)]
    assert all(0 <= row["metrics"]["eer"] <= 1 for row in found["scores"]["rows"])
    assert found["training"]["speakers"] == 5
    assert [row["stage"] for row in found["training"]["history"] if "dev_eer" in row] == [0, 0, 1]
    assert found["protocol"]["given"] is True
    model = folder / "exp" / "x" / "model"
    assert load_speaker_model(model).output_size == 64
    calibration = read_calibration(model)
    assert (calibration is None) == bool(found["scores"]["warnings"])
    page = (folder / "exp" / "x" / "report.html").read_text()
    assert "DET curves on vox1-o" in page
    assert "Trials vox1-h" in page
    table = (folder / "exp" / "x" / "scores" / "vox1-o.tsv").read_text().splitlines()
    assert table[0].split("\t")[:4] == ["enrol", "test", "target", "cosine"]
    assert len(table) == 11
    # nothing changed: nothing is done again
    capsys.readouterr()
    assert run(folder, *words) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 5


def test_voxceleb_trains_on_nobody_it_tests(recipe: Callable[[str], Path], voxceleb: Path, tmp_path: Path) -> None:
    prepare = prepared(recipe("voxceleb"))
    clips = prepare(voxceleb, tmp_path / "data", trials={"o": "veri_test2.txt"}, train="both")
    splits = {clip.speaker: {c.split for c in clips if c.speaker == clip.speaker} for clip in clips}
    assert splits["id10003"] == {"train"}  # in no trial of this list
    assert splits["id10000"] == {"test"}
    assert (tmp_path / "data" / "trials" / "o.txt").read_text().startswith("1 id10000/v0/00001 id10000/v1/00001\n")
    with pytest.raises(DataError, match="nobody is left to train on"):
        prepare(voxceleb, tmp_path / "data", train="voxceleb1")
    with pytest.raises(ConfigError, match=r"no 'voxceleb3'. Did you mean"):
        prepare(voxceleb, tmp_path / "data", train="voxceleb3")
    (voxceleb / "voxceleb1" / "test" / "wav" / "id10001" / "v0" / "00001.wav").unlink()
    with pytest.raises(DataError, match=r"name 1 files that are not in .*id10001/v0/00001.wav. The copy is not whole"):
        prepare(voxceleb, tmp_path / "data")


def prepared(folder: Path) -> Callable[..., list[Clip]]:
    spec = importlib.util.spec_from_file_location("prepare_spk", folder / "local" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare


@pytest.fixture
def speakers(tmp_path: Path) -> Path:
    """Eight folders of speakers with four clips each."""
    root = tmp_path / "speakers"
    for number in range(8):
        for k in range(4):
            voice(root / f"s{number}" / f"{k}.wav", number)
    return root


def test_a_folder_of_speakers(
    recipe: Callable[[str], Path], speakers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe("folder")
    voice(speakers / "s1" / "short.wav", 1, 0.1)
    words = (f"data.root={speakers}", "protocol.dev_groups=2", "data.options.test_speakers=3")
    assert run(folder, *words) == 0, capsys.readouterr().err
    assert "1 clips shorter than 0.3 s left out" in capsys.readouterr().out
    found = results(folder)
    assert [item["id"] for item in found["skipped"]] == ["s1/short.wav"]
    assert found["trials"]["test"]["speakers"] == 3
    assert found["scores"]["rows"][0]["intervals"].keys() >= {"eer", "cllr", "min_dcf_p01", "act_dcf_p01"}


def test_silence_is_cut_off_before_clips_count_as_short(
    recipe: Callable[[str], Path], speakers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmssl.data.manifest import read_manifest

    folder = recipe("folder")
    for name, seconds in (("late", 0.5), ("short", 0.05)):
        voice(speakers / "s1" / f"{name}.wav", 1, seconds)
        wave, rate = soundfile.read(speakers / "s1" / f"{name}.wav")
        soundfile.write(speakers / "s1" / f"{name}.wav", np.concatenate([np.zeros(8000), wave]), rate)
    soundfile.write(speakers / "s1" / "zeros.wav", np.zeros(8000), 16000)
    given = (f"data.root={speakers}", "protocol.dev_groups=2", "data.options.test_speakers=3")
    assert run(folder, *given, "speaker.trim_silence=30", "--stop_stage", "prepare") == 0, capsys.readouterr().err
    clips = {clip.id: clip for clip in read_manifest(folder / "data" / "manifest.jsonl")}
    assert len(clips) == 33
    late = clips["s1/late.wav"]
    assert (late.start, late.duration) == pytest.approx((0.44, 0.56), abs=0.011)
    assert clips["s1/0.wav"].duration == pytest.approx(0.4)
    skipped = json.loads((folder / "data" / "skipped.json").read_text())
    assert [item["id"] for item in skipped] == ["s1/zeros.wav", "s1/short.wav"]
    (fold,) = json.loads((folder / "data" / "folds.json").read_text())["folds"]
    assert sum(len(fold[part]) for part in ("train", "dev", "test")) == 33


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data.on_error=raise",),
            "1 of 33 clips are shorter than speaker.min_seconds=0.3 s, among them 's1/short.wav' of 0.100 s",
        ),
        (("data.options.test_speakers=0",), "nothing is left to train on or to test"),
        (("data.options.test_speakers=1",), "Trials need two speakers"),
        (("data.options.trials=[one_class.txt]",), "error rates need both"),
        (("data.options.trials=[missing.txt]",), "are not among the 32 clips given: s7/9.wav"),
        (("data.options.trials=[trained.txt]",), "speakers of the trials are in training or development"),
        (("data.options.trials=[nowhere.txt]",), "nowhere.txt"),
        (("trials.within=gender",), "trials.within=gender: the clip"),
        (("protocol=speaker_kfold",), "folds: choose protocol=predefined"),
    ],
)
def test_wrong_corpora_stop_stage_1(
    recipe: Callable[[str], Path],
    speakers: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    voice(speakers / "s1" / "short.wav", 1, 0.1)
    (speakers / "one_class.txt").write_text("1 s7/0.wav s7/1.wav\n")
    (speakers / "missing.txt").write_text("1 s7/0.wav s7/1.wav\n0 s7/9.wav s6/1.wav\n")
    (speakers / "trained.txt").write_text("1 s7/0.wav s7/1.wav\n0 s7/0.wav s0/1.wav\n")
    given = (
        f"data.root={speakers}",
        "protocol.dev_groups=2",
        "data.options.test_speakers=3",
        "--stop_stage",
        "prepare",
    )
    assert run(recipe("folder"), *given, *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("encoder=conformer",), "There is no encoder 'conformer'"),
        (("scoring.methods=[cosin]",), "scoring.methods: there is no 'cosin'. Did you mean 'cosine'"),
        (("loss.kind=supcon",), "training.clips_per_speaker=2"),
        (("training.first.decay=fast",), "decay one of"),
        (("training.firsts.steps=1",), "no key 'training.firsts.steps'"),
        (("augmentation.noise=nowhere",), "does not exist"),
    ],
)
def test_wrong_settings_are_explained(
    recipe: Callable[[str], Path],
    speakers: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    given = (f"data.root={speakers}", "protocol.dev_groups=2", "data.options.test_speakers=3", "training.first.steps=1")
    assert run(recipe("folder"), *given, "training.eval_every=1", *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_manifest_with_splits(recipe: Callable[[str], Path], speakers: Path, tmp_path: Path) -> None:
    from mmssl.data.manifest import write_manifest

    prepare = prepared(recipe("folder"))
    clips = [
        Clip(
            f"{name}-{k}",
            audio=str(speakers / name / f"{k}.wav"),
            speaker=name,
            split="test" if name == "s0" else "train",
        )
        for name in ("s0", "s1")
        for k in range(2)
    ]
    write_manifest(speakers / "mine.jsonl", clips)
    found = prepare(speakers, tmp_path / "data", manifest="mine.jsonl")
    assert [(c.id, c.split, c.labels["speaker"]) for c in found] == [(c.id, c.split, c.speaker) for c in clips]
    with pytest.raises(ConfigError, match="exclude each other"):
        prepare(speakers, tmp_path / "data", manifest="mine.jsonl", sources={"a": {}})
    with pytest.raises(DataError, match=r"add data.root=FOLDER"):
        prepare(None, tmp_path / "data")


def test_ravdess_and_fsdd(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    for actor in range(1, 9):
        voice(tmp_path / "r" / f"Actor_{actor:02d}" / f"03-01-05-01-01-01-{actor:02d}.wav", actor)
    for name in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"):
        voice(tmp_path / "f" / f"7_{name}_0.wav", 1, rate=8000)
    ravdess = prepared(recipe("ravdess"))(tmp_path / "r", tmp_path / "data")
    assert [c.speaker for c in ravdess if c.split == "test"] == ["05", "06", "07", "08"]
    more = {"fsdd": {"path": str(tmp_path / "f"), "speaker": "_([a-z]+)_"}}
    joined = prepared(tmp_path / "egs" / "ravdess" / "spk")(tmp_path / "r", tmp_path / "data", sources=more)
    assert [c.speaker for c in joined if c.split == "train"][-2:] == ["fsdd-theo", "fsdd-yweweler"]
    fsdd = prepared(copy_fsdd(tmp_path))(tmp_path / "f", tmp_path / "data", test_speakers=2)
    assert [c.speaker for c in fsdd if c.split == "test"] == ["theo", "yweweler"]


def copy_fsdd(tmp_path: Path) -> Path:
    folder = tmp_path / "egs" / "fsdd" / "spk"
    shutil.copytree(ROOT / "egs" / "fsdd" / "spk" / "local", folder / "local")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("encoder=xvector", "encoder.channels=16", "encoder.wide_size=32", "encoder.embedding_size=16"),
        ("encoder=resnet34", "encoder.depth=18", "encoder.width=4", "encoder.embedding_size=16"),
        ("encoder=rawnet3", "encoder.channels=16", "encoder.joined_size=24", "encoder.embedding_size=16"),
        ("encoder=ska_tdnn", "encoder.channels=16", "encoder.front_channels=8", "encoder.joined_size=24"),
        (
            "upstream=hubert",
            "upstream.preset=hubert_nano",
            "speaker.train_upstream=true",
            "training.first.upstream_learning_rate=1e-4",
        ),
    ],
    ids=["xvector", "resnet", "rawnet3", "ska_tdnn", "ssl"],
)
def test_every_encoder_by_one_option(
    recipe: Callable[[str], Path], speakers: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    kept = [w for w in TINY if not (w.startswith("encoder") and words[0].startswith("encoder"))]
    given = (f"data.root={speakers}", "protocol.dev_groups=2", "data.options.test_speakers=3", "training.first.steps=2")
    code = main(["--nj", "1", *kept, *given, "training.eval_every=2", *words], recipe("folder"))
    assert code == 0, capsys.readouterr().err
