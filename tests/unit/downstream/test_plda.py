from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mmssl.downstream.plda import Plda
from mmssl.downstream.scoring import cosine_scores
from mmssl.errors import ConfigError, InputError
from mmssl.metrics.calibration import cllr
from mmssl.metrics.verification import eer


def corpus(num_speakers: int, clips: list[int], size: int = 4, seed: int = 0):
    """Embeddings of a two-covariance model with known covariances."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(2, size, size))
    between, within = (m @ m.T / size for m in mixing)
    speakers = np.repeat(np.arange(num_speakers), np.resize(clips, num_speakers))
    voices = generator.multivariate_normal(np.full(size, 3.0), between, size=num_speakers)
    noise = generator.multivariate_normal(np.zeros(size), within, size=len(speakers))
    return voices[speakers] + noise, speakers, between, within


def test_scores_are_ratios_of_two_gaussians() -> None:
    x, speakers, _, _ = corpus(30, [2, 3, 5])
    model = Plda(5, length_norm=False).fit(x, speakers)
    b, w, m = model.between, model.within, model.mean
    same = multivariate_normal(np.tile(m, 2), np.block([[b + w, b], [b, b + w]]))
    alone = multivariate_normal(m, b + w)
    first, second = np.random.default_rng(1).integers(0, len(x), size=(2, 50))
    expected = [
        same.logpdf(np.r_[x[i], x[j]]) - alone.logpdf(x[i]) - alone.logpdf(x[j])
        for i, j in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(model.scores(x, first, second), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(model.scores(x, second, first), expected, rtol=1e-8, atol=1e-9)


def test_the_likelihood_is_that_of_stacked_gaussians_and_never_falls() -> None:
    x, speakers, _, _ = corpus(12, [1, 2, 4], size=3)
    model = Plda(30, length_norm=False, floor=0).fit(x, speakers)
    total = 0.0
    for speaker in range(12):
        own = x[speakers == speaker]
        n = len(own)
        covariance = np.kron(np.ones((n, n)), model.between) + np.kron(np.eye(n), model.within)
        total += multivariate_normal(np.tile(model.mean, n), covariance).logpdf(own.ravel())
    assert model.log_likelihoods[-1] == pytest.approx(total / len(x), rel=1e-10)
    assert len(model.log_likelihoods) == 31
    assert (np.diff(model.log_likelihoods) > -1e-12).all()
    assert model.log_likelihoods[-1] > model.log_likelihoods[0]


def test_it_finds_the_covariances_of_many_speakers() -> None:
    x, speakers, between, within = corpus(6000, [2, 4])
    model = Plda(50, length_norm=False, floor=0).fit(x, speakers)
    np.testing.assert_allclose(model.within, within, atol=0.05 * within.trace() / 4)
    np.testing.assert_allclose(model.between, between, atol=0.1 * between.trace() / 4)
    np.testing.assert_allclose(model.mean, 3.0, atol=0.1)


def test_scores_are_calibrated_and_better_than_cosines_on_unseen_speakers() -> None:
    x, speakers, _, _ = corpus(600, [4], size=8)
    train, test = speakers < 400, speakers >= 400
    first, second = np.random.default_rng(2).integers(0, test.sum(), size=(2, 20000))
    extra = np.arange(0, test.sum(), 4)
    first, second = np.r_[first, extra, extra], np.r_[second, extra + 1, extra + 2]
    keep = first != second
    first, second = first[keep], second[keep]
    labels = speakers[test][first] == speakers[test][second]
    for length_norm, most in ((False, 0.5), (True, 0.8)):
        model = Plda(20, length_norm).fit(x[train], speakers[train])
        llrs = model.scores(x[test], first, second)
        assert eer(llrs, labels) < 0.7 * eer(cosine_scores(x[test], first, second), labels)
        assert cllr(llrs, labels) < most


def test_fewer_clips_than_dimensions_are_taken() -> None:
    x, speakers, _, _ = corpus(6, [3], size=40)
    model = Plda(5).fit(x, speakers)
    assert np.isfinite(model.log_likelihoods).all()
    assert np.isfinite(model.scores(x, [0, 0], [1, 5])).all()
    with pytest.raises(InputError, match="cannot be inverted"):
        Plda(5, floor=0).fit(x, speakers)


def test_mistakes_are_named() -> None:
    x, speakers, _, _ = corpus(4, [2])
    with pytest.raises(InputError, match="call fit"):
        Plda().scores(x, [0], [1])
    with pytest.raises(InputError, match="8 embeddings and 3 speakers"):
        Plda().fit(x, ["a", "b", "c"])
    with pytest.raises(InputError, match="two clips of one"):
        Plda().fit(x, range(8))
    with pytest.raises(InputError, match="two speakers"):
        Plda().fit(x, ["a"] * 8)
    with pytest.raises(InputError, match="width 4"):
        Plda().fit(x, speakers).scores(x[:, :2], [0], [1])
    with pytest.raises(ConfigError, match="floor"):
        Plda(floor=-1)
