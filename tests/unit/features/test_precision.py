from __future__ import annotations

import pytest
import soundfile
import torch
from torch import nn

from mmssl.errors import ConfigError
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.precision import Int8Linear, compare, with_precision
from mmssl.features.store import FeatureStore
from mmssl.upstreams.base import load_upstream

TINY = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "feed_forward_size": 128, "conv_channels": 64}


def test_int8_linear_is_close_and_bit_equal_in_any_batch():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(128, 64)
    x = torch.randn(37, 128, generator=generator) * torch.logspace(-3, 3, 37)[:, None]
    quick = Int8Linear(linear)
    exact, found = linear(x), quick(x)
    assert found.shape == exact.shape
    assert float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max().detach()) < 0.02
    assert torch.equal(quick(x[3:4]), found[3:4])
    assert torch.equal(quick(x.flip(0)).flip(0), found)
    assert torch.equal(quick(x.view(1, 37, 128))[0], found)
    assert torch.equal(quick(torch.zeros(2, 128)), linear.bias.detach().expand(2, -1))


def test_int8_by_hand():
    linear = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        linear.weight.copy_(127 * torch.eye(64))
    row = torch.zeros(1, 64)
    row[0, 0], row[0, 1] = 2.0, 0.9 * 2 / 127
    # the scale of the row is 2 / 127, so 0.9 of it rounds to 1
    found = Int8Linear(linear)(row)[0]
    assert found[0] == pytest.approx(254.0)
    assert found[1] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(("options", "limit"), [({"int8": True}, 0.05), ({"precision": "bf16"}, 0.1)])
def test_store_of_another_arithmetic_says_so(make_clips, tmp_path, options, limit):
    clips = make_clips(4)
    extract("hubert", clips, tmp_path / "exact", upstream_kwargs=TINY)
    summary = extract("hubert", clips, tmp_path / "quick", upstream_kwargs=TINY, options=ExtractOptions(**options))
    exact, quick = FeatureStore(tmp_path / "exact"), FeatureStore(tmp_path / "quick")
    assert exact.fingerprint.digest != quick.fingerprint.digest
    assert quick.fingerprint.fields["weights"] == exact.fingerprint.fields["weights"]
    assert not exact.notes
    assert "relative error" in quick.notes["precision_error"]
    assert quick.notes["precision_error"] in str(summary)
    error = compare([exact[c.id] for c in clips], [quick[c.id] for c in clips])
    assert 1e-5 < error.relative < limit
    assert error.cosine > 0.99


def test_int8_features_do_not_depend_on_the_batch(make_clips, tmp_path):
    clips = make_clips(6)
    for name, budget in (("one", 0.01), ("all", 60.0)):
        extract(
            "hubert",
            clips,
            tmp_path / name,
            upstream_kwargs=TINY,
            options=ExtractOptions(int8=True, batch_seconds=budget),
        )
    one, together = FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "all")
    error = compare([one[c.id] for c in clips], [together[c.id] for c in clips])
    assert error.relative < 1e-3


def test_wrong_choices(make_clips, tmp_path):
    with pytest.raises(ConfigError, match="fp32, bf16, fp16"):
        extract("fbank", make_clips(1), tmp_path / "s", options=ExtractOptions(precision="fp8"))
    with pytest.raises(ConfigError, match="has none"):
        with_precision(load_upstream("fbank"), int8=True)


def test_stride_keeps_every_nth_frame_and_pools_over_all(conv_upstream, make_clips, tmp_path):
    clips = make_clips(3)
    for stride in (1, 3):
        extract(conv_upstream, clips, tmp_path / str(stride), stride=stride, pooled=("mean", "max"))
    whole, thin = FeatureStore(tmp_path / "1"), FeatureStore(tmp_path / "3")
    assert thin.streams["audio"]["hop_lengths"] == [480, 480, 480]
    for clip in clips:
        for a, b in zip(whole.read(clip.id).hidden_states, thin.read(clip.id).hidden_states, strict=True):
            assert torch.equal(a[::3], b)
        for stat in ("mean", "max"):
            one, two = whole.pooled(clip.id, stat=stat), thin.pooled(clip.id, stat=stat)
            assert torch.equal(one.hidden_states[1], two.hidden_states[1])
    assert soundfile.info(clips[0].audio).frames // 480 + 1 >= len(thin.read(clips[0].id).hidden_states[0])
    with pytest.raises(ConfigError, match="stride"):
        extract(conv_upstream, clips, tmp_path / "0", stride=0)
