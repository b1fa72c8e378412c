"""local/prepare.py of the audio-visual corpora, on miniature trees of their layout with real video files."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.data.folds import check_disjoint
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError
from mmssl.faces.prepare import prepare_faces
from mmssl.media.sync import load_audio_video
from mmssl.media.video import video_info
from mmssl.stages.compose import compose
from mmssl.stages.recipe import main
from mmssl.stages.utterance_prepare import folds_of
from mmssl.types import Clip

ROOT = Path(__file__).parents[2]


def prepare(recipe: str) -> Callable[..., list[Clip]]:
    path = ROOT / "egs" / recipe / "local" / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{recipe.replace('/', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.prepare


def video(path: Path, seconds: float = 0.4, *, sound: bool = True, codec: str = "mpeg4", size: int = 32) -> Path:
    """Write a file through FFmpeg in the container that its suffix names: left half dark, right half bright."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(codec, rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 2 * size, size, "yuv420p"
        noise = (
            container.add_stream("mp3" if path.suffix in (".flv", ".avi") else "aac", rate=44_100) if sound else None
        )
        if noise is not None:
            noise.layout = "mono"
        content = np.full((size, 2 * size, 3), 40, np.uint8)
        content[:, size:] = 220
        for index in range(round(seconds * 25)):
            frame = av.VideoFrame.from_ndarray(content, format="rgb24")
            frame.pts = index
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if noise is not None:
            samples = (0.3 * np.sin(np.arange(round(seconds * 44_100)) * 0.05)).astype(np.float32)
            whole = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            whole.sample_rate, whole.pts = 44_100, 0
            context = noise.codec_context
            resampler = av.AudioResampler(context.format.name, "mono", 44_100, context.frame_size or 1152)
            for piece in (*resampler.resample(whole), *resampler.resample(None)):
                container.mux(noise.encode(piece))
            container.mux(noise.encode())
    return path


def folds(recipe: str, clips: list[Clip]) -> list[Any]:
    return folds_of(clips, compose(ROOT / "egs" / recipe).config)


def test_cremad(tmp_path: Path) -> None:
    names = ("1001_DFA_ANG_XX", "1001_IEO_HAP_HI", "1002_DFA_SAD_XX")
    for name in names:
        video(tmp_path / "VideoFlash" / f"{name}.flv", codec="flv")
    wav = tmp_path / "AudioWAV" / f"{names[0]}.wav"
    wav.parent.mkdir()
    wav.write_bytes(b"")
    run = prepare("cremad/aver")
    clips = run(tmp_path, tmp_path)
    assert [(c.speaker, c.labels["emotion"]) for c in clips] == [
        ("1001", "anger"),
        ("1001", "happiness"),
        ("1002", "sadness"),
    ]
    assert [c.audio for c in clips] == [str(wav), None, None]
    assert {c.audio for c in run(tmp_path, tmp_path, sound="video")} == {None}
    # a file as CREMA-D codes it: Sorenson H.263 with mp3 in flv
    assert len(load_audio_video(clips[1].video, sample_rate=16_000).video) >= 8
    with pytest.raises(DataError, match="summaryTable"):
        run(tmp_path, tmp_path, labels="face")
    with pytest.raises(ConfigError, match=r"labels must be intended, voice, face, multimodal"):
        run(tmp_path, tmp_path, labels="perceived")
    table = tmp_path / "processedResults" / "summaryTable.csv"
    table.parent.mkdir()
    rows = [
        "FileName,VoiceVote,FaceVote,MultiModalVote",
        f"{names[0]},N,A,D",
        f"{names[1]},H,A:H,H",
        f"{names[2]},N,S,S",
    ]
    table.write_text("\n".join(rows) + "\n")
    assert [c.labels["emotion"] for c in run(tmp_path, tmp_path, labels="multimodal")] == [
        "disgust",
        "happiness",
        "sadness",
    ]
    # the second is tied
    assert [c.labels["emotion"] for c in run(tmp_path, tmp_path, labels="face")] == ["anger", "sadness"]
    video(tmp_path / "VideoFlash" / "portrait.flv", codec="flv")
    with pytest.raises(DataError, match=r"portrait\.flv is not named"):
        run(tmp_path, tmp_path)


def test_cremad_folds_are_the_published_ones() -> None:
    labels = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
    clips = [
        Clip(f"{1001 + a}_{e}", video="v", labels={"emotion": e}, speaker=str(1001 + a))
        for a in range(91)
        for e in labels
    ]
    found = folds("cremad/aver", clips)
    check_disjoint(clips, found)
    speaker = {clip.id: clip.speaker for clip in clips}
    tests = [sorted({speaker[i] for i in fold.test}) for fold in found]
    assert [len(t) for t in tests] == [18, 18, 18, 18, 19]
    assert (tests[0][0], tests[0][-1], tests[4][-1]) == ("1001", "1018", "1091")
    assert [len({speaker[i] for i in fold.dev}) for fold in found] == [10] * 5


def test_ravdess(tmp_path: Path) -> None:
    for name in ("Actor_01/01-01-05-02-01-02-01", "Actor_12/01-01-08-01-02-01-12", "Actor_12/02-01-03-01-02-01-12"):
        video(tmp_path / f"{name}.mp4")
    video(tmp_path / "Actor_12" / "01-02-03-01-02-01-12.mp4")
    clips = prepare("ravdess/aver")(tmp_path, tmp_path)
    assert [(c.speaker, c.labels["emotion"], c.labels["intensity"], c.labels["gender"]) for c in clips] == [
        ("01", "anger", "strong", "male"),
        ("12", "surprise", "normal", "female"),
    ]
    assert all(video_info(c.video).has_audio for c in clips)
    with pytest.raises(DataError, match="RAVDESS is expected as"):
        prepare("ravdess/aver")(tmp_path / "Actor_12" / "nowhere", tmp_path)


def test_ravdess_folds() -> None:
    clips = [
        Clip(f"{a:02d}-{e}", video="v", labels={"emotion": e}, speaker=f"{a:02d}")
        for a in range(1, 25)
        for e in "abcdefgh"
    ]
    found = folds("ravdess/aver", clips)
    check_disjoint(clips, found)
    assert [(len(f.train) + len(f.dev), len(f.test)) for f in found] == [(160, 32)] * 6
    # 30 clips of each emotion and actor would make this 1,200 and 240
    assert [len({i[:2] for i in f.dev}) for f in found] == [5] * 6


LINES = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]
[0.1000 - 0.5000]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
[0.5000 - 1.1000]\tSes01F_impro01_M000\texc\t[4.0000, 3.0000, 3.5000]
[1.0000 - 1.2000]\tSes01F_impro01_M001\tfru\t[2.0000, 3.0000, 3.5000]
"""


def iemocap(root: Path, gender: str = "F") -> None:
    name = f"Ses01{gender}_impro01"
    video(root / "Session1" / "dialog" / "avi" / "DivX" / f"{name}.avi", 1.4)
    labels = root / "Session1" / "dialog" / "EmoEvaluation" / f"{name}.txt"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(LINES.replace("Ses01F_", f"Ses01{gender}_"))


def test_iemocap(tmp_path: Path) -> None:
    iemocap(tmp_path)
    run = prepare("iemocap/aver")
    clips = run(tmp_path, tmp_path)
    assert [(c.id, c.labels["emotion"], c.speaker, c.start, c.duration) for c in clips] == [
        ("Ses01F_impro01_F000", "neutral", "Session1_F", 0.1, 0.4),
        ("Ses01F_impro01_M000", "happiness", "Session1_M", 0.5, 0.6),
    ]
    assert clips[0].labels["valence"] == 2.5
    both = load_audio_video(clips[1].video, start=clips[1].start, duration=clips[1].duration, sample_rate=16_000)
    assert abs(len(both.video) - 15) <= 1
    with pytest.raises(DataError, match=r"dialog/wav/Ses01F_impro01\.wav is not"):
        run(tmp_path, tmp_path, sound="dialogue")
    (tmp_path / "Session1" / "dialog" / "avi" / "DivX" / "Ses01F_impro01.avi").unlink()
    with pytest.raises(DataError, match="is not whole"):
        run(tmp_path, tmp_path)


@pytest.mark.parametrize("markers", ["F", "M"])
def test_iemocap_crops_the_speakers_half(tmp_path: Path, markers: str) -> None:
    iemocap(tmp_path / "corpus", markers)
    clips = prepare("iemocap/aver")(tmp_path / "corpus", tmp_path)
    detector = str(ROOT / "egs" / "iemocap" / "aver" / "local" / "halves.py")
    arguments = {"inner": "centre", "arguments": {"share": 0.8}}
    summary = prepare_faces(clips, tmp_path / "faces", detector=detector, arguments=arguments, region="face", size=16)
    assert not summary.broken
    for clip in read_manifest(summary.manifest):
        both = load_audio_video(clip.video, sample_rate=16_000)
        # the actor with markers is in the left half, which is dark here
        left = clip.id[5] == clip.id[-4]
        assert float(both.video.mean()) == pytest.approx(40 / 255 if left else 220 / 255, abs=0.05)


def test_ucf101(tmp_path: Path) -> None:
    for number in (1, 7, 8, 9, 10, 25):
        video(tmp_path / "Basketball" / f"v_Basketball_g{number:02d}_c01.avi")
        video(tmp_path / "Bowling" / f"v_Bowling_g{number:02d}_c02.avi")
    video(tmp_path / "Archery" / "v_Archery_g01_c01.avi", sound=False)
    clips = prepare("avsuperb/ucf101")(tmp_path, tmp_path)
    assert {c.labels["action"] for c in clips} == {"Basketball", "Bowling"}
    assert {c.split for c in clips if c.id.startswith("v_Bowling")} == {"train", "dev", "test"}
    (fold,) = folds("avsuperb/ucf101", clips)
    assert fold.test == ("v_Basketball_g01_c01", "v_Basketball_g07_c01", "v_Bowling_g01_c02", "v_Bowling_g07_c02")
    assert {i.split("_")[2] for i in fold.dev} == {"g08", "g09"}
    other = tmp_path / "silent"
    video(other / "Archery" / "v_Archery_g01_c01.avi", sound=False)
    with pytest.raises(DataError, match="has sound"):
        prepare("avsuperb/ucf101")(other, tmp_path)


def test_vggsound(tmp_path: Path) -> None:
    rows = []
    for k in range(24):
        split, label = "test" if k >= 20 else "train", "dog barking" if k % 2 else "people clapping, loudly"
        rows.append(f'video{k % 20:06d},{30 * (1 + k // 20)},"{label}",{split}')
        (tmp_path / "video" / f"video{k % 20:06d}_{30 * (1 + k // 20):06d}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / "video" / f"video{k % 20:06d}_{30 * (1 + k // 20):06d}.mp4").touch()
    (tmp_path / "vggsound.csv").write_text("\n".join([*rows, 'gone,5,"dog barking",train']) + "\n")
    clips = prepare("avsuperb/vggsound")(tmp_path, tmp_path)
    assert Counter(c.split for c in clips) == {"train": 20, "test": 4}
    assert {c.labels["sound"] for c in clips} == {"dog barking", "people clapping, loudly"}
    (fold,) = folds("avsuperb/vggsound", [c for c in clips if c.split == "test" or int(c.labels["source"][5:]) > 3])
    assert len(fold.dev) == 1
    assert not set(fold.dev) & {c.id for c in clips if c.split == "test"}
    (tmp_path / "vggsound.csv").write_text("a,b,c\n")
    with pytest.raises(DataError, match=r"vggsound\.csv:1: expected YouTube id"):
        prepare("avsuperb/vggsound")(tmp_path, tmp_path)


def test_kinetics_sounds(tmp_path: Path) -> None:
    for split, name in (("train", "train"), ("val", "val"), ("test", "test")):
        lines = []
        for k in range(4):
            path = tmp_path / split / f"{split[:5]:_<7}{k:04d}_000010_000020.mp4"
            path.parent.mkdir(exist_ok=True)
            path.touch()
            lines.append(f"{path.relative_to(tmp_path)},{k % 2}")
        (tmp_path / f"{name}_data_path.csv").write_text("\n".join([*lines, f"{split}/gone.mp4,1"]) + "\n")
    clips = prepare("avsuperb/kinetics_sounds")(tmp_path, tmp_path)
    assert Counter(c.split for c in clips) == {"train": 4, "dev": 4, "test": 4}
    assert {c.labels["action"] for c in clips} == {"class00", "class01"}
    assert {len(c.labels["source"]) for c in clips} == {11}
    (fold,) = folds("avsuperb/kinetics_sounds", clips)
    assert (len(fold.train), len(fold.dev), len(fold.test)) == (4, 4, 4)
    (tmp_path / "val_data_path.csv").unlink()
    with pytest.raises(DataError, match="val_data_path"):
        prepare("avsuperb/kinetics_sounds")(tmp_path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ravdess/aver", "avsuperb/ucf101"])
def test_the_recipe_runs_on_a_miniature_tree(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages, with a tiny encoder of drawn weights; the scores mean nothing."""
    corpus = tmp_path / "corpus"
    words = ["upstream=l3", "+upstream.width=8", "+upstream.sample_rate=16000", "+upstream.image_size=32"]
    if recipe == "ravdess/aver":
        for actor in range(1, 7):
            for emotion in (1, 3):
                for repetition in (1, 2):
                    name = f"01-01-{emotion:02d}-01-01-{repetition:02d}-{actor:02d}.mp4"
                    video(corpus / f"Actor_{actor:02d}" / name, 0.6)
        words += ["faces.detector=centre", "protocol.k=2", "protocol.dev_groups=1", "faces.size=32"]
    else:
        for number in (1, 8, 10, 11):
            for action in ("Basketball", "Bowling"):
                video(corpus / action / f"v_{action}_g{number:02d}_c01.avi", 0.6)
    folder = tmp_path / "root" / "egs" / recipe
    folder.parent.mkdir(parents=True)
    shutil.copytree(ROOT / "egs" / recipe, folder)
    shutil.copytree(ROOT / "recipes", tmp_path / "root" / "recipes")
    monkeypatch.chdir(folder)
    train = ["train.learning_rates=[1e-2]", "train.max_steps=4", "train.eval_every=2"]
    assert main([f"data.root={corpus}", "--nj", "1", *words, *train, "compare=[]", "exp=a"], folder) == 0
    assert (folder / "exp" / "a" / "results.json").is_file()
