"""SimCLR: the loss against lightly, the loss at the start, three steps, bad settings, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead

from mmssl.augment.level import Gain
from mmssl.errors import ConfigError, InputError
from mmssl.objectives.methods.simclr import simclr
from mmssl.objectives.objective import Objective
from mmssl.objectives.projectors import MLP
from mmssl.objectives.targets.other_view import pooled
from mmssl.objectives.types import Examples
from mmssl.types import Inputs, Padded
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.l3 import L3
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.torchvision_models import TorchvisionImage
from mmssl.upstreams.vit_mae import MAE

NAMES = ("vit", "resnet", "speech")


def upstream(name: str) -> Upstream:
    torch.manual_seed(0)
    if name == "vit":
        return MAE("tiny", hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16)
    if name == "resnet":
        return TorchvisionImage("resnet18", layers=["maxpool", "layer1"], image_size=16)
    model = SpeechTransformer("wav2vec2_tiny", dropout=0.0, layer_drop=0.0)
    for module in model.modules():  # no dropout at all, so that losses can be compared
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def build(name: str, **options: object) -> Objective:
    torch.manual_seed(1)
    return simclr(upstream(name), **{"hidden_size": 32, "size": 16, "health_every": 1, **options})  # type: ignore[arg-type]


def batch(name: str, count: int = 6) -> Examples:
    generator = torch.Generator().manual_seed(0)
    seeds = tuple(range(count))
    if name == "speech":
        lengths = torch.randint(1500, 3000, (count,), generator=generator)
        data = torch.randn(count, 3000, generator=generator) * 0.1
        return Examples(Inputs(waveforms=Padded(data, lengths)), seeds=seeds)
    return Examples(Inputs(images=torch.rand(count, 3, 16, 16, generator=generator)), seeds=seeds)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_that_of_lightly(name: str, temperature: float) -> None:
    objective = build(name, temperature=temperature).train()
    head = objective.terms[0].head
    assert isinstance(head, MLP)
    views = objective.views(batch(name), objective.encoder, torch.Generator())
    stream = "audio" if name == "speech" else "image"
    rows = [pooled(objective.encoder.encode(view)[stream]) for view in views]
    theirs = SimCLRProjectionHead(rows[0].shape[1], 32, 16)
    # the same layers by the same names in order, but for the last norm, which has no scale and shift here
    mine = list(head.parameters())
    others = [p for n, p in theirs.named_parameters() if not n.startswith("layers.4")]
    with torch.no_grad():
        for a, b in zip(others, [p for p in mine if p is not head.layers[3].bias], strict=True):
            a.copy_(b)
    projected = [theirs.train()(row) for row in rows]
    expected = NTXentLoss(temperature)(*projected)
    output = objective(batch(name), 0)
    assert torch.allclose(output.loss, expected, atol=1e-4)
    # the gradient goes through both views
    output.loss.backward()
    expected.backward()
    assert torch.allclose(head.layers[0].weight.grad, others[0].grad, atol=1e-4)


def test_the_loss_at_the_start_is_that_of_guessing() -> None:
    for name in ("vit", "resnet"):
        output = build(name, temperature=1.0)(batch(name, 64), 0)
        assert float(output.logs["contrast/ln_n"]) == pytest.approx(math.log(127))
        assert abs(float(output.logs["loss"]) / math.log(127) - 1) < 0.03
        assert float(output.logs["contrast/negatives"]) == 126
        assert output.count == 128


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_lower_the_loss_and_train_every_parameter(name: str) -> None:
    objective = build(name, temperature=0.5).train()
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-3)
    losses, touched = [], set()
    for step in range(3):
        output = objective(batch(name), step)
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        objective.after_step(step)
        losses.append(float(output.logs["loss"]))
        assert all(torch.isfinite(value).all() for value in output.logs.values())
    assert losses[2] < losses[0], losses
    # the bias before the last norm is taken away again: what reaches it is rounding, or nothing
    assert set(trained) - touched <= {"terms.0.head.layers.3.bias"}
    keys = {"contrast/accuracy", "contrast/representation_rank", "contrast/representation_spread"}
    assert keys | {"contrast/target_spread", "contrast/prediction_spread"} <= set(output.logs)


def test_views_follow_the_clips_seeds_and_the_global_generator_is_left_alone() -> None:
    objective = build("vit").eval()
    state = torch.get_rng_state()
    one, two = (objective(batch("vit"), 0, torch.Generator().manual_seed(k)).loss for k in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())


def test_padding_cannot_reach_the_loss() -> None:
    objective = build("speech").train()
    examples = batch("speech")
    padded = examples.inputs.waveforms
    assert padded is not None
    dirty = padded.data.masked_fill(~padded.mask, 9.0)
    other = Examples(Inputs(waveforms=Padded(dirty, padded.lengths)), seeds=examples.seeds)
    assert torch.equal(objective(examples, 0).loss, objective(other, 0).loss)


def test_another_chain_may_be_given() -> None:
    objective = build("speech", augment=Gain((0, 0)), temperature=0.5)
    logs = objective(batch("speech"), 0).logs
    assert float(logs["contrast/accuracy"]) == 1  # both views are the same


def test_bad_settings_and_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        build("vit", temperature=0.0)
    with pytest.raises(ConfigError, match="widths"):
        build("vit", size=0)
    with pytest.raises(ConfigError, match="pooling"):
        build("vit", pooling="max")
    with pytest.raises(ConfigError, match="images or of waveforms"):
        simclr(L3())
    with pytest.raises(InputError, match="at least 2"):
        build("vit").train()(batch("vit", 1), 0)
    with pytest.raises(InputError, match="at least 2"):
        build("vit").eval()(batch("vit", 1), 0)
    with pytest.raises(InputError, match="has none"):
        build("vit")(batch("speech"), 0)
