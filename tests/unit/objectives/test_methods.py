"""Every method: three steps of training at tiny size, identity checks, and settings that must be refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmssl
from mmssl.errors import ConfigError, DataError, InputError
from mmssl.objectives.maskers import MaskEmbedding
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.units import read_units, write_units
from mmssl.objectives.types import Examples, Hidden, View
from mmssl.registry import OBJECTIVES
from mmssl.types import Inputs, Padded
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.tera import Tera
from mmssl.upstreams.vit_mae import MAE

CONF = Path(mmssl.__file__).parent / "conf" / "objective"
LENGTHS = (4000, 2600, 3311)
OPTIONS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"num_negatives": 8, "num_entries": 6, "size": 16, "mask_span": 4},
    "hubert": {"num_units": 7, "size": 12, "mask_span": 4},
    "data2vec": {"top_k": 2, "mask_span": 4, "decay_steps": 10},
    "best_rq": {"num_entries": 16, "code_size": 4, "mel_hop": 40},
    "tera": {"max_bins": 8, "time_span": 3},
    "mae": {"decoder_size": 16, "decoder_layers": 1, "decoder_heads": 2},
}
SPEECH = [name for name in OPTIONS if name not in ("tera", "mae")]


def batch(name: str = "wav2vec2") -> Examples:
    generator = torch.Generator().manual_seed(0)
    if name == "mae":
        return Examples(Inputs(images=torch.rand(3, 3, 16, 16, generator=generator)))
    data = torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, size in zip(data, LENGTHS, strict=True):
        row[:size] = torch.randn(size, generator=generator) * 0.1
    inputs = Inputs(waveforms=Padded(data, torch.tensor(LENGTHS)))
    return Examples(inputs, ids=tuple(f"clip{n}" for n in range(len(LENGTHS))))


def upstream(name: str, **kwargs: Any) -> SpeechTransformer | Tera | MAE:
    torch.manual_seed(0)
    if name == "mae":
        return MAE("tiny", hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16)
    if name == "tera":
        return Tera(hidden_size=24, num_layers=2, num_heads=3, feed_forward_size=32, num_mel_bins=20, dropout=0.0)
    return SpeechTransformer("wav2vec2_tiny", dropout=0.0, layer_drop=0.0, **kwargs)


def build(name: str, folder: Path, **changes: Any) -> Objective:
    options = {"health_every": 1, **OPTIONS[name], **changes}
    if name == "hubert" and "units" not in options:
        model = upstream(name)
        frames = model.output_lengths(torch.tensor(LENGTHS)).tolist()
        generator = torch.Generator().manual_seed(1)
        units = {f"clip{n}": torch.randint(7, (size,), generator=generator) for n, size in enumerate(frames)}
        write_units(folder / "units.tsv", units)
        options["units"] = str(folder / "units.tsv")
    torch.manual_seed(1)
    return OBJECTIVES.build(name, upstream(name), **options)


def test_every_method_has_a_config_that_names_its_arguments() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} >= set(OBJECTIVES.builtins)
    texts = [path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "methods").glob("test_*.py")]
    own = {name for name in OBJECTIVES.builtins if any(f"methods.{name} import" in text for text in texts)}
    assert set(OBJECTIVES.builtins) <= set(OPTIONS) | own
    for name, target in OBJECTIVES.builtins.items():
        config = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
        assert config.pop("_target_") == target
        parameters = inspect.signature(OBJECTIVES.resolve(name)).parameters
        for key, value in config.items():
            default = parameters[key].default
            if default is not inspect.Parameter.empty:
                assert value == (list(default) if isinstance(default, tuple) else default), (name, key)


@pytest.mark.parametrize("name", OPTIONS)
def test_three_steps_lower_the_loss_and_train_every_parameter(name: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path).train()
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-3, weight_decay=0.0)
    losses, touched = [], set()
    for step in range(3):
        # one mask and one draw of negatives and noise for all steps, so that losses can be compared
        output = objective(batch(name), step, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        objective.after_step(step)
        losses.append(float(output.logs["loss"]))
        assert output.count > 0
        assert all(not value.requires_grad and torch.isfinite(value).all() for value in output.logs.values())
    assert losses[0] > losses[1] > losses[2], losses
    assert touched == set(trained)
    assert all(not torch.equal(before[n], p) for n, p in trained.items())


@pytest.mark.parametrize("name", OPTIONS)
def test_the_global_generator_is_left_alone_and_runs_repeat(name: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path).train()
    for module in objective.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    state = torch.get_rng_state()
    first = objective(batch(name), 0, torch.Generator().manual_seed(5)).loss
    again = objective(batch(name), 0, torch.Generator().manual_seed(5)).loss
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, objective(batch(name), 0, torch.Generator().manual_seed(6)).loss)


@pytest.mark.parametrize("name", [*SPEECH, "tera"])
def test_what_lies_in_the_padding_cannot_reach_the_loss(name: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path).eval()
    examples = batch()
    with torch.no_grad():
        clean = objective(examples, 0, torch.Generator().manual_seed(2)).loss
        padded = examples.inputs.waveforms
        dirty = padded.data.masked_fill(~padded.mask, 9.0)
        other = Examples(Inputs(waveforms=Padded(dirty, padded.lengths)), examples.ids)
        assert torch.equal(clean, objective(other, 0, torch.Generator().manual_seed(2)).loss)


@pytest.mark.parametrize("name", OPTIONS)
def test_looking_at_health_does_not_move_training(name: str, tmp_path: Path) -> None:
    objective = build(name, tmp_path).eval()
    with torch.no_grad():
        looked = objective(batch(name), 0, torch.Generator().manual_seed(3))
        objective.health_every = 0
        blind = objective(batch(name), 0, torch.Generator().manual_seed(3))
    assert torch.equal(looked.loss, blind.loss)
    assert any("representation_rank" in key for key in looked.logs)
    assert not any("representation_rank" in key for key in blind.logs)


def test_what_the_logs_of_each_method_hold(tmp_path: Path) -> None:
    held = {
        "wav2vec2": {"contrast/accuracy", "contrast/visible_accuracy", "contrast/ln_n", "contrast/target_spread"}
        | {"contrast/code_usage_entropy", "contrast/gumbel_temperature", "diversity/perplexity"},
        "hubert": {"hidden/accuracy", "hidden/visible_accuracy", "hidden/code_usage_entropy", "hidden/ln_n"},
        "data2vec": {"regression/target_spread", "regression/target_rank", "regression/prediction_spread"},
        "best_rq": {"codes/accuracy", "codes/visible_accuracy", "codes/code_usage_entropy"},
        "tera": {"restoration/baseline", "restoration/target_spread"},
        "mae": {"restoration/baseline", "restoration/representation_rank", "restoration/target_spread"},
    }
    for name, keys in held.items():
        logs = build(name, tmp_path)(batch(name), 0).logs
        assert keys <= set(logs), (name, keys - set(logs))
        assert sum(key.endswith("/loss") for key in logs) == len(build(name, tmp_path).terms)


@pytest.mark.parametrize("name", SPEECH)
def test_the_upstream_holds_nothing_of_the_objective(name: str, tmp_path: Path) -> None:
    plain = upstream(name)
    objective = build(name, tmp_path)
    assert set(objective.encoder.upstream.state_dict()) == set(plain.state_dict())
    own = [id(p) for p in objective.parameters()]
    assert len(own) == len(set(own))
    # a mask token belongs to the views, and is trained with them
    tokens = [n for n, _ in objective.named_parameters() if n.startswith("views.")]
    assert len(tokens) == (0 if name == "best_rq" else 1)


def test_the_teacher_is_saved_but_not_trained_and_follows_the_decay(tmp_path: Path) -> None:
    objective = build("data2vec", tmp_path, decay=(0.5, 0.5))
    teacher = objective.terms[0].target.teacher
    assert not any(p.requires_grad for p in teacher.parameters())
    assert any(key.startswith("terms.0.target.teacher.model.upstream.") for key in objective.state_dict())
    weights = objective.encoder.upstream.encoder.blocks[0].expand.weight
    shared = objective.encoder.upstream.front_end.convs[0].weight
    start = weights.detach().clone()
    with torch.no_grad():
        weights.add_(1.0)
        shared.add_(1.0)
    objective.after_step(0)
    copy = teacher.model.upstream
    assert torch.allclose(copy.encoder.blocks[0].expand.weight, start + 0.5)
    assert torch.equal(copy.front_end.convs[0].weight, shared)
    # the teacher sees the whole clip: its targets do not depend on the mask
    targets = []
    objective.terms[0].loss.register_forward_pre_hook(lambda _, args: targets.append(args[1]))
    for seed in (0, 1):
        objective.train()(batch(), 0, torch.Generator().manual_seed(seed))
    assert torch.equal(targets[0], targets[1])


def test_front_end_gradients_are_scaled(tmp_path: Path) -> None:
    grads = []
    for factor in (1.0, 0.1, 0.0):
        objective = build("hubert", tmp_path, front_end_gradient=factor, feature_penalty=0.0).eval()
        objective(batch(), 0, torch.Generator().manual_seed(0)).loss.backward()
        grads.append(objective.encoder.upstream.front_end.convs[0].weight.grad)
    assert torch.allclose(grads[1], 0.1 * grads[0], rtol=1e-4, atol=1e-7)
    assert grads[2] is None


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for changes in ({"mask_probability": 0.0}, {"num_negatives": 0}, {"temperature": 0.0}, {"front_end_gradient": 2.0}):
        with pytest.raises(ConfigError):
            build("wav2vec2", tmp_path, **changes)
    with pytest.raises(ConfigError, match="top_k = 4"):
        build("data2vec", tmp_path, top_k=4)
    with pytest.raises(ConfigError, match="num_units = 3"):
        build("hubert", tmp_path, num_units=3)
    with pytest.raises(ConfigError, match="multiple"):
        build("best_rq", tmp_path, mel_hop=160)  # the tiny front end has a hop of 40
    with pytest.raises(ConfigError, match="speech transformer"):
        OBJECTIVES.build("wav2vec2", torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="transformer on frames"):
        OBJECTIVES.build("tera", upstream("hubert"))
    with pytest.raises(ConfigError, match="does not take these arguments"):
        build("wav2vec2", tmp_path, mask_probabilty=0.5)


def test_bad_batches_are_refused(tmp_path: Path) -> None:
    objective = build("wav2vec2", tmp_path)
    short = Examples(Inputs(waveforms=Padded(torch.randn(2, 500), torch.tensor([500, 20]))))
    with pytest.raises(InputError, match="20 samples"):
        objective(short, 0)
    with pytest.raises(InputError, match="takes waveforms"):
        objective(Examples(Inputs(images=torch.rand(1, 3, 8, 8))), 0)
    spoilt = batch()
    spoilt.inputs.waveforms.data[0, 100] = torch.nan
    with pytest.raises(InputError, match="is nan at step 7"):
        objective(spoilt, 7)


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "units.tsv"
    write_units(path, {"a": [3, 1, 2], "b b": torch.tensor([0])})
    assert path.read_text(encoding="utf-8") == "a\t3 1 2\nb b\t0\n"
    assert {k: v.tolist() for k, v in read_units(path).items()} == {"a": [3, 1, 2], "b b": [0]}
    assert [p.name for p in tmp_path.iterdir()] == ["units.tsv"]
    for text, message in (
        ("a 1 2\n", "line 1"),
        ("a\t1\nb\tx\n", "line 2"),
        ("a\t1\na\t2\n", "line 2"),
        ("a\t-1\n", "line 1"),
        ("", "empty"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_units(path)
    with pytest.raises(DataError, match="no label file"):
        read_units(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="tab"):
        write_units(path, {"a\tb": [1]})


def test_labels_must_fit_the_clips(tmp_path: Path) -> None:
    objective = build("hubert", tmp_path)
    units = objective.terms[0].target
    whole = dict(units.units)
    units.units = {**whole, "clip1": whole["clip1"][:-4]}
    objective(batch(), 0)  # a few missing at the end are forgiven
    units.units = {**whole, "clip1": whole["clip1"][:-5]}
    with pytest.raises(DataError, match="'clip1' has"):
        objective(batch(), 0)
    units.units = {key: value for key, value in whole.items() if key != "clip2"}
    with pytest.raises(DataError, match="no line for the clip 'clip2'"):
        objective(batch(), 0)


def test_labels_of_another_rate_are_taken_at_the_time_of_the_frame(tmp_path: Path) -> None:
    objective = build("hubert", tmp_path, units_rate=800.0)  # frames are at 16000 / 40 = 400 Hz
    target = objective.terms[0].target
    target.units = {key: torch.arange(2 * len(v)) % 7 for key, v in target.units.items()}
    seen = []
    objective.terms[0].loss.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    objective(batch(), 0)
    frames = target.units["clip0"].shape[0] // 2
    assert seen[0][0].tolist() == [(2 * t) % 7 for t in range(frames)]


def test_a_crop_takes_the_labels_of_its_frames(tmp_path: Path) -> None:
    objective = build("hubert", tmp_path)
    seen = []
    objective.terms[0].loss.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    whole = batch()
    waveform = whole.inputs.waveforms.data[:1]
    crop = Inputs(waveforms=Padded(waveform[:, 400:2400], torch.tensor([2000])))
    objective(Examples(crop, ("clip0",), starts=(400,)), 0)
    frames = seen[0].shape[1]
    assert seen[0][0].tolist() == objective.terms[0].target.units["clip0"][10 : 10 + frames].tolist()
    with pytest.raises(ConfigError, match="multiple of the hop"):
        objective(Examples(crop, ("clip0",), starts=(401,)), 0)


def test_dropped_patches_never_enter_the_encoder(tmp_path: Path) -> None:
    objective = build("mae", tmp_path).eval()
    examples = batch("mae")
    view = objective.views(examples, objective.encoder, torch.Generator().manual_seed(0))[0]
    mask = view.hidden["image"].mask
    assert (mask.sum(1) == 12).all()
    seen = []
    objective.encoder.upstream.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    encoded = objective.encoder.encode(view)["image"]
    assert seen == [(3, 5, 24)]  # a class token and 4 of 16 patches
    assert torch.equal(encoded.positions, torch.stack([(~row).nonzero().flatten() for row in mask]))
    pixels = mask.view(3, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    other = Examples(Inputs(images=torch.where(pixels, torch.rand(3, 3, 16, 16), examples.inputs.images)))
    again = objective.encoder.encode(View(other.inputs, view.hidden))["image"]
    assert torch.equal(encoded.output.data, again.output.data)
    assert not torch.equal(encoded.taps["patches"].data, again.taps["patches"].data)
    # with nothing dropped the encoder gives what the upstream gives
    whole = objective.encoder.encode(View(examples.inputs))["image"]
    layers = objective.encoder.upstream(images=examples.inputs.images)["image"]
    assert torch.allclose(whole.layers.hidden_states[-1], layers.hidden_states[-1][:, 1:], atol=1e-6)


def test_masks_that_a_masked_autoencoder_cannot_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        build("mae", tmp_path, mask_ratio=1.0)
    objective = build("mae", tmp_path)
    inputs = batch("mae").inputs
    ragged = torch.zeros(3, 16, dtype=torch.bool)
    ragged[0, 0] = True
    with pytest.raises(InputError, match="same number of patches"):
        objective.encoder.encode(View(inputs, {"image": Hidden(ragged)}))
    with pytest.raises(ConfigError, match="no place here"):
        objective.encoder.encode(View(inputs, {"image": Hidden(ragged, MaskEmbedding(24))}))
    with pytest.raises(InputError, match="takes images"):
        objective(batch(), 0)
    with pytest.raises(ConfigError, match="autoencoder of pictures"):
        OBJECTIVES.build("mae", upstream("hubert"))
