from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.probing.data import Part, ProbeData, subset
from mmssl.probing.evaluate import probe
from mmssl.probing.protocols import PROTOCOLS, knn_scores, predict_folds

QUICK = {"max_steps": 60, "learning_rates": (1e-3, 1e-2), "patience": None}


@pytest.mark.parametrize("protocol", ["linear", "mlp", "knn", "logreg"])
def test_every_protocol_finds_the_classes(protocol: str, data: ProbeData, parts: list[Part]) -> None:
    result = probe(data, parts, protocol, settings=QUICK)
    uar = result.metrics["uar"]
    assert uar["mean"] > 0.85
    assert uar["ci_low"] <= uar["pooled"] <= uar["ci_high"]
    assert len(result.truth) == 60 == len(result.predictions[0])
    assert result.ids[:2] == ["c003", "c007"]
    if protocol in ("knn", "logreg"):
        # the layer is chosen on the development split: only one holds the classes
        assert [fold["seeds"]["0"]["chosen"]["layer"] for fold in result.folds] == [1, 1]


@pytest.mark.parametrize("protocol", ["linear", "mlp", "ridge"])
def test_values(protocol: str, corpus: Callable[..., ProbeData], parts: list[Part]) -> None:
    result = probe(
        corpus(values=True), parts, protocol, settings={**QUICK, "max_steps": 120, "learning_rates": (3e-2,)}
    )
    assert result.metrics["ccc"]["mean"] > 0.9
    assert set(result.metrics) == {"ccc", "pearson", "rmse"}


def test_one_layer_alone(data: ProbeData, parts: list[Part]) -> None:
    scores = {k: probe(data, parts, "linear", layer=k, settings=QUICK).metrics["uar"]["mean"] for k in range(3)}
    assert scores[1] > 0.9
    assert max(scores[0], scores[2]) < 0.6
    with pytest.raises(ConfigError, match="no layer 3"):
        probe(data, parts, "knn", layer=3)


def test_test_labels_choose_nothing(data: ProbeData, parts: list[Part]) -> None:
    before = [a.prediction for a in predict_folds("logreg", data, parts[:1])]
    data.batches.targets[parts[0].test] = 0
    after = [a.prediction for a in predict_folds("logreg", data, parts[:1])]
    np.testing.assert_array_equal(before, after)


def test_layers_of_unequal_width_go_through_the_ordinary_trainer(
    corpus: Callable[..., ProbeData], parts: list[Part]
) -> None:
    result = probe(corpus((5, 8)), parts[:1], "linear", settings={**QUICK, "learning_rates": (1e-2,)})
    assert result.metrics["uar"]["mean"] > 0.9


def test_seeds_are_reported(data: ProbeData, parts: list[Part]) -> None:
    result = probe(data, parts, "linear", seeds=(0, 1, 2), settings={**QUICK, "max_steps": 3, "hidden_size": 2})
    assert list(result.folds[0]["seeds"]) == ["0", "1", "2"]
    assert result.metrics["uar"]["seed_std"] > 0
    again = probe(data, parts, "linear", seeds=(1,), settings={**QUICK, "max_steps": 3, "hidden_size": 2})
    assert again.predictions[1] == result.predictions[1]


def test_label_fractions_are_stratified_and_nested(data: ProbeData, parts: list[Part]) -> None:
    truth = data.truth
    small, large = (subset(parts[0], truth, fraction, seed=3) for fraction in (0.1, 0.5))
    assert set(small.train.tolist()) < set(large.train.tolist()) < set(parts[0].train.tolist())
    assert np.bincount(truth[small.train.numpy()]).tolist() == [2, 2, 2]
    assert len(subset(parts[0], truth, 0.01, seed=3).train) == 3
    assert subset(parts[0], truth, 0.1, seed=4).train.tolist() != small.train.tolist()
    assert torch.equal(small.test, parts[0].test)
    with pytest.raises(ConfigError, match="at most 1, got 10"):
        subset(parts[0], truth, 10, seed=0)


def test_knn_is_the_vote_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    train, rows = torch.randn(9, 4, generator=generator), torch.randn(5, 4, generator=generator)
    truth = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    votes = knn_scores(train, truth, rows, 3, k=4, temperature=0.5)
    for row, vote in zip(rows, votes, strict=True):
        similar = [
            (float(torch.cosine_similarity(row, known, dim=0)), int(c)) for known, c in zip(train, truth, strict=True)
        ]
        expected = np.zeros(3)
        for value, c in sorted(similar, reverse=True)[:4]:
            expected[c] += np.exp(value / 0.5)
        np.testing.assert_allclose(vote / vote.sum(), expected / expected.sum(), rtol=1e-4)


def test_ridge_equals_scikit_learn(corpus: Callable[..., ProbeData], parts: list[Part]) -> None:
    from sklearn.linear_model import Ridge

    from mmssl.probing.protocols import RIDGE_PENALTIES, _ridge_fit

    data = corpus(values=True)
    rows, truth = data.rows(0), data.truth
    path = _ridge_fit(rows[:50], truth[:50], [rows[50:]], 0)
    found = {chosen["penalty"]: values[0] for chosen, values in path}
    assert list(found) == list(RIDGE_PENALTIES)
    for penalty in RIDGE_PENALTIES[::5]:
        expected = Ridge(alpha=penalty).fit(rows[:50].double().numpy(), truth[:50]).predict(rows[50:].double().numpy())
        np.testing.assert_allclose(found[penalty], expected, atol=1e-5)


def test_mistakes_are_explained(data: ProbeData, parts: list[Part], corpus: Callable[..., ProbeData]) -> None:
    with pytest.raises(ConfigError, match=r"no protocol .lineer.\. Did you mean .linear."):
        probe(data, parts, "lineer")
    with pytest.raises(ConfigError, match="'ridge' is for values"):
        probe(data, parts, "ridge")
    with pytest.raises(ConfigError, match="'knn' is for classes"):
        probe(corpus(values=True), parts, "knn")
    assert set(PROTOCOLS) == {"linear", "mlp", "knn", "logreg", "ridge"}
