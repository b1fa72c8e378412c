from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from mmssl.errors import ConfigError, StoreError
from mmssl.features.export import export
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.store import FeatureStore
from mmssl.types import Clip


@pytest.fixture
def store(conv_upstream, make_clips, tmp_path) -> FeatureStore:
    clips = [Clip(clip_id, audio=clip.audio) for clip_id, clip in zip(["a", "A", "b/c"], make_clips(3), strict=True)]
    extract(conv_upstream, clips, tmp_path / "store", options=ExtractOptions(progress=False))
    return FeatureStore(tmp_path / "store")


def expected(store: FeatureStore, clip_id: str) -> np.ndarray:
    return np.stack([h.numpy() for h in store.read(clip_id).hidden_states])


def test_npy(store, tmp_path):
    assert export(store, tmp_path / "npy") == 3
    files = json.loads((tmp_path / "npy" / "index.json").read_text())
    assert len({name.lower() for name in files.values()}) == 3
    for clip_id, name in files.items():
        np.testing.assert_array_equal(np.load(tmp_path / "npy" / name), expected(store, clip_id))


def test_kaldi_is_read_by_kaldiio_where_it_lies(store, tmp_path):
    kaldiio = pytest.importorskip("kaldiio")
    assert export(store, tmp_path / "kaldi", "kaldi", layer=-1) == 3
    loaded = kaldiio.load_scp(str(tmp_path / "kaldi" / "feats.scp"))
    assert set(loaded) == set(store.ids)
    for clip_id in store:
        np.testing.assert_array_equal(loaded[clip_id], expected(store, clip_id)[2])
    with pytest.raises(ConfigError, match="name the layer"):
        export(store, tmp_path / "other", "kaldi")


def test_hdf5(store, tmp_path):
    h5py = pytest.importorskip("h5py")
    assert export(store, tmp_path / "hdf5", "hdf5", stat="std") == 3
    with h5py.File(tmp_path / "hdf5" / "features.h5") as file:
        found = {data.attrs["id"]: data[()] for data in file.values()}
    assert set(found) == set(store.ids)
    np.testing.assert_allclose(found["b/c"], expected(store, "b/c").std(1), rtol=1e-5)


def test_webdataset(store, tmp_path):
    assert export(store, tmp_path / "wds", "webdataset", layer=0) == 3
    with tarfile.open(tmp_path / "wds" / "features-000000.tar") as archive:
        names = archive.getnames()
        contents = {name: archive.extractfile(name).read() for name in names}
    assert names == [f"{i:08d}.{suffix}" for i in range(3) for suffix in ("json", "npy")]
    for i, clip_id in enumerate(store.ids):
        assert json.loads(contents[f"{i:08d}.json"]) == {"id": clip_id}
        np.testing.assert_array_equal(np.load(io.BytesIO(contents[f"{i:08d}.npy"])), expected(store, clip_id)[0])


def test_refusals_leave_nothing(store, tmp_path, conv_upstream, make_clips):
    with pytest.raises(ConfigError, match="Did you mean 'kaldi'"):
        export(store, tmp_path / "x", "kaldy")
    with pytest.raises(StoreError, match="exists"):
        export(store, tmp_path / "store")
    with pytest.raises(StoreError, match="no layer 7"):
        export(store, tmp_path / "x", layer=7)
    extract(
        conv_upstream,
        make_clips(1),
        tmp_path / "uneven",
        upstream_kwargs={"uneven": True},
        options=ExtractOptions(progress=False),
    )
    with pytest.raises(StoreError, match="one layer at a time"):
        export(FeatureStore(tmp_path / "uneven"), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "tmp-x").exists()
