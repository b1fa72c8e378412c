from __future__ import annotations

import pytest
import torch

from mmssl.errors import StoreError
from mmssl.features.export import export
from mmssl.features.extract import extract
from mmssl.features.maintain import merge, verify
from mmssl.features.store import FeatureStore


def test_merged_stores_hold_all_clips_and_stay_as_they_were(conv_upstream, make_clips, tmp_path):
    clips = make_clips(6)
    extract(conv_upstream, clips[:4], tmp_path / "a")
    extract(conv_upstream, clips[3:], tmp_path / "b")
    one, two = FeatureStore(tmp_path / "a"), FeatureStore(tmp_path / "b")
    merged = merge([one, two], tmp_path / "c")
    assert merged.ids == sorted(clip.id for clip in clips)
    assert verify(merged).ok
    for store in (one, two):
        for clip_id in store:
            for a, b in zip(store.read(clip_id).hidden_states, merged.read(clip_id).hidden_states, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert FeatureStore(tmp_path / "a").ids == one.ids
    assert extract(conv_upstream, clips, tmp_path / "c").done == 0


def test_stores_of_other_features_and_the_target_itself_are_refused(conv_upstream, make_clips, tmp_path):
    clips = make_clips(2)
    extract(conv_upstream, clips, tmp_path / "a")
    extract(conv_upstream, clips, tmp_path / "b", upstream_kwargs={"width": 4})
    one, two = FeatureStore(tmp_path / "a"), FeatureStore(tmp_path / "b")
    with pytest.raises(StoreError, match="width"):
        merge([one, two], tmp_path / "c")
    with pytest.raises(StoreError, match="another folder"):
        merge([one], tmp_path / "a")


def test_parquet_holds_every_clip(conv_upstream, make_clips, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    clips = make_clips(3)
    extract(conv_upstream, clips, tmp_path / "s")
    store = FeatureStore(tmp_path / "s")
    assert export(store, tmp_path / "out", "parquet") == 3
    rows = parquet.read_table(tmp_path / "out" / "features.parquet").to_pylist()
    for row in rows:
        expected = torch.stack(store.read(row["id"]).hidden_states)
        assert tuple(row["shape"]) == tuple(expected.shape)
        assert torch.equal(torch.tensor(row["features"]).view(row["shape"]), expected)
    assert [row["id"] for row in rows] == store.ids
