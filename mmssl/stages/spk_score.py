"""Stage 4 of recipes/spk: every method on every trial list, calibrated on development trials alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.data.trials import Trials, read_trials
from mmssl.downstream.fusion import ScoreFusion, quality_table
from mmssl.downstream.plda import Plda
from mmssl.downstream.scoring import (
    as_norm,
    cohort_means,
    cohort_statistics,
    cosine_scores,
    pair_products,
)
from mmssl.errors import InputError
from mmssl.metrics.calibration import calibration_metrics
from mmssl.metrics.verification import eer, prior_name, verification_metrics
from mmssl.stages.context import Context, log
from mmssl.stages.files import write_json, write_text
from mmssl.stages.spk_embed import Embedded, read_embedded
from mmssl.stages.spk_margin import eer_margin
from mmssl.stages.spk_prepare import make_lists
from mmssl.stages.spk_setup import EMBEDDINGS, METRICS, MODEL, TRIALS, parts_of
from mmssl.stages.trial_scores import Floats, check_methods, det_curve, intervals

METHODS = ("cosine", "as_norm", "plda", "qmf")
BASELINES = ("log_mel", "log_mel_standardized")


@dataclass(frozen=True)
class Side:
    """Trials and the vectors of their clips.

    Attributes:
        vectors: of the clips.
        trials: named by the clips' ids.
    """

    vectors: Embedded
    trials: Trials

    @cached_property
    def rows(self) -> tuple[list[int], list[int]]:
        """Places of each trial's clips among the vectors."""
        return self.trials.rows(self.vectors.ids)

    @cached_property
    def target(self) -> npt.NDArray[np.bool_]:
        """Whether each trial has one speaker."""
        return np.array(self.trials.is_target)

    @cached_property
    def speakers(self) -> tuple[list[str], list[str]]:
        """Of both clips of each trial."""
        first, second = ([self.vectors.speakers[row] for row in side] for side in self.rows)
        return first, second


class QualityRange:
    """Keeps quality measures to what the development trials show of them.

    A measure that hardly varies there is left out, since its weight would be rounding error, and values beyond the
    range seen there are brought to its ends, since the fit says nothing about them.

    Args:
        table: (n, K) of development trials, the score first; or (n,) scores alone, which stay as they are.
    """

    def __init__(self, table: Floats) -> None:
        rows = table.reshape(len(table), -1)
        self.low, self.high = rows.min(0), rows.max(0)
        self.kept = rows.std(0) > 1e-4 * np.abs(rows).max(0)
        self.kept[0] = True
        # the score itself is not limited
        self.low[0], self.high[0] = -np.inf, np.inf

    def __call__(self, table: Floats) -> Floats:
        """(n, K) -> (n, K') of the same trials; (n,) unchanged."""
        return table if table.ndim == 1 else table.clip(self.low, self.high)[:, self.kept]


class Scorer:
    """Scores of trials by a method's name; what it needs of the training clips is computed once.

    Args:
        train: of clips of the training speakers: cohort, PLDA, and statistics of the baseline.
        top: cohort cosines that count, see `as_norm`.
    """

    def __init__(self, train: Embedded, top: int) -> None:
        self.train, self.top = train, top

    def __call__(self, method: str, side: Side) -> Floats:
        """(n,) scores, or (n, K) a score with quality measures for "qmf".

        Raises:
            InputError: embeddings or the cohort do not allow it.
        """
        return np.asarray(getattr(self, f"_{method}")(side), dtype=np.float64)

    @cached_property
    def cohort(self) -> Floats:
        """Mean of each training speaker."""
        return cohort_means(self.train.embeddings, self.train.speakers)

    @cached_property
    def plda(self) -> Plda:
        """Fitted to the training speakers."""
        return Plda().fit(self.train.embeddings, self.train.speakers)

    def _cosine(self, side: Side) -> Floats:
        vectors = side.vectors
        # means over crops keep their length: their product is the mean cosine over all pairs of crops
        if vectors.embeddings is vectors.whole or np.array_equal(vectors.embeddings, vectors.whole):
            return cosine_scores(vectors.whole, *side.rows)
        return pair_products(vectors.embeddings, *side.rows)

    def _as_norm(self, side: Side) -> Floats:
        return as_norm(self._cosine(side), side.vectors.embeddings, *side.rows, self.cohort, self.top)

    def _plda(self, side: Side) -> Floats:
        return self.plda.scores(side.vectors.embeddings, *side.rows)

    def _qmf(self, side: Side) -> Floats:
        means, _ = cohort_statistics(side.vectors.embeddings, self.cohort, self.top)
        measures = {
            "log_seconds": np.log(side.vectors.seconds.astype(np.float64)),
            "length": np.linalg.norm(side.vectors.whole.astype(np.float64), axis=1),
            "cohort": means,
        }
        return quality_table(self._cosine(side), measures, *side.rows)

    def _log_mel(self, side: Side) -> Floats:
        return cosine_scores(side.vectors.log_mel, *side.rows)

    def _log_mel_standardized(self, side: Side) -> Floats:
        known = self.train.log_mel.astype(np.float64)
        spread = np.maximum(known.std(0), 1e-6)
        return cosine_scores((side.vectors.log_mel - known.mean(0)) / spread, *side.rows)


def score(context: Context) -> str:
    """Write exp/NAME/metrics.json, scores/LIST.tsv, and calibration.json into the model's folder.

    Raises:
        ConfigError: a method is unknown.
        DataError: no development trials can be made.
    """
    settings = context.config["scoring"]
    check_methods("scoring.methods", settings["methods"], METHODS)
    folder = context.exp_dir / EMBEDDINGS
    dev = Side(read_embedded(folder / "dev.npz"), development_trials(context))
    test = read_embedded(folder / "test.npz")
    lists = {path.stem: Side(test, read_trials(path)) for path in sorted((context.data / TRIALS).glob("*.txt"))}
    scorer = Scorer(read_embedded(folder / "train.npz"), settings["cohort_top"])
    methods = [*settings["methods"], *BASELINES]
    rows: list[dict[str, Any]] = []
    tables: dict[str, dict[str, Floats]] = {name: {} for name in lists}
    for method in methods:
        known = scorer(method, dev)
        limited = QualityRange(known)
        fusion = ScoreFusion(settings["prior"]).fit(limited(known), dev.target)
        dev_eer = eer(_ranked(limited(known), fusion), dev.target)
        for name, side in lists.items():
            table = limited(scorer(method, side))
            scores, llrs = _ranked(table, fusion), fusion.llrs(table)
            rows.append({"list": name, "method": method, "baseline": method in BASELINES, "dev_eer": dev_eer})
            rows[-1] |= judge(side, scores, llrs, settings)
            tables[name][method] = scores
            log.info("   %s / %s: EER %.2f %%", name, method, 100 * rows[-1]["metrics"]["eer"])
    for name, side in lists.items():
        write_scores(context, name, side, tables[name])
    calibration, warnings = calibrate(context, dev)
    without = sorted({row["list"] for row in rows if settings["bootstrap"] and not row["intervals"]})
    warnings += [f"No intervals on the trials {name}: it has too few speakers to draw from." for name in without]
    chosen = _chosen(rows, settings["methods"])
    found = {
        "rows": rows,
        "chosen": chosen,
        "margins": margins(lists, tables, chosen, settings["bootstrap"]),
        "dev": {"trials": len(dev.trials), "speakers": len(set(dev.vectors.speakers))},
        "cohort": {"clips": len(scorer.train.ids), "speakers": len(set(scorer.train.speakers))},
        "calibration": calibration,
        "warnings": warnings,
    }
    write_json(context.exp_dir / METRICS, found)
    best = [row for row in rows if row["method"] == chosen]
    return f"{chosen}: " + ", ".join(f"EER {100 * row['metrics']['eer']:.2f} % on {row['list']}" for row in best)


def development_trials(context: Context) -> Trials:
    """Trials among the held-out training speakers, made like those of the test speakers.

    Raises:
        DataError: there are too few speakers or clips.
    """
    settings = {**context.config["trials"], "per_speaker": context.config["scoring"]["dev_per_speaker"]}
    lists = make_lists(parts_of(context)["dev"], settings)
    return Trials(*(sum((getattr(t, side) for t in lists.values()), ()) for side in ("enrol", "test", "is_target")))


def judge(side: Side, scores: Floats, llrs: Floats, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics, their intervals over speakers, and the DET curve of one list.

    Args:
        side: trials.
        scores: (n,) that rank them.
        llrs: (n,) the same, calibrated.
        settings: the section `scoring`.
    """
    priors = tuple(settings["priors"])
    metrics = {
        **verification_metrics(scores, side.target, priors),
        **calibration_metrics(llrs, side.target, priors),
    }
    ranks = ("eer", *(f"min_dcf_{prior_name(p)}" for p in priors))
    costs = ("cllr", *(f"act_dcf_{prior_name(p)}" for p in priors))
    # none of too few speakers; the stage says so once for each list
    spans = intervals([(scores, ranks), (llrs, costs)], side.target, side.speakers, settings["bootstrap"])
    return {"metrics": metrics, "intervals": spans, "det": det_curve(scores, side.target)}


def margins(
    lists: Mapping[str, Side], tables: Mapping[str, Mapping[str, Floats]], chosen: str, samples: int
) -> list[dict[str, Any]]:
    """By how much the chosen method beats each baseline: differences of the EER, bootstrapped in pairs."""
    if not samples:
        return []
    found = []
    for name, side in lists.items():
        for baseline in BASELINES:
            try:
                low, high = eer_margin(
                    tables[name][chosen], tables[name][baseline], side.target, *side.speakers, num_samples=samples
                )
            except InputError:
                continue
            gain = eer(tables[name][baseline], side.target) - eer(tables[name][chosen], side.target)
            found.append({"list": name, "baseline": baseline, "eer": gain, "low": low, "high": high})
    return found


def calibrate(context: Context, dev: Side) -> tuple[dict[str, Any] | None, list[str]]:
    """Write calibration.json for cosines of whole clips, what `mmssl verify` computes; none where it is impossible."""
    from dataclasses import asdict

    from mmssl.training.speaker_calibration import CALIBRATION, fit_calibration, weights_sha256, write_calibration

    folder = context.exp_dir / MODEL
    (folder / CALIBRATION).unlink(missing_ok=True)
    cosines = cosine_scores(dev.vectors.whole, *dev.rows)
    try:
        found = fit_calibration(cosines, dev.target, weights_sha256(folder), context.config["scoring"]["prior"])
    except InputError as error:
        log.info("   no %s: %s", CALIBRATION, error)
        return None, [f"The model has no {CALIBRATION}, so that it gives no decisions: {error}"]
    write_calibration(folder, found)
    return asdict(found), []


def write_scores(context: Context, name: str, side: Side, table: Mapping[str, Floats]) -> None:
    """Write exp/NAME/scores/LIST.tsv: each trial with the score of every method."""
    lines = ["\t".join(("enrol", "test", "target", *table))]
    columns = [[f"{value:.6g}" for value in scores] for scores in table.values()]
    trials = side.trials
    labels = [str(int(label)) for label in trials.is_target]
    lines += ["\t".join(row) for row in zip(trials.enrol, trials.test, labels, *columns, strict=True)]
    write_text(context.exp_dir / "scores" / f"{name}.tsv", "\n".join(lines) + "\n")


def _ranked(table: Floats, fusion: ScoreFusion) -> Floats:
    """The scores that rank trials: those of the method, or with quality measures what the fusion makes of them."""
    return table if table.ndim == 1 else fusion.llrs(table)


def _chosen(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """The method with the lowest EER on development trials, among those that are not fitted to them."""
    given = {row["method"]: row["dev_eer"] for row in rows if row["method"] in methods and row["method"] != "qmf"}
    return min(given, key=lambda name: (given[name], methods.index(name))) if given else methods[0]
