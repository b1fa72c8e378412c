"""Two-covariance PLDA: how likely two embeddings come from one speaker, as a log-likelihood ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmssl.downstream.scoring import VALUES_AT_ONCE, as_rows, check_pairs, unit_length
from mmssl.errors import ConfigError, InputError

Floats = npt.NDArray[np.float64]


class Plda:
    """Speakers are drawn from N(mean, between), and their clips from N(speaker, within).

    Bruemmer and de Villiers, "The speaker partitioning problem" (Odyssey 2010), section 4; trained by expectation
    maximisation, no step of which makes the training clips less likely where `floor` is 0. All of it works in
    coordinates in which both covariances are diagonal, so that `between` may be singular (fewer speakers than
    dimensions).

    With `length_norm` embeddings are centred and brought to length sqrt(D) first, which makes them nearer to Gaussian
    (Garcia-Romero and Espy-Wilson, Interspeech 2011).

    Args:
        num_iterations: of EM.
        length_norm: see above.
        floor: share of the mean variance that is added to `within`, so that it can be inverted where clips are fewer
            than dimensions.

    Attributes:
        mean: (D,) of speakers. between, within: (D, D) covariances. They are there after `fit`.
        log_likelihoods: of the training embeddings before each iteration and after the last, per clip.

    Raises:
        ConfigError: a value is out of range.
    """

    mean: Floats
    between: Floats
    within: Floats

    def __init__(self, num_iterations: int = 20, length_norm: bool = True, floor: float = 1e-4) -> None:
        if num_iterations < 0 or floor < 0:
            raise ConfigError(f"num_iterations and floor must be at least 0, got {num_iterations} and {floor}.")
        self.num_iterations, self.length_norm, self.floor = num_iterations, length_norm, floor
        self.log_likelihoods: list[float] = []

    def fit(self, embeddings: npt.ArrayLike, speakers: Sequence[str]) -> Plda:
        """Estimate mean and covariances.

        Args:
            embeddings: (N, D) of clips of the training split.
            speakers: (N,) their speakers; at least two, and one of them with two clips.

        Returns:
            Itself.

        Raises:
            InputError: shapes do not fit, speakers or clips are too few, or embeddings are not finite or all alike.
        """
        rows = as_rows(embeddings)
        _, number, counts = np.unique(np.asarray(speakers), return_inverse=True, return_counts=True)
        if len(number) != len(rows):
            raise InputError(f"There are {len(rows)} embeddings and {len(number)} speakers.")
        if len(counts) < 2 or counts.max() < 2:
            raise InputError(f"PLDA needs two speakers and two clips of one, got {len(counts)} and {len(rows)} clips.")
        self._centre = rows.mean(0)
        x = self._prepared(rows)
        sums = np.zeros((len(counts), x.shape[1]))
        np.add.at(sums, number, x)
        averages = sums / counts[:, None]
        scatter = x.T @ x
        inner = scatter - (averages * counts[:, None]).T @ averages
        self._ridge = self.floor * scatter.trace() / x.size * np.eye(x.shape[1])
        self.mean = averages.mean(0)
        self.within = inner / max(len(x) - len(counts), 1) + self._ridge
        self.between = np.cov(averages.T, bias=True).reshape(self.within.shape)
        self.log_likelihoods = []
        for _ in range(self.num_iterations):
            self._diagonalise()
            self.log_likelihoods.append(self._likelihood(averages, counts, inner))
            self._update(averages, counts, scatter)
        self._diagonalise()
        self.log_likelihoods.append(self._likelihood(averages, counts, inner))
        return self

    def scores(self, embeddings: npt.ArrayLike, enrol: npt.ArrayLike, test: npt.ArrayLike) -> Floats:
        """Log-likelihood ratio of each trial: both clips of one speaker against two speakers.

        Args:
            embeddings: (N, D).
            enrol, test: (n,) rows of the trials.

        Returns:
            (n,), natural logarithm, symmetric in the two clips.

        Raises:
            InputError: the model is not fitted, or shapes do not fit.
        """
        if not self.log_likelihoods:
            raise InputError("PLDA has no parameters yet: call fit first.")
        rows = as_rows(embeddings)
        if rows.shape[1] != len(self.mean):
            raise InputError(f"PLDA was fitted on width {len(self.mean)}, got embeddings {rows.shape}.")
        first, second = check_pairs(enrol, test, len(rows))
        u = (self._prepared(rows) - self.mean) @ self._axes
        b = self._ratio
        # of two unit-noise clips: covariance [[1 + b, b], [b, 1 + b]] for one speaker, diagonal for two
        own = -0.5 * (u * u) @ (b * b / ((1 + 2 * b) * (1 + b)))
        weighted = u * (b / (1 + 2 * b))
        constant = (np.log1p(b) - 0.5 * np.log1p(2 * b)).sum()
        found = own[first] + own[second] + constant
        step = max(1, VALUES_AT_ONCE // u.shape[1])
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            found[part] += np.einsum("nd,nd->n", weighted[first[part]], u[second[part]])
        return found

    def _prepared(self, rows: Floats) -> Floats:
        if not self.length_norm:
            return rows
        return unit_length(rows - self._centre) * np.sqrt(rows.shape[1])

    def _diagonalise(self) -> None:
        """Axes in which `within` is the identity and `between` is diagonal."""
        from scipy.linalg import LinAlgError, eigh

        try:
            ratio, self._axes = eigh(self.between, self.within)
        except LinAlgError as error:
            raise InputError(
                "The within-speaker covariance cannot be inverted: clips of a speaker are all alike, or fewer than "
                "dimensions. Give more clips, or a larger floor."
            ) from error
        self._ratio = ratio.clip(min=0)

    def _update(self, averages: Floats, counts: npt.NDArray[np.intp], scatter: Floats) -> None:
        """One step of EM: posteriors of the speakers, then the covariances that they expect."""
        ratio, axes = self._ratio, self._axes
        back = self.within @ axes
        variance = ratio / (1 + counts[:, None] * ratio)
        guess = counts[:, None] * variance * ((averages - self.mean) @ axes)
        speakers = self.mean + guess @ back.T
        weighted = (averages * counts[:, None]).T @ speakers
        noise = (back * (counts @ variance)) @ back.T
        residual = scatter - weighted - weighted.T + (speakers * counts[:, None]).T @ speakers + noise
        self.within = residual / counts.sum() + self._ridge
        self.mean = speakers.mean(0)
        centred = speakers - self.mean
        self.between = (centred.T @ centred + (back * variance.sum(0)) @ back.T) / len(counts)

    def _likelihood(self, averages: Floats, counts: npt.NDArray[np.intp], inner: Floats) -> float:
        """Log-likelihood of the training embeddings, per clip."""
        ratio, axes, size = self._ratio, self._axes, counts.sum()
        spread = np.einsum("id,ij,jd->", axes, inner, axes)
        means = (averages - self.mean) @ axes
        about = (counts[:, None] * means**2 / (1 + counts[:, None] * ratio)).sum()
        determinant = np.log1p(counts[:, None] * ratio).sum() - 2 * size * np.linalg.slogdet(axes)[1]
        return float(-0.5 * (spread + about + determinant) / size - 0.5 * averages.shape[1] * np.log(2 * np.pi))
