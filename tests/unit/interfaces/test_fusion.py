from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mmssl.data.streams import Streams, collate_streams, present, select_streams
from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.cross_attention import CrossAttentionFusion
from mmssl.interfaces.fusion import ConcatFusion, Fusion, GatedFusion, HicmaeFusion, build_fusion, drop_streams
from mmssl.interfaces.routed_fusion import RoutedFusion
from mmssl.nn.routed import RoutedTransformer, routing_mask
from mmssl.types import Layers, Padded, StreamSpec

SPECS = {"audio": StreamSpec((6, 6), (320, 320)), "video": StreamSpec((4, 4, 4), (1, 1, 1))}
JOINT = SPECS | {"fusion": StreamSpec((6, 6), (0, 0))}
SMALL = {
    "concat": {},
    "gated": {"hidden_size": 5},
    "cross_attention": {"hidden_size": 8, "num_heads": 2},
    "routed": {"hidden_size": 8, "num_heads": 2, "num_fusion_tokens": 2},
    "hicmae": {},
}


def layers(spec: StreamSpec, lengths: list[int], seed: int, fill: float = 0.0) -> Layers:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for size in spec.hidden_sizes:
        data = torch.randn(len(lengths), max(lengths) + 1, size, generator=draw)
        for row, n in zip(data, lengths, strict=True):
            row[n:] = fill
        found.append(data)
    return Layers(tuple(found), (torch.tensor(lengths),) * len(found))


def batch(name: str, audio: list[int], video: list[int], fill: float = 0.0) -> dict[str, Layers]:
    found = {"audio": layers(SPECS["audio"], audio, 1, fill), "video": layers(SPECS["video"], video, 2, fill)}
    if name == "hicmae":
        both = [a + v if a and v else 0 for a, v in zip(audio, video, strict=True)]
        if any(both):
            found["fusion"] = layers(JOINT["fusion"], both, 3, fill)
    return found


def build(name: str, **kwargs: object) -> Fusion:
    torch.manual_seed(0)
    return build_fusion(name, JOINT if name == "hicmae" else SPECS, **{**SMALL[name], **kwargs}).eval()


def gradients(module: torch.nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", SMALL)
def test_what_a_clip_lacks_does_not_matter(name: str) -> None:
    fusion = build(name)
    mixed = fusion(batch(name, [3, 2, 0], [2, 0, 4]))
    assert mixed.data.shape == (3, 1, fusion.output_size)
    assert mixed.lengths.tolist() == [1, 1, 1]
    noisy = fusion(batch(name, [3, 2, 0], [2, 0, 4], fill=float("nan")))
    torch.testing.assert_close(noisy.data, mixed.data)
    whole = batch(name, [3, 2, 0], [2, 0, 4])
    for clip, names in enumerate((SPECS, ["audio"], ["video"])):
        alone = {}
        for stream in whole:
            n = int(whole[stream].lengths[0][clip])
            if stream in names or (stream == "fusion" and clip == 0):
                alone[stream] = Layers(
                    tuple(h[clip : clip + 1, :n] for h in whole[stream].hidden_states),
                    tuple(c[clip : clip + 1] for c in whole[stream].lengths),
                )
        torch.testing.assert_close(fusion(alone).data[0], mixed.data[clip], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_stay_finite_with_absent_streams_and_nan_in_padding(name: str) -> None:
    fusion = build(name).train()
    found = batch(name, [3, 2, 0], [2, 0, 4], fill=float("nan"))
    fusion(found).data.square().sum().backward()
    assert gradients(fusion)
    assert all(bool(torch.isfinite(g).all()) for g in gradients(fusion))


@pytest.mark.parametrize("name", SMALL)
def test_stream_dropout_is_training_without_the_stream(name: str) -> None:
    fusion = build(name, stream_dropout=0.5)
    found = batch(name, [3, 2], [2, 4])
    expected = [fusion(found).data]
    for stream in ("audio", "video"):
        expected.append(fusion(select_streams(found, [stream])).data)
    fusion.train()
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        outputs = fusion(found).data
        for clip in range(2):
            close = [k for k, want in enumerate(expected) if torch.allclose(outputs[clip], want[clip], atol=1e-6)]
            assert len(close) == 1
            seen.add(close[0])
    assert seen == {0, 1, 2}


def test_dropped_streams_are_never_all_and_follow_the_generator() -> None:
    there = torch.tensor([[True, True], [True, False], [False, True]]).repeat(2000, 1)
    kept = drop_streams(there, 0.3, torch.Generator().manual_seed(0))
    assert bool(kept.any(1).all())
    assert not bool((kept & ~there).any())
    assert torch.equal(kept, drop_streams(there, 0.3, torch.Generator().manual_seed(0)))
    both = kept[::3]
    # each goes with 0.3 and both with 0.09, of which one comes back
    assert both.all(1).float().mean() == pytest.approx(0.49, abs=0.04)
    assert both[:, 0].float().mean() == pytest.approx(0.7 + 0.045, abs=0.04)
    assert torch.equal(kept[1::3], there[1::3])


def test_concatenation_is_that_of_the_weighted_means() -> None:
    fusion = build("concat")
    assert isinstance(fusion, ConcatFusion)
    assert fusion.affine
    found = batch("concat", [3, 2], [2, 4])
    with torch.no_grad():
        fusion.interfaces["audio"].weights.copy_(torch.tensor([0.3, -0.2]))
    weights = torch.tensor([0.3, -0.2]).softmax(0)
    for clip, (a, v) in enumerate(((3, 2), (2, 4))):
        audio = sum(w * h[clip, :a].mean(0) for w, h in zip(weights, found["audio"].hidden_states, strict=True))
        video = sum(h[clip, :v].mean(0) for h in found["video"].hidden_states) / 3
        torch.testing.assert_close(fusion(found).data[clip, 0], torch.cat([audio, video]))
    torch.testing.assert_close(fusion.layer_weights()["audio"], weights)


def test_gates_of_two_streams_are_a_sigmoid() -> None:
    fusion = build("gated")
    assert isinstance(fusion, GatedFusion)
    found = batch("gated", [3, 2], [2, 4])
    inputs = fusion.inputs(found)
    a, v = inputs["audio"].mean, inputs["video"].mean
    w, b = fusion.gates.weight, fusion.gates.bias
    z = torch.sigmoid(torch.cat([a, v], 1) @ (w[:5] - w[5:]).t() + b[:5] - b[5:])
    want = z * torch.tanh(fusion.values["audio"](a)) + (1 - z) * torch.tanh(fusion.values["video"](v))
    torch.testing.assert_close(fusion(found).data[:, 0], want)


def test_hicmaes_features_are_four_means_normed() -> None:
    fusion = build("hicmae")
    assert isinstance(fusion, HicmaeFusion)
    assert fusion.output_size == 4 + 6 + 6 + 6
    found = batch("hicmae", [3, 2], [2, 4])
    a, v = found["audio"].hidden_states, found["video"].hidden_states
    joint = found["fusion"].hidden_states[-1]
    for clip, (n, m) in enumerate(((3, 2), (2, 4))):
        parts = [sum(h[clip, :m].mean(0) for h in v) / 3, sum(h[clip, :n].mean(0) for h in a) / 2]
        parts += [joint[clip, n : n + m].mean(0), joint[clip, :n].mean(0)]
        torch.testing.assert_close(fusion(found).data[clip, 0], fusion.norm(torch.cat(parts)))
    with pytest.raises(InputError, match="audio tokens and then its video"):
        fusion(found | {"fusion": found["audio"]})


def test_cross_attention_sees_the_other_stream() -> None:
    fusion = build("cross_attention")
    assert isinstance(fusion, CrossAttentionFusion)
    found = batch("cross_attention", [3], [2])
    video = found["video"].hidden_states[0].requires_grad_()
    fusion(found).data[0, 0, :8].sum().backward()
    assert video.grad is not None
    assert bool((video.grad[0, :2] != 0).any())


def test_streams_of_a_routed_transformer_stay_pure() -> None:
    torch.manual_seed(0)
    model = RoutedTransformer(["audio", "video"], 8, 3, 2, 16, num_fusion_tokens=2).eval()
    audio = Padded(torch.randn(2, 4, 8), torch.tensor([4, 2]))
    video = Padded(torch.randn(2, 3, 8, requires_grad=True), torch.tensor([1, 3]))
    found = model({"audio": audio, "video": video})
    (grad,) = torch.autograd.grad(found["audio"].data.square().sum(), video.data, allow_unused=True, retain_graph=True)
    assert grad is None or bool((grad == 0).all())
    (grad,) = torch.autograd.grad(found["fusion"].data.square().sum(), video.data)
    assert bool((grad[0, :1] != 0).any())
    assert bool((grad[0, 1:] == 0).all())
    assert bool((grad[1] != 0).all(-1).all())
    torch.testing.assert_close(model({"audio": audio})["audio"].data, found["audio"].data)
    other = model({"audio": audio, "video": Padded(-video.data, video.lengths)})
    torch.testing.assert_close(other["audio"].data, found["audio"].data)
    assert not torch.allclose(other["fusion"].data, found["fusion"].data, atol=1e-3)
    without = model({"audio": audio, "video": Padded(video.data, torch.tensor([0, 3]))})
    torch.testing.assert_close(without["fusion"].data[0], model({"audio": audio})["fusion"].data[0])


def test_the_routing_mask_by_hand() -> None:
    mask = routing_mask([2, 1, 1], torch.tensor([[True, False, True, True]]))[0].int().tolist()
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]]


def test_unimodal_outputs_of_the_routed_fusion() -> None:
    fusion = build("routed")
    assert isinstance(fusion, RoutedFusion)
    found = batch("routed", [3, 2], [2, 4])
    both, alone = fusion.outputs(found), fusion.outputs(select_streams(found, ["video"]))
    torch.testing.assert_close(both["video"], alone["video"])
    assert not torch.allclose(both["fusion"], alone["fusion"], atol=1e-4)


def test_a_fusion_takes_the_place_of_an_interface_in_a_task() -> None:
    fusion = build("concat")
    task = UtteranceClassification(fusion, build_head("linear", fusion.output_size, 3))
    found: Mapping[str, Layers] = Streams(batch("concat", [3, 2], [2, 4]))
    assert task(found, torch.tensor([0, 2])).predictions.shape == (2, 3)
    assert task.affine
    assert task.predict(found).shape == (2, 3)


def test_clips_may_lack_streams_in_a_batch() -> None:
    one = batch("concat", [3], [2])
    clips = [
        {name: Layers(tuple(h[0] for h in x.hidden_states), tuple(n[0] for n in x.lengths)) for name, x in one.items()}
    ]
    clips.append({"audio": clips[0]["audio"]})
    found = collate_streams(clips)
    assert found.num_clips == 2
    assert present(found["video"]).tolist() == [True, False]
    assert found["video"].hidden_states[0].shape == (2, 2, 4)
    torch.testing.assert_close(build("concat")(found).data[0], build("concat")(one).data[0])


def test_wrong_batches_are_refused() -> None:
    fusion = build("concat")
    with pytest.raises(InputError, match="joins the streams audio, video"):
        fusion({"image": layers(SPECS["audio"], [2], 0)})
    with pytest.raises(InputError, match="Clip 1 of the batch has none"):
        fusion(batch("concat", [2, 0], [1, 0]))
    with pytest.raises(InputError, match="of the same clips"):
        Streams({"audio": layers(SPECS["audio"], [2], 0), "video": layers(SPECS["video"], [2, 2], 0)})
    with pytest.raises(InputError, match="no stream 'vidoe'"):
        select_streams(batch("concat", [2], [2]), ["vidoe"])
    with pytest.raises(ConfigError, match="audio, video and fusion"):
        build_fusion("hicmae", SPECS)
    with pytest.raises(ConfigError, match="stream_dropout"):
        build_fusion("concat", SPECS, stream_dropout=1.0)
