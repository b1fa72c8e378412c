from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.downstream.adversarial import GradientReversal, SpeakerAdversary, reversal_strength
from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.probing.leakage import leakage
from mmssl.random import isolated_rng
from mmssl.training.batches import TensorBatches
from mmssl.training.finetune import FineTuneSettings, finetune
from mmssl.training.finetune_model import FineTuneModel
from mmssl.training.fit import fit, predict
from mmssl.training.readers import AudioReader, Item
from mmssl.types import Clip, Layers, StreamSpec
from mmssl.upstreams.base import load_upstream

SPEC = StreamSpec((12,), (320,))


def task(head: str = "mlp", classes: int = 2, **kwargs: Any) -> UtteranceClassification:
    with isolated_rng(0):
        interface = build_interface("last_layer", SPEC)
        return UtteranceClassification(interface, build_head(head, 12, classes, **kwargs))


def adversary(inner: Any, **kwargs: Any) -> SpeakerAdversary:
    with isolated_rng(1):
        return SpeakerAdversary(inner, **{"num_speakers": 4, "hidden_size": 16, **kwargs})


def layers(rows: Tensor) -> Layers:
    return Layers((rows[:, None],), (torch.ones(len(rows), dtype=torch.int64),))


def test_the_identity_with_its_gradient_turned_round() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = GradientReversal(0.7)(x)
    assert torch.equal(out, x)
    weights = torch.arange(15.0).reshape(3, 5)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    torch.testing.assert_close(gradient, -0.7 * weights)
    with pytest.raises(ConfigError, match="at least 0"):
        GradientReversal(-1)


def test_the_schedule_is_that_of_the_paper() -> None:
    assert reversal_strength(0) == 0
    for p in (0.1, 0.5, 1.0):
        assert reversal_strength(p, 0.3) == pytest.approx(0.3 * math.tanh(5 * p))  # the same, written otherwise
    assert reversal_strength(7) == reversal_strength(1)


@pytest.mark.parametrize("head", ["linear", "mlp", "attentive_stats", "ecapa_tdnn", "xvector", "blstm"])
def test_gradients_are_the_tasks_minus_lambda_times_the_adversarys(head: str) -> None:
    sizes: dict[str, Any] = {
        "ecapa_tdnn": {"channels": 8, "joined_size": 8, "embedding_size": 6, "attention_size": 4},
        "xvector": {"channels": 8, "wide_size": 8, "embedding_size": 6},
        "blstm": {"hidden_size": 4, "num_layers": 1},
    }
    wrapped = adversary(task(head, **sizes.get(head, {})), weight=0.5, strength=0.3).train()
    wrapped.task.eval()  # batch norm must not move between the computations
    generator = torch.Generator().manual_seed(0)
    frames = Layers((torch.randn(6, 9, 12, generator=generator),), (torch.tensor([9, 9, 8, 7, 9, 5]),))
    classes, speakers = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([0, 1, -1, 3, 2, 0])
    output = wrapped(frames, torch.stack([classes, speakers], 1))
    output.loss.backward()

    inner = wrapped.task
    scores, hidden = wrapped.scores_and_hidden(frames)
    torch.testing.assert_close(inner.head(inner.interface(frames)), scores)
    torch.testing.assert_close(inner.head.classifier(hidden), scores)
    own = F.cross_entropy(scores, classes)
    known = speakers >= 0
    against = F.cross_entropy(wrapped.adversary(hidden[known]), speakers[known])
    assert output.loss.item() == pytest.approx((own + 0.5 * against).item(), rel=1e-5)
    parts = list(inner.head.parameters())
    for parameter, a, b in zip(
        parts,
        torch.autograd.grad(own, parts, retain_graph=True),
        torch.autograd.grad(against, parts, retain_graph=True, allow_unused=True),
        strict=True,
    ):
        wanted = a - 0.3 * 0.5 * (0 if b is None else b)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)
    theirs = list(wrapped.adversary.parameters())
    for parameter, b in zip(theirs, torch.autograd.grad(0.5 * against, theirs), strict=True):
        torch.testing.assert_close(parameter.grad, b, rtol=1e-4, atol=1e-6)


def test_in_eval_mode_it_is_the_task() -> None:
    inner = task()
    wrapped = adversary(inner).eval()
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, -1], [1, -1], [1, 2], [0, 0], [1, 3]])
    plain = inner.eval()(layers(rows), targets[:, 0])
    found = wrapped(layers(rows), targets)
    assert torch.equal(found.loss, plain.loss)
    assert torch.equal(found.predictions, plain.predictions)
    assert wrapped.metrics(found.predictions, targets) == inner.metrics(plain.predictions, targets[:, 0])
    assert torch.equal(wrapped.predict(layers(rows)), inner.predict(layers(rows)))
    assert (wrapped.monitor, wrapped.affine) == (inner.monitor, inner.affine)
    assert int(wrapped.steps) == 0
    assert not any(name.startswith(("interface", "head")) for name in wrapped.state_dict())


def test_lambda_rises_over_the_ramp_and_survives_a_checkpoint() -> None:
    wrapped = adversary(task(), strength=0.5, ramp_steps=10).train()
    rows, targets = torch.randn(4, 12), torch.tensor([[0, 0], [1, 1], [0, 2], [1, 3]])
    strengths = []
    for _ in range(12):
        wrapped(layers(rows), targets)
        strengths.append(wrapped.reversal.strength)
    assert strengths == pytest.approx([reversal_strength(k / 10, 0.5) for k in range(12)])
    other = adversary(task(), strength=0.5, ramp_steps=10).train()
    other.load_state_dict(wrapped.state_dict())
    other(layers(rows), targets)
    assert other.reversal.strength == pytest.approx(reversal_strength(1, 0.5))


def test_wrong_input_is_refused() -> None:
    wrapped = adversary(task())
    rows = torch.randn(2, 12)
    with pytest.raises(InputError, match="then the speaker"):
        wrapped(layers(rows), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="-1 to 3"):
        wrapped(layers(rows), torch.tensor([[0, 0], [1, 4]]))
    with pytest.raises(InputError, match="Class indices"):
        wrapped(layers(rows), torch.tensor([[0, 0], [2, 1]]))
    with pytest.raises(ConfigError, match="no linear layer 'nothing'; it has projector, classifier"):
        adversary(task(), last_layer="nothing")
    with pytest.raises(ConfigError, match="two speakers"):
        adversary(task(), num_speakers=1)


def test_a_regression_has_the_speaker_in_its_last_column() -> None:
    inner = UtteranceRegression(build_interface("last_layer", SPEC), build_head("mlp", 12, 2))
    wrapped = adversary(inner).train()
    found = wrapped(layers(torch.randn(3, 12)), torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.1, 3.0], [0.0, 0.5, -1.0]]))
    assert torch.isfinite(found.loss)
    with pytest.raises(InputError, match="whole numbers"):
        wrapped.split(torch.tensor([[0.1, 0.2, 0.5]]))


def voices(seed: int, clips: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors that hold a class (3 directions) and a speaker (6 others), mixed by one rotation."""
    generator = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    marks = torch.randn(4, 6, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(clips) % 2
    speakers = torch.arange(clips) // 2 % 4
    rows = 0.7 * torch.randn(clips, 12, generator=generator)
    rows[:, :3] += (2.0 * classes - 1)[:, None]
    rows[:, 3:9] += 2 * marks[speakers]
    return rows @ rotation, classes, speakers


def trained(wrapped: Any, with_speakers: bool) -> tuple[float, Any]:
    """Test accuracy of the task, and the leakage of what the last layer of its head sees."""
    rows, classes, speakers = voices(0, 400)
    dev, dev_classes, _ = voices(1, 100)
    test, test_classes, test_speakers = voices(2, 200)

    def targets(own: Tensor, who: Tensor) -> Tensor:
        return torch.stack([own, who], 1) if with_speakers else own

    splits = [
        TensorBatches(layers(x), targets(y, s))
        for x, y, s in ((rows, classes, speakers), (dev, dev_classes, torch.full((100,), -1)))
    ]
    settings: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 400, "max_steps": 2000, "eval_every": 2000}
    fit(wrapped, *splits, patience=None, **settings)
    answers, _ = predict(wrapped, TensorBatches(layers(test), targets(test_classes, test_speakers)))
    accuracy = float((answers.argmax(1) == test_classes).float().mean())
    seen: SpeakerAdversary = wrapped if with_speakers else adversary(wrapped)
    return accuracy, leakage(seen.hidden(layers(test)).numpy(), [str(int(s)) for s in test_speakers])


@pytest.mark.slow
def test_the_hidden_layer_tells_less_of_the_speaker_and_the_task_stays() -> None:
    plain, leaks = trained(task(hidden_size=8), False)
    kept, rest = trained(adversary(task(hidden_size=8), strength=0.1, ramp_steps=2000, hidden_size=128), True)
    assert plain > 0.9
    assert kept > plain - 0.03
    assert leaks.accuracy > 0.65
    assert rest.accuracy < leaks.accuracy - 0.15
    assert rest.interval[1] < leaks.interval[0]
    assert np.isclose(rest.chance, 0.25)


class Tones(AudioReader):
    """Clips made from their number: odd ones are loud."""

    def measure(self, clip: Clip) -> int:
        return 1600

    def load(self, clip: Clip, first: int, count: int) -> Item:
        number = int(clip.id)
        noise = torch.randn(1600, generator=torch.Generator().manual_seed(number))
        return self.cut(Item(waveform=(0.02 + 0.5 * (number % 2)) * noise), first, count)


def test_it_is_trained_as_a_probe_is() -> None:
    rows, classes, speakers = voices(0, 40)
    wrapped = adversary(task(hidden_size=8), ramp_steps=4)
    before = wrapped.adversary[0].weight.clone()
    train = TensorBatches(layers(rows), torch.stack([classes, speakers], 1))
    dev = TensorBatches(layers(rows), torch.stack([classes, torch.full((40,), -1)], 1))
    result = fit(wrapped, train, dev, learning_rate=1e-3, max_steps=4, eval_every=2)
    assert [row["step"] for row in result.history] == [2, 4]
    assert "dev_uar" in result.best
    assert not torch.equal(before, wrapped.adversary[0].weight)


def test_it_is_fine_tuned_with_its_upstream(tmp_path: Path) -> None:
    upstream = load_upstream("wav2vec2", preset="wav2vec2_tiny", normalize=False)
    with isolated_rng(0):
        interface = build_interface("last_layer", upstream.spec.streams["audio"])
        inner = UtteranceClassification(interface, build_head("mlp", interface.output_size, 2, hidden_size=8))
    model = FineTuneModel(upstream, adversary(inner, num_speakers=3, ramp_steps=4))
    clips = [Clip(str(k)) for k in range(12)]
    targets = {str(k): (k % 2, k % 3 if k < 8 else -1) for k in range(12)}
    settings = FineTuneSettings(max_steps=4, batch_size=4, learning_rate=1e-3, eval_every=2)
    result = finetune(model, clips[:8], clips[8:], targets, Tones(16000), tmp_path, settings)
    assert 0 <= result.best["dev_uar"] <= 1
    assert result.best["dev_loss"] < 2  # of the task alone
    assert [row["step"] for row in result.history] == [2, 4]
