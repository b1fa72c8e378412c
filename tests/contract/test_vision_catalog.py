"""The catalogue's rows of wrapped picture, video and sound models state the default sizes of transformers."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.types import UpstreamSpec
from mmssl.upstreams import hf_audio, hf_av, hf_vision
from mmssl.upstreams.catalog import CATALOG, Entry
from mmssl.upstreams.catalog_entry import Run

transformers = pytest.importorskip("transformers")
TINY: dict[str, list[dict[str, Any]]] = runpy.run_path(str(Path(__file__).with_name("tiny.py")))["TINY"]


def assert_states(entry: Entry, spec: UpstreamSpec) -> None:
    for name, stream in spec.streams.items():
        shifts = [spec.frame_shift(name, k) for k in range(stream.num_layers)]
        layers = zip(stream.hidden_sizes, [None if s is None else round(1000 * s, 3) for s in shifts], strict=True)
        runs = [Run(len(list(run)), *key, stream.tokens_per_frame) for key, run in itertools.groupby(layers)]
        assert entry.streams[name] == tuple(runs)
    assert set(entry.streams) == set(spec.streams)
    assert (entry.inputs, entry.sample_rate, entry.video_fps) == (spec.inputs, spec.sample_rate, spec.video_fps)


@pytest.mark.parametrize("model_type", hf_vision.FAMILIES)
def test_vision_families(model_type: str) -> None:
    # a module that is imported below would make its own tensors there
    assert transformers.MODEL_MAPPING[type(transformers.AutoConfig.for_model(model_type))]
    with torch.device("meta"):
        upstream = hf_vision.HFVision(config={"model_type": model_type})
    entry = CATALOG["hf_vision"].families[model_type]
    assert_states(entry, upstream.spec)
    assert entry.invariance == upstream.invariance


@pytest.mark.parametrize("model_type", hf_audio.FAMILIES)
def test_sound_families(model_type: str) -> None:
    family = hf_audio.FAMILIES[model_type](transformers.AutoConfig.for_model(model_type), {})
    entry = CATALOG["hf_audio"].families[model_type]
    assert_states(entry, family.spec)
    assert entry.invariance == family.invariance


@pytest.mark.parametrize("model_type", hf_av.FAMILIES)
def test_audio_visual_families(model_type: str) -> None:
    with torch.device("meta"):
        upstream = hf_av.HFAudioVideo(config={"model_type": model_type})
    entry = CATALOG["hf_av"].families[model_type]
    assert_states(entry, upstream.spec)
    assert entry.invariance == upstream.invariance


@pytest.mark.parametrize(("name", "module"), [("hf_vision", hf_vision), ("hf_audio", hf_audio), ("hf_av", hf_av)])
def test_every_family_has_a_row_and_a_tiny_model(name: str, module: Any) -> None:
    assert set(CATALOG[name].families) == set(module.FAMILIES)
    assert {row["config"]["model_type"] for row in TINY[name]} == set(module.FAMILIES)
