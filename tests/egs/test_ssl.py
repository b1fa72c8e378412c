"""egs/*/ssl: what their prepare finds in miniature trees, and two steps of training on them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from mmssl.errors import ConfigError, DataError
from mmssl.stages.recipe import main
from mmssl.types import Clip

ROOT = Path(__file__).parents[2]
STEPS = (
    "pretrain=default",
    "pretrain.max_steps=2",
    "pretrain.warmup_steps=1",
    "pretrain.log_every=1",
    "--nj",
    "1",
)
SOUND = ("pretrain.batch_seconds=4", "reader.max_seconds=0.5")


def prepare(corpus: str, task: str = "ssl") -> Callable[..., list[Clip]]:
    path = ROOT / "egs" / corpus / task / "local" / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{corpus}_{task}", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare


def copied(folder: Path, corpus: str, task: str = "ssl") -> Path:
    """egs/<corpus>/<task> and the recipes below a folder."""
    target = folder / "egs" / corpus / task
    for part in ("conf", "local"):
        source = ROOT / "egs" / corpus / task / part
        shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return target


def sound(path: Path, seconds: float = 0.6, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = numpy.random.default_rng(seed).standard_normal(int(16000 * seconds))
    soundfile.write(path, 0.1 * noise, 16000)


def librispeech(root: Path) -> Path:
    lines = ["; ID |SEX| SUBSET | MINUTES | NAME"]
    for number, (subset, speaker) in enumerate(
        (s, f"{k}{n}") for k, s in enumerate(("train-clean-100", "dev-clean", "test-clean"), 1) for n in range(4)
    ):
        lines.append(f"{speaker:<5}| {'FM'[number % 2]} | {subset} | 25.0 | A Name")
        for utterance in range(2):
            name = f"{speaker}-7-{utterance:04d}.flac"
            sound(root / subset / speaker / "7" / name, seed=10 * number + utterance)
    (root / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n")
    return root


def test_librispeech(tmp_path: Path) -> None:
    clips = prepare("librispeech")(librispeech(tmp_path), tmp_path, probe_per_speaker=1)
    assert len(clips) == 24
    first = clips[0]
    assert (first.id, first.speaker, first.split) == ("20-7-0000", "20", "dev")
    assert first.labels == {"subset": "dev-clean", "gender": "female"}
    assert [clip.labels.get("gender") for clip in clips[:4]] == ["female", None, "male", None]
    assert {clip.split for clip in clips} == {"train", "dev", "test"}
    (tmp_path / "SPEAKERS.TXT").unlink()
    with pytest.raises(DataError, match=r"SPEAKERS\.TXT"):
        prepare("librispeech")(tmp_path, tmp_path)


@pytest.mark.slow
def test_librispeech_trains_on_its_training_subsets_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = copied(tmp_path, "librispeech"), librispeech(tmp_path / "LibriSpeech")
    plan = "{source: mfcc, clusters: 4, steps: 2},{source: previous, layer: 1, clusters: 4, steps: 2}"
    small = ["upstream.preset=hubert_tiny", "targets.init_frames=200", "targets.batch_frames=100"]
    small.append(f"targets.iterations=[{plan}]")
    assert main([*STEPS, *SOUND, *small, f"data.root={root}"], folder) == 0, capsys.readouterr().err
    exp = folder / "exp" / "hubert-hubert"
    results = json.loads((exp / "results.json").read_text())
    assert results["corpus"]["clips"] == 8
    assert results["corpus"]["held_out"] == 16
    assert len(results["iterations"]) == 2
    assert {row["system"] for row in results["probe"]["scores"]} == {"trained", "untrained", "log-mel"}


def test_folder(tmp_path: Path) -> None:
    sound(tmp_path / "a" / "x.wav")
    sound(tmp_path / "b" / "x.FLAC".lower())
    (tmp_path / "b" / "notes.txt").write_text("no sound")
    clips = prepare("folder")(tmp_path, tmp_path)
    assert [clip.id for clip in clips] == ["a/x.wav", "b/x.flac"]
    assert all(clip.speaker is None and not clip.labels for clip in clips)
    with pytest.raises(DataError, match=r"it holds \.flac \.txt \.wav"):
        prepare("folder")(tmp_path, tmp_path, kind="video")
    with pytest.raises(ConfigError, match="must be one of"):
        prepare("folder")(tmp_path, tmp_path, kind="films")
    with pytest.raises(DataError, match=r"add data\.root"):
        prepare("folder")(None, tmp_path)


@pytest.mark.slow
def test_folder_goes_on_from_a_transformers_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    import mmssl
    from mmssl.upstreams.base import load_upstream
    from mmssl.upstreams.speech_transformer import SpeechTransformer

    folder = copied(tmp_path, "folder")
    for number in range(6):
        sound(tmp_path / "mine" / f"{number}.wav", seed=number)
    (tmp_path / "mine" / "broken.wav").write_bytes(b"RIFF but not really")
    begun = load_upstream("hubert", preset="hubert_tiny", seed=4)
    assert isinstance(begun, SpeechTransformer)
    begun.save_transformers(tmp_path / "checkpoint")
    words = [
        "objective=hubert",
        "upstream=hubert",
        f"init={tmp_path / 'checkpoint'}",
        "targets.iterations=[{source: init, layer: 1, clusters: 4, steps: 2}]",
        "targets.init_frames=200",
        f"data.root={tmp_path / 'mine'}",
    ]
    assert main([*STEPS, *SOUND, *words], folder) == 0, capsys.readouterr().err
    exp = folder / "exp" / "hubert-hubert"
    corpus = json.loads((exp / "corpus.json").read_text())
    assert corpus["clips"] == 6
    assert [item["id"] for item in corpus["skipped"]] == ["broken.wav"]
    assert "without labels" in (exp / "RESULTS.md").read_text()
    waveforms = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    first, untrained, trained = (
        model(waveforms)["audio"].hidden_states[-1]
        for model in (begun, *(mmssl.load_upstream(str(exp / name)) for name in ("untrained", "upstream")))
    )
    torch.testing.assert_close(first, untrained, rtol=0, atol=1e-6)
    assert not torch.allclose(first, trained, atol=1e-6)


def voxceleb2(root: Path) -> Path:
    """Eight face tracks of 0.64 s with sound, of four speakers, and the table of genders."""
    av = pytest.importorskip("av")
    rows = ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set"]
    tracks = [(part, f"id0{k}{n}") for k, part in enumerate(("dev", "test")) for n in range(4)]
    for number, (part, speaker) in enumerate(tracks):
        rows.append(f"{speaker} ,n0001 ,{'mf'[number % 2]} ,{part}")
        path = root / part / "mp4" / speaker / "abc" / "00001.mp4"
        path.parent.mkdir(parents=True)
        rng = numpy.random.default_rng(number)
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=25)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            audio = container.add_stream("aac", rate=16000, layout="mono")
            for _ in range(25):
                frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 32, 3), dtype=numpy.uint8), format="rgb24")
                container.mux(video.encode(frame))
            container.mux(video.encode())
            samples = (0.1 * rng.standard_normal((1, 16000))).astype(numpy.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    (root / "vox2_meta.csv").write_text("\n".join(rows) + "\n")
    return root


def test_voxceleb2(tmp_path: Path) -> None:
    clips = prepare("voxceleb2", "av_ssl")(voxceleb2(tmp_path), tmp_path)
    assert [clip.id for clip in clips[:2]] == ["id000-abc-00001", "id001-abc-00001"]
    assert [(clip.split, clip.labels["gender"]) for clip in clips[3:5]] == [("train", "female"), ("test", "male")]
    assert all(clip.audio is None and clip.video for clip in clips)
    (tmp_path / "vox2_meta.csv").unlink()
    assert not any(clip.labels for clip in prepare("voxceleb2", "av_ssl")(tmp_path, tmp_path))


@pytest.mark.slow
def test_voxceleb2_trains_hicmae_on_sound_and_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = copied(tmp_path, "voxceleb2", "av_ssl"), voxceleb2(tmp_path / "vox2")
    words = [
        *("preset=tiny", "hidden_size=32", "num_layers=3", "num_heads=2", "feed_forward_size=32", "image_size=32"),
    ]
    sizes = [f"upstream.{word}" for word in words]
    sizes += ["objective.levels=[1,2,3]", "objective.decoder_size=16", "objective.decoder_heads=2"]
    sizes += ["reader.seconds=0.64"]
    batch = ["pretrain.batch_size=2", "pretrain.batch_seconds=null", f"data.root={root}"]
    assert main([*STEPS, *sizes, *batch], folder) == 0, capsys.readouterr().err
    results = json.loads((folder / "exp" / "hicmae-hicmae" / "results.json").read_text())
    assert results["corpus"]["clips"] == 4
    streams = {row["stream"] for row in results["probe"]["scores"] if row["system"] == "trained"}
    assert streams == {"audio", "video", "fusion"}
