from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.features.fingerprint import Fingerprint, file_hash, input_key, make_fingerprint, weights_hash
from mmssl.upstreams.base import load_upstream


def build(path: str, seed: int = 0, **kwargs):
    return load_upstream(path, seed=seed, **kwargs), kwargs


def fingerprint(path: str, seed: int = 0, outputs: dict | None = None, **kwargs) -> Fingerprint:
    upstream, kwargs = build(path, seed, **kwargs)
    return make_fingerprint(upstream, kwargs=kwargs, **(outputs or {}))


def test_same_settings_give_the_same_digest_and_survive_json(conv_upstream):
    one, two = fingerprint(conv_upstream), fingerprint(conv_upstream)
    assert one.digest == two.digest
    assert Fingerprint(json.loads(json.dumps(dict(one.fields)))).digest == one.digest
    assert one.differences(two) == []


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"seed": 1}, {"weights"}),
        ({"scale": 2.0}, {"kwargs"}),
        ({"width": 4}, {"kwargs", "streams", "weights"}),
        ({"outputs": {"layers": [0, -1]}}, {"streams"}),
        ({"outputs": {"dtype": "float16"}}, {"dtype"}),
        ({"outputs": {"pooled": ["mean"]}}, {"pooled"}),
        ({"outputs": {"frames": False}}, {"frames"}),
    ],
)
def test_every_setting_that_changes_features_changes_exactly_its_fields(conv_upstream, change, fields):
    base, changed = fingerprint(conv_upstream), fingerprint(conv_upstream, **change)
    assert base.digest != changed.digest
    assert {line.split(":")[0] for line in base.differences(changed)} == fields


def test_a_built_upstream_is_told_apart_by_plain_attributes(conv_upstream):
    digests = {make_fingerprint(build(conv_upstream, scale=s)[0]).digest for s in (1.0, 2.0, 1.0)}
    assert len(digests) == 2


def test_plug_in_file_counts_by_content_not_by_place(conv_upstream, tmp_path):
    text = Path(conv_upstream).read_text()
    same, other = tmp_path / "a" / "conv_upstream.py", tmp_path / "b" / "conv_upstream.py"
    for path, content in ((same, text), (other, text + "\n# changed\n")):
        path.parent.mkdir()
        path.write_text(content)
    base = fingerprint(conv_upstream)
    assert fingerprint(str(same)).digest == base.digest
    assert [line.split(":")[0] for line in base.differences(fingerprint(str(other)))] == ["upstream"]


def test_path_arguments_count_by_content(conv_upstream, tmp_path):
    upstream, _ = build(conv_upstream)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "config.json").write_text('{"a": 1}')
    digest = make_fingerprint(upstream, kwargs={"path": str(one)}).digest
    assert make_fingerprint(upstream, kwargs={"path": two}).digest == digest
    (two / "config.json").write_text('{"a": 2}')
    assert make_fingerprint(upstream, kwargs={"path": str(two)}).digest != digest
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"1")
    digest = make_fingerprint(upstream, kwargs={"checkpoint": str(weights)}).digest
    weights.write_bytes(b"2")
    assert make_fingerprint(upstream, kwargs={"checkpoint": str(weights)}).digest != digest


def test_weights_hash_sees_name_type_shape_value_and_unsaved_buffers():
    def module(name="weight", value=None, buffer=0.0):
        part = torch.nn.Module()
        part.register_parameter(name, torch.nn.Parameter(torch.ones(2, 3) if value is None else value))
        part.register_buffer("window", torch.tensor([buffer]), persistent=False)
        return part

    flipped = torch.ones(2, 3)
    flipped[1, 2] = 1.0000001
    variants = [module(), module("w"), module(value=flipped), module(value=torch.ones(3, 2)), module(buffer=1.0)]
    variants += [module(value=torch.ones(2, 3, dtype=torch.bfloat16))]
    assert len({weights_hash(m) for m in variants}) == len(variants)
    assert weights_hash(module()) == weights_hash(module())
    # the layout in memory does not matter
    assert weights_hash(module(value=torch.ones(3, 2).t())) == weights_hash(module())


def test_input_key_is_content_and_segment(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    content = file_hash(tmp_path / "a")
    assert content == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    keys = {input_key(content, *segment) for segment in ((0, None), (0.0, 1), (1, 1.0), (0, 1.0))}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"pooled": ["meen"]}, "Did you mean 'mean'"),
        ({"dtype": "float64"}, "float32, float16"),
        ({"frames": False, "pooled": []}, "keeps nothing"),
        ({"layers": [3]}, "from -3 to 2"),
        ({"layers": [2, -1]}, "different numbers"),
        ({"layers": []}, "different numbers"),
    ],
)
def test_wrong_settings_are_refused(conv_upstream, outputs, message):
    with pytest.raises(ConfigError, match=message):
        fingerprint(conv_upstream, outputs=outputs)


def test_an_argument_that_is_no_plain_value_is_refused(conv_upstream):
    with pytest.raises(ConfigError, match="'config' is a object"):
        make_fingerprint(build(conv_upstream)[0], kwargs={"config": object()})
