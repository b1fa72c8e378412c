"""Correspondence, synchrony, cross-modal InfoNCE and AV-HuBERT: identities, three steps, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mmssl
from mmssl.errors import ConfigError, InputError
from mmssl.objectives.av_encoders import AvHubertEncoder, TimedJoin, TwoTowerEncoder
from mmssl.objectives.av_masked import MaskedPair
from mmssl.objectives.methods.av_hubert import av_hubert
from mmssl.objectives.methods.correspondence import correspondence
from mmssl.objectives.methods.cross_modal import cross_modal
from mmssl.objectives.methods.synchrony import synchrony
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.units import write_units
from mmssl.objectives.types import Examples, View
from mmssl.types import Inputs, Padded
from mmssl.upstreams.av_hubert import AvHubert
from mmssl.upstreams.l3 import L3
from mmssl.upstreams.two_tower import XDC

CONF = Path(mmssl.__file__).parent / "conf" / "objective"
METHODS: dict[str, tuple[Callable[..., Objective], dict[str, Any]]] = {
    "correspondence": (correspondence, {"audio_seconds": 0.3, "size": 8}),
    "synchrony": (synchrony, {"crop_seconds": 0.3, "min_shift": 0.1, "max_shift": 0.3, "size": 8}),
    "cross_modal": (cross_modal, {"audio_seconds": 0.3, "size": 8, "hidden_size": 12}),
    "av_hubert": (av_hubert, {"num_units": 7, "size": 12, "audio_mask": (0.6, 3), "video_mask": (0.3, 2)}),
}


def batch(name: str, count: int = 6) -> Examples:
    generator = torch.Generator().manual_seed(0)
    rate, size, frames = (16000, 24, (15, 13, 15)) if name == "av_hubert" else (8000, 8, (15,) * count)
    per_frame = rate // 25
    lengths = torch.tensor(frames)
    sound = 0.1 * torch.randn(len(frames), 15 * per_frame, generator=generator)
    video = torch.rand(len(frames), 15, 3, size, size, generator=generator)
    inputs = Inputs(Padded(sound, lengths * per_frame), Padded(video, lengths))
    ids = tuple(f"clip{n}" for n in range(len(frames)))
    return Examples(inputs, ids, seeds=tuple(range(3, 3 + len(frames))))


def build(name: str, folder: Path, **changes: Any) -> Objective:
    method, options = METHODS[name]
    options = {"health_every": 1, **options, **changes}
    torch.manual_seed(0)
    if name != "av_hubert":
        return method(L3(width=2, sample_rate=8000, image_size=8), **options)
    generator = torch.Generator().manual_seed(1)
    write_units(folder / "units", {f"clip{n}": torch.randint(7, (15,), generator=generator) for n in range(3)})
    upstream = AvHubert("tiny", image_size=24, dropout=0.0, layer_drop=0.0)
    return method(upstream, **{"units": str(folder / "units"), **options})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", METHODS)
def test_the_config_gives_the_defaults(name: str) -> None:
    import inspect

    config = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    method = METHODS[name][0]
    assert config.pop("_target_") == f"{method.__module__}.{method.__name__}"
    parameters = inspect.signature(method).parameters
    assert set(config) == set(parameters) - {"upstream", "health_every"}
    for key, value in config.items():
        default = parameters[key].default
        if default is not inspect.Parameter.empty:
            assert value == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("name", METHODS)
def test_three_steps_lower_the_loss_and_train_every_parameter(name: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path).train()
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-3, weight_decay=0.0)
    losses, touched = [], set()
    for step in range(3):
        output = objective(batch(name), step, generator())
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        losses.append(float(output.logs["loss"]))
        assert all(torch.isfinite(value).all() and not value.requires_grad for value in output.logs.values())
    assert losses[0] > losses[1] > losses[2], losses
    assert touched == set(trained)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("control", ["none", "shuffled", "audio_only", "video_only"])
def test_runs_repeat_and_leave_the_global_generator_alone(name: str, control: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path, control=control).eval()
    examples = batch(name)
    if name == "av_hubert" and control == "shuffled":
        waveforms, video = examples.inputs.waveforms, examples.inputs.video
        assert waveforms is not None
        assert video is not None
        full = torch.full((3,), 13)
        examples = replace(examples, inputs=Inputs(Padded(waveforms.data, full * 640), Padded(video.data, full)))
    state = torch.get_rng_state()
    with torch.no_grad():
        first = objective(examples, 0, generator(5)).loss
        assert torch.equal(first, objective(examples, 0, generator(5)).loss)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["correspondence", "synchrony"])
def test_matching_starts_at_ln_2_and_has_half_true_pairs(name: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path).eval()
    with torch.no_grad():
        head = objective.terms[0].head
        assert isinstance(head, torch.nn.Linear)
        logs = objective(batch(name), 0).logs
        assert float(logs["match/loss"]) == pytest.approx(math.log(2), abs=0.15)
        assert float(logs["match/positives"]) == 0.5
        head.weight.zero_()
        head.bias.zero_()
        assert float(objective(batch(name), 0).loss) == pytest.approx(math.log(2), abs=1e-6)


def test_correspondence_equals_the_papers_network_pair_by_pair(tmp_path: Path) -> None:
    objective = build("correspondence", tmp_path).eval()
    with torch.no_grad():
        examples = batch("correspondence")
        output = objective(examples, 0, generator(9))
        (view,) = objective.views(examples, objective.encoder, generator(9))
        assert view.inputs.waveforms is not None
        assert view.inputs.video is not None
        joint, head = objective.encoder.get_submodule("joint.hidden"), objective.terms[0].head
        assert head is not None
        losses = []
        for a, v, match in zip(*(view.labels[name].tolist() for name in ("audio", "video", "match")), strict=True):
            pair = objective.encoder.upstream(
                view.inputs.waveforms.data[a : a + 1], video=view.inputs.video.data[v : v + 1]
            )
            both = torch.cat([pair[side][-1].data[0].amax(0) for side in ("audio", "video")])
            logits = head(torch.relu(joint(both))).double().numpy()
            losses.append(np.log(np.exp(logits).sum()) - logits[match])
        assert float(output.loss) == pytest.approx(np.mean(losses), abs=1e-6)
        assert output.count == 12


def test_correspondence_by_distance_equals_its_formula_pair_by_pair(tmp_path: Path) -> None:
    """AVE-Net: two layers on either side, unit vectors, their distance, one layer to two classes."""
    objective = build("correspondence", tmp_path, join="distance").eval()
    weights = {
        name: value.detach().double().numpy()
        for name, value in objective.encoder.get_submodule("joint").named_parameters()
    }
    with torch.no_grad():
        output = objective(batch("correspondence"), 0, generator(9))
        (view,) = objective.views(batch("correspondence"), objective.encoder, generator(9))
        assert view.inputs.waveforms is not None
        assert view.inputs.video is not None
        found = objective.encoder.upstream(view.inputs.waveforms.data, video=view.inputs.video.data)
    units = {}
    for side in ("audio", "video"):
        pooled = found[side][-1].data.amax(1).double().numpy()
        hidden = np.maximum(pooled @ weights[f"{side}.0.weight"].T + weights[f"{side}.0.bias"], 0)
        vectors = hidden @ weights[f"{side}.2.weight"].T + weights[f"{side}.2.bias"]
        units[side] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    head = objective.terms[0].head
    assert isinstance(head, torch.nn.Linear)
    assert head.weight.shape == (2, 1)
    losses = []
    for a, v, match in zip(*(view.labels[name].tolist() for name in ("audio", "video", "match")), strict=True):
        distance = np.linalg.norm(units["audio"][a] - units["video"][v])
        logits = head.weight.detach().double().numpy()[:, 0] * distance + head.bias.detach().double().numpy()
        losses.append(np.log(np.exp(logits).sum()) - logits[match])
    assert float(output.loss) == pytest.approx(np.mean(losses), abs=1e-5)
    with pytest.raises(ConfigError, match="concat, distance, timed_distance"):
        build("correspondence", tmp_path, join="sum")


def test_cross_modal_equals_a_symmetric_softmax_of_cosines(tmp_path: Path) -> None:
    objective = build("cross_modal", tmp_path, temperature=0.2).eval()
    with torch.no_grad():
        examples = batch("cross_modal")
        output = objective(examples, 0, generator(4))
        (view,) = objective.views(examples, objective.encoder, generator(4))
        assert view.inputs.waveforms is not None
        assert view.inputs.video is not None
        found = objective.encoder.upstream(view.inputs.waveforms.data, video=view.inputs.video.data)
        heads = objective.terms[0].head, objective.terms[0].target.head  # type: ignore[union-attr]
        sides = [
            head(found[side][-1].data.mean(1)).double().numpy()  # type: ignore[misc, operator]
            for side, head in zip(("audio", "video"), heads, strict=True)
        ]
        a, v = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
        scores = a @ v.T / 0.2
        wanted = [np.mean(np.log(np.exp(s).sum(1)) - np.diagonal(s)) for s in (scores, scores.T)]
    assert float(output.loss) == pytest.approx(np.mean(wanted), abs=1e-5)
    assert float(output.logs["contrast/negatives"]) == 5
    assert float(output.logs["contrast/ln_n"]) == pytest.approx(math.log(6))


def test_pictures_stand_for_videos_of_one_frame(tmp_path: Path) -> None:
    objective = build("cross_modal", tmp_path, audio_seconds=None).eval()
    images = torch.rand(4, 3, 8, 8)
    waveforms = Padded(0.1 * torch.randn(4, 3000), torch.tensor([3000, 2000, 2500, 3000]))
    with torch.no_grad():
        loss = objective(Examples(Inputs(waveforms, images=images)), 0, generator()).loss
        encoded = objective.encoder.encode(View(Inputs(waveforms, images=images)))
        alone = objective.encoder.upstream(video=images[1:2, None])["video"][-1].data
    assert torch.isfinite(loss)
    assert torch.allclose(encoded["video"].output.data[1:2], alone, atol=1e-6)


def test_the_join_over_time_sees_no_padding_and_no_other_pair() -> None:
    torch.manual_seed(0)
    join = TimedJoin(5, 3, 8).eval()
    sounds = [torch.randn(n, 5) for n in (7, 9, 7, 4)]
    pictures = [torch.randn(n, 3) for n in (5, 5, 5, 8)]
    with torch.no_grad():
        together = join(sounds, pictures)
        alone = [join([s], [p])[0] for s, p in zip(sounds, pictures, strict=True)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-6)


def test_av_hubert_equals_an_independent_computation(tmp_path: Path) -> None:
    objective = build("av_hubert", tmp_path).eval()
    examples = batch("av_hubert")
    with torch.no_grad():
        output = objective(examples, 0, generator(8))
        (view,) = objective.views(examples, objective.encoder, generator(8))
        encoder = objective.encoder
        encoded = encoder.encode(view)["fusion"]
        head: Any = objective.terms[0].head
        from mmssl.objectives.targets.units import read_units

        units = read_units(tmp_path / "units")
        union = view.hidden["audio"].mask | view.hidden["video"].mask
        losses = []
        for b, frames in enumerate((15, 13, 15)):
            projected = (encoded.output.data[b] @ head.projection.weight.T + head.projection.bias).double().numpy()
            classes = head.classes.double().numpy()
            for t in range(frames):
                if union[b, t]:
                    p = projected[t] / np.linalg.norm(projected[t])
                    logits = classes @ p / np.linalg.norm(classes, axis=1) / 0.1
                    losses.append(np.log(np.exp(logits).sum()) - logits[int(units[f"clip{b}"][t])])
        latents = encoded.taps["latents"].unpad()
        penalty = torch.cat([clip.flatten() for clip in latents]).double().square().mean()
    assert float(output.logs["hidden/loss"]) == pytest.approx(np.mean(losses), abs=1e-5)
    assert float(output.loss) == pytest.approx(np.mean(losses) + 10 * float(penalty), abs=1e-4)
    assert output.count == len(losses) == int(union.sum())


def test_av_hubert_without_masks_is_the_upstream_and_dropped_modalities_are_absent_ones(tmp_path: Path) -> None:
    objective = build("av_hubert", tmp_path).eval()
    inputs = batch("av_hubert").inputs
    waveforms, video = inputs.waveforms, inputs.video
    assert waveforms is not None
    assert video is not None
    upstream = objective.encoder.upstream
    with torch.no_grad():
        for use_audio, use_video in ((True, True), (True, False), (False, True)):
            labels = {"use_audio": torch.tensor([use_audio] * 3), "use_video": torch.tensor([use_video] * 3)}
            encoded = objective.encoder.encode(View(inputs, labels=labels))["fusion"]
            whole = upstream(
                waveforms.data if use_audio else None,
                waveforms.lengths if use_audio else None,
                video=video.data if use_video else None,
                video_lengths=video.lengths if use_video else None,
            )["fusion"]
            for layer in range(len(whole)):
                assert torch.allclose(encoded.layers[layer].data, whole[layer].data, atol=1e-5)


def test_masks_and_dropout_depend_on_the_clip_alone(tmp_path: Path) -> None:
    objective = build("av_hubert", tmp_path)
    examples = batch("av_hubert")
    (view,) = objective.views(examples, objective.encoder, generator(1))
    waveforms, video = examples.inputs.waveforms, examples.inputs.video
    assert waveforms is not None
    assert video is not None
    parts = Inputs(Padded(waveforms.data[1:2], waveforms.lengths[1:2]), Padded(video.data[1:2], video.lengths[1:2]))
    (alone,) = objective.views(Examples(parts, ("clip1",), seeds=(4,)), objective.encoder, generator(2))
    for stream in ("audio", "video"):
        assert torch.equal(view.hidden[stream].mask[1, :13], alone.hidden[stream].mask[0])
        assert view.hidden[stream].seeds[1] == alone.hidden[stream].seeds[0]
        assert view.labels[f"use_{stream}"][1] == alone.labels[f"use_{stream}"][0]


def test_modality_dropout_per_batch_is_one_draw(tmp_path: Path) -> None:
    objective = build("av_hubert", tmp_path, dropout_per="batch")
    seen = set()
    for seed in range(30):
        labels = objective.views(batch("av_hubert"), objective.encoder, generator(seed))[0].labels
        pairs = set(zip(labels["use_audio"].tolist(), labels["use_video"].tolist(), strict=True))
        assert len(pairs) == 1
        seen |= pairs
    assert seen == {(True, True), (True, False), (False, True)}


def test_what_is_refused(tmp_path: Path) -> None:
    tiny = L3(width=2, sample_rate=8000, image_size=8)
    with pytest.raises(ConfigError, match="two towers"):
        cross_modal(AvHubert("tiny", image_size=24))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two towers"):
        correspondence(XDC(width=2, image_size=16, modalities=["video"]))
    with pytest.raises(ConfigError, match="AV-HuBERT"):
        AvHubertEncoder(tiny)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hard_share"):
        synchrony(tiny, hard_share=2.0)
    with pytest.raises(ConfigError, match="min_shift"):
        synchrony(tiny, min_shift=3.0, max_shift=1.0)
    with pytest.raises(ConfigError, match="allows 0"):
        build("av_hubert", tmp_path, num_units=3)
    with pytest.raises(ConfigError, match="dropout"):
        build("av_hubert", tmp_path, dropout_per="frame")
    with pytest.raises(ConfigError, match="mask"):
        build("av_hubert", tmp_path, video_mask=(0.0, 5))
    with pytest.raises(InputError, match="at least 2"):
        cross_modal(tiny, health_every=0)(_one(), 0)
    with pytest.raises(InputError, match="another clip"):
        correspondence(tiny, audio_seconds=0.3, health_every=0)(_one(), 0)
    with pytest.raises(ConfigError, match="hides nothing"):
        TwoTowerEncoder(tiny).encode(View(batch("synchrony").inputs, hidden={"audio": None}))  # type: ignore[dict-item]
    views = build("av_hubert", tmp_path).views
    assert isinstance(views, MaskedPair)
    views.masks = {"audio": (0.5, 99), "video": (0.5, 99)}
    with pytest.raises(InputError, match="hide nothing"):
        views(batch("av_hubert"), build("av_hubert", tmp_path).encoder, generator())


def _one() -> Examples:
    whole = batch("synchrony").inputs
    assert whole.waveforms is not None
    assert whole.video is not None
    inputs = Inputs(
        Padded(whole.waveforms.data[:1], whole.waveforms.lengths[:1]),
        Padded(whole.video.data[:1], whole.video.lengths[:1]),
    )
    return Examples(inputs, ("a",))
