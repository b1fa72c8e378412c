"""recipes/ssl on sound and pictures: iterations of AV-HuBERT, each on clusters of the encoder of the one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mmssl
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.features.cluster import Clusters
from mmssl.media.sync import load_audio_video
from mmssl.objectives.targets.units import read_units
from mmssl.stages.recipe import main
from mmssl.stages.ssl_setup import Iteration, clustered_stream
from mmssl.types import StreamSpec, UpstreamSpec

ROOT = Path(__file__).parents[2]
SMALL = ("hidden_size=32", "num_layers=2", "num_heads=2", "feed_forward_size=32", "image_size=26")
WORDS = (
    "objective=av_hubert",
    "data.options.num_speakers=3",
    "data.options.num_sentences=1",
    "data.options.sentences_per_speaker=1",
    "protocol.k=3",
    "protocol.dev_groups=1",
    "targets.init_frames=300",
    "probing.online_every=null",
    *(f"upstream.{word}" for word in SMALL),
    "reader.seconds=0.4",
    *("pretrain.warmup_steps=1", "pretrain.log_every=1", "pretrain.batch_size=4", "objective.size=8"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of egs/mini/ssl."""
    target = tmp_path / "egs" / "mini" / "ssl"
    for part in ("conf", "local"):
        source = ROOT / "egs" / "mini" / "ssl" / part
        shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.setenv("MMSSL_CALLER_DIR", str(target))
    return target


def plan(second: str) -> str:
    return f"targets.iterations=[{{source: mfcc, clusters: 5, steps: 2}},{{source: previous, {second}, steps: 2}}]"


@pytest.mark.slow
def test_the_second_iteration_learns_clusters_of_the_first_ones_fusion(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [plan("layer: 1, clusters: 6"), "exp=a", "--stop_stage", "4"]
    assert main(["--nj", "1", *WORDS, *words], folder) == 0, capsys.readouterr().err
    exp = folder / "exp" / "a"
    first, second = (exp / "iterations" / str(number) for number in (1, 2))
    made = [json.loads((part / "targets.json").read_text()) for part in (first, second)]
    assert [(m["source"], m["stream"], m["layer"], m["rate"]) for m in made] == [
        ("mfcc", "audio", 0, 100.0),
        ("previous", "fusion", 1, 25.0),
    ]
    assert 0 < made[1]["quality"]["pnmi"] < 1
    # the labels are the centroids nearest to what the encoder of the first iteration gives for sound and pictures
    units, clusters = read_units(second / "units"), Clusters.load(second / "centroids.safetensors")
    encoder = mmssl.load_upstream(str(first / "upstream"))
    clips = read_manifest(exp / "manifest.jsonl")
    assert set(units) == {clip.id for clip in clips}
    for clip in clips[:3]:
        stretch = {"audio": clip.audio, "duration": clip.duration}
        media = load_audio_video(str(clip.video), size=(26, 26), sample_rate=16000, **stretch)  # type: ignore[arg-type]
        fusion = encoder(media.waveform[None], video=media.video[None])["fusion"]
        frames = fusion.hidden_states[1][0].numpy()
        assert (clusters.assign(frames) == units[clip.id].numpy()).mean() > 0.99
    assert json.loads((second / "run.json").read_text())["steps"] == 2
    assert (exp / "upstream" / "model.safetensors").is_file()


def test_a_stream_or_layer_that_the_encoder_lacks_stops_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        ("layer: 3", "the stream 'fusion' has the layers 0 ... 2 (-1 for the last), got layer 3"),
        ("stream: video, layer: 2", "the stream 'video' has the layers 0 ... 1"),
        ("stream: mouth", "stream must be one of fusion, audio, video, got 'mouth'"),
        ("layer: last", "layer must be a whole number"),
    ]
    for second, message in cases:
        code = main(["--nj", "1", *WORDS, plan(second), "exp=x", "--stop_stage", "1", "--overwrite"], folder)
        assert code == 1, second
        assert message in capsys.readouterr().err, second
    assert not (folder / "data").exists()


def test_the_stream_that_is_clustered() -> None:
    frames, patches = StreamSpec((4, 4), (320, 320)), StreamSpec((4,), (1,), tokens_per_frame=9)
    spec = UpstreamSpec(inputs=("waveforms",), streams={"audio": frames}, sample_rate=16000)
    assert clustered_stream(Iteration(1, 1, "mfcc", stream=None), spec) == "audio"
    both = UpstreamSpec(inputs=("waveforms", "video"), streams={"audio": frames, "fusion": frames, "video": patches})
    assert clustered_stream(Iteration(2, 1, "previous", stream=None), both) == "fusion"
    assert clustered_stream(Iteration(2, 1, "previous", layer=-2, stream="audio"), both) == "audio"
    with pytest.raises(ConfigError, match="a sequence of patches"):
        clustered_stream(Iteration(2, 1, "previous", stream="video"), both)
    pictures = UpstreamSpec(inputs=("video",), streams={"video": patches})
    with pytest.raises(ConfigError, match="stream must be one of video, none is given"):
        clustered_stream(Iteration(2, 1, "previous", stream=None), pictures)
