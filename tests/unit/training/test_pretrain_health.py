"""The online probe: its classifiers against plain ones, and a run that is the same with and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from mmssl.errors import ConfigError, DataError
from mmssl.objectives.methods.simclr import simclr
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.training.pretrain_health import OnlineProbe, evaluation, linear_classifier, nearest_neighbours
from mmssl.types import Clip
from mmssl.upstreams.torchvision_models import TorchvisionImage


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Dark and bright pictures of four speakers."""
    folder = tmp_path_factory.mktemp("images")
    rng = numpy.random.default_rng(0)
    found = []
    for number in range(16):
        pixels = rng.integers(0, 120, (16, 16, 3)) + 130 * (number % 2)
        Image.fromarray(pixels.astype(numpy.uint8)).save(folder / f"{number}.png")
        labels = {"level": ("dark", "bright")[number % 2]}
        path = str(folder / f"{number}.png")
        found.append(Clip(f"c{number}", image=path, labels=labels, speaker=f"s{number // 4}"))
    return found


def build() -> Objective:
    torch.manual_seed(0)
    network = TorchvisionImage("resnet18", layers=["maxpool", "layer1"], image_size=16)
    return simclr(network, hidden_size=16, size=8, crop_scale=(0.5, 1.0), health_every=2)


def run(clips: list[Clip], folder: Path, *callbacks: Any, **changes: Any) -> tuple[PretrainResult, Objective]:
    objective = build()
    settings: dict[str, Any] = {"learning_rate": 1e-2, "max_steps": 4, "batch_size": 6, "log_every": 2}
    return pretrain(objective, clips, folder, **settings | changes, callbacks=callbacks), objective


def probe(clips: list[Clip], **changes: Any) -> OnlineProbe:
    return OnlineProbe(clips[:8], clips[8:], "level", **{"every": 3, **changes})


def test_a_run_is_the_same_with_and_without_the_probe(clips: list[Clip], tmp_path: Path) -> None:
    plain, one = run(clips, tmp_path / "a")
    state = torch.get_rng_state()
    probed, two = run(clips, tmp_path / "b", probe(clips))
    assert torch.equal(state, torch.get_rng_state())
    rows = [{k: v for k, v in row.items() if not k.startswith("probe/")} for row in probed.history]
    assert rows == plain.history
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert {"probe/knn_untrained", "probe/linear_untrained"} <= set(probed.history[0])
    # steps 3 and 4 are both in the last row, where the last one counts
    assert {"probe/knn", "probe/linear", "probe/chance"} <= set(probed.history[1])
    assert "probe/knn" not in probed.history[0]
    assert probed.history[1]["probe/linear"] == 1.0
    assert probed.history[1]["probe/chance"] == 0.5
    assert probed.history[1]["probe/knn"] == probe(clips).scores(two.encoder.upstream)["probe/knn"]


def test_a_probed_run_is_resumed_exactly(clips: list[Clip], tmp_path: Path) -> None:
    whole, _ = run(clips, tmp_path / "a", probe(clips), accumulate=2, log_every=1)
    run(clips, tmp_path / "b", probe(clips), accumulate=2, log_every=1, max_steps=2, decay="constant")
    again, _ = run(clips, tmp_path / "b", probe(clips), accumulate=2, log_every=1)
    assert again.resumed_from == 2
    assert sorted(again.history[2]) == sorted(whole.history[2])
    assert again.history[0]["probe/knn_untrained"] == whole.history[0]["probe/knn_untrained"]
    assert [("probe/knn" in row) for row in whole.history] == [False, False, True, True]


def test_scoring_leaves_modes_and_statistics_alone(clips: list[Clip]) -> None:
    upstream = build().encoder.upstream.train()
    next(m for m in upstream.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    modes = [m.training for m in upstream.modules()]
    before = {k: v.clone() for k, v in upstream.state_dict().items()}
    first = probe(clips).scores(upstream)
    assert [m.training for m in upstream.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in upstream.state_dict().items())
    assert probe(clips, batch_size=3).scores(upstream) == first
    with evaluation(upstream):
        assert not any(m.training for m in upstream.modules())


def test_the_vote_is_that_of_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, truth = torch.arange(60) % 3, torch.arange(30) % 3
    centres = torch.randn(3, 8, generator=generator)
    train = centres[labels] + torch.randn(60, 8, generator=generator) + 5
    test = centres[truth] + torch.randn(30, 8, generator=generator) + 5

    def weights(distances: numpy.ndarray) -> numpy.ndarray:
        return numpy.exp((1 - distances) / 0.07)

    model = KNeighborsClassifier(7, weights=weights, metric="cosine", algorithm="brute")
    mean = train.mean(0)
    expected = model.fit((train - mean).numpy(), labels.numpy()).score((test - mean).numpy(), truth.numpy())
    assert 0.4 < expected < 1
    assert nearest_neighbours(train, labels, test, truth, neighbours=7, temperature=0.07) == pytest.approx(expected)
    # more neighbours than rows, and a temperature so low that weights would overflow
    assert nearest_neighbours(train[:4], labels[:4], test, truth, neighbours=20, temperature=1e-3) > 0.3


def test_the_linear_classifier_does_without_useless_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(240, 4, generator=generator)
    labels = (rows[:, 0] > 0).long()
    rows[:, 3] = 7.0
    assert linear_classifier(rows[:200], labels[:200], rows[200:], labels[200:]) >= 0.9
    rows[0, 0] = float("nan")
    assert linear_classifier(rows[:200], labels[:200], rows[200:], labels[200:]) == 0


def test_layers_are_averaged_where_they_have_one_width(clips: list[Clip]) -> None:
    upstream = build().encoder.upstream
    assert set(probe(clips, layers="mean").scores(upstream)) == {"probe/knn", "probe/linear", "probe/chance"}
    wide = TorchvisionImage("resnet18", layers=["layer1", "layer2"], image_size=16)
    with pytest.raises(ConfigError, match="one width"):
        probe(clips, layers="mean").scores(wide)
    with pytest.raises(ConfigError, match="gives image"):
        probe(clips, stream="audio").scores(wide)


def test_bad_lists_and_settings_are_refused(clips: list[Clip]) -> None:
    with pytest.raises(DataError, match="Speakers are in both parts"):
        OnlineProbe(clips[:6], clips[6:], "level")
    with pytest.raises(DataError, match="no label 'colour'"):
        OnlineProbe(clips[:8], clips[8:], "colour")
    with pytest.raises(DataError, match="training and test clips"):
        OnlineProbe(clips[:8], [], "level")
    with pytest.raises(DataError, match="at least 2 values"):
        OnlineProbe(clips[:8:2], clips[8:], "level")
    for options in ({"every": 0}, {"temperature": 0.0}, {"layers": "first"}, {"neighbours": 0}):
        with pytest.raises(ConfigError):
            probe(clips, **options)
