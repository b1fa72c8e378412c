"""What the page, the Markdown file and the terminal table all say about a `results.json`, worked out once.

Scores in [0, 1] (UAR, WA, macro F1) are shown in percent, regression scores as they are. A value that is missing or not
finite is shown as an en dash, never as a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmssl.errors import StageError

SCHEMA = 1
MISSING = "–"
_NAMES = {
    "uar": "UAR",
    "wa": "WA",
    "macro_f1": "macro F1",
    "weighted_f1": "WF1",
    "map": "mAP",
    "auc": "mean AUC",
    "ccc": "CCC",
    "pearson": "Pearson r",
    "rmse": "RMSE",
}
_LONG_NAMES = {
    "uar": "unweighted average recall",
    "wa": "weighted accuracy: share of clips that are right",
    "macro_f1": "F1 averaged over classes",
    "weighted_f1": "F1 averaged over classes, weighted by their numbers of clips",
    "map": "average precision, mean over labels",
    "auc": "area under the ROC curve, mean over labels",
    "ccc": "concordance correlation coefficient",
    "pearson": "Pearson correlation",
    "rmse": "root mean squared error",
}
_PERCENT = frozenset({"uar", "wa", "macro_f1", "weighted_f1", "map", "auc"})
_LOWER_IS_BETTER = frozenset({"rmse"})


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval; any of the three may be None.

    Attributes:
        value: the score.
        low, high: ends of the interval.
    """

    value: float | None
    low: float | None
    high: float | None

    @property
    def known(self) -> bool:
        """Whether both ends are there."""
        return self.low is not None and self.high is not None


def check_results(results: Mapping[str, Any]) -> None:
    """Refuse results that this version cannot read.

    Raises:
        StageError: another schema, or no systems.
    """
    if results.get("schema") != SCHEMA:
        raise StageError(
            f"The results have schema {results.get('schema')!r}, this version reads schema {SCHEMA}: "
            f"run the score stage again with this version of mmssl."
        )
    if not results.get("systems"):
        raise StageError("The results hold no system: run the train and score stages before the report stage.")


def number(value: Any) -> float | None:
    """A finite float, or None for what is missing or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def metric_name(metric: str) -> str:
    """The short name of a metric as people write it."""
    return _NAMES.get(metric, metric)


def metric_meaning(metric: str) -> str:
    """The metric in words; its name where it is not known."""
    return _LONG_NAMES.get(metric, metric)


def is_percent(metric: str) -> bool:
    """Whether the metric is a share, shown in percent."""
    return metric in _PERCENT


def lower_is_better(metric: str) -> bool:
    """Whether the smallest value is the best one."""
    return metric in _LOWER_IS_BETTER


def score(value: Any, metric: str, unit: bool = True) -> str:
    """A score as text: "71.3 %" for shares, "0.713" for the others."""
    known = number(value)
    if known is None:
        return MISSING
    if is_percent(metric):
        return f"{100 * known:.1f}{' %' if unit else ''}"
    return f"{known:.3f}"


def span(interval: Interval, metric: str) -> str:
    """An interval as text: "66.0 to 76.1 %"; a dash where an end is missing."""
    if not interval.known:
        return MISSING
    return f"{score(interval.low, metric, unit=False)} to {score(interval.high, metric)}"


def primary_metric(results: Mapping[str, Any]) -> str:
    """The metric that ranks the systems."""
    given = results.get("primary_metric")
    if given:
        return str(given)
    measured = results["systems"][0].get("metrics") or {"uar": {}}
    return str(next(iter(measured)))


def metrics_of(results: Mapping[str, Any]) -> list[str]:
    """All metrics that any system has, the primary one first, in the order they were given."""
    found = dict.fromkeys([primary_metric(results)])
    for system in results["systems"]:
        found |= dict.fromkeys(system.get("metrics") or {})
    return list(found)


def over_folds(system: Mapping[str, Any], metric: str) -> Interval:
    """Mean over folds with the interval over folds."""
    values = (system.get("metrics") or {}).get(metric) or {}
    return Interval(number(values.get("mean")), number(values.get("fold_ci_low")), number(values.get("fold_ci_high")))


def over_clips(system: Mapping[str, Any], metric: str) -> Interval:
    """Score over all test clips at once with the bootstrap interval over clips."""
    values = (system.get("metrics") or {}).get(metric) or {}
    return Interval(number(values.get("pooled")), number(values.get("ci_low")), number(values.get("ci_high")))


def main_score(system: Mapping[str, Any], metric: str) -> Interval:
    """The number that a system is ranked by: the mean over folds, or the score over all clips where that is missing."""
    mean, pooled = over_folds(system, metric), over_clips(system, metric)
    if mean.value is None or (not mean.known and num_folds(system) <= 1 and pooled.value is not None):
        return pooled
    return mean


def ranked(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The systems, best first; systems without a score come last, ties keep their order."""
    metric = primary_metric(results)
    sign = 1 if lower_is_better(metric) else -1

    def key(system: Mapping[str, Any]) -> tuple[bool, float]:
        value = main_score(system, metric).value
        return value is None, sign * (value or 0.0)

    return sorted(results["systems"], key=key)


def num_folds(system: Mapping[str, Any]) -> int:
    """Number of folds of a system."""
    return len(system.get("folds") or [])


def counted(count: int, noun: str) -> str:
    """ "1 fold", "10 folds"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def headline(results: Mapping[str, Any]) -> list[str]:
    """Sentences: the best system's score with interval, against chance, and over all clips."""
    metric = primary_metric(results)
    best = ranked(results)[0]
    mean, pooled, main = over_folds(best, metric), over_clips(best, metric), main_score(best, metric)
    name, folds = metric_name(metric), num_folds(best)
    if main.value is None:
        return [f"No system has a value of {name}."]
    averaged = main == mean
    kind = f"mean of {counted(folds, 'fold')}" if averaged else "over all test clips"
    source = "folds" if averaged else "clips"
    interval = f", 95 % interval over {source} {span(main, metric)}" if main.known else ", no interval"
    verb = "has" if len(results["systems"]) == 1 else "is best with"
    sentences = [f"{best['name']} {verb} {score(main.value, metric)} {name} ({kind}{interval})."]
    if averaged and pooled.value is not None:
        sentences.append(
            f"Over all test clips at once: {score(pooled.value, metric)}, 95 % interval {span(pooled, metric)}."
        )
    chance = number(results.get("chance"))
    if chance is not None and is_percent(metric):
        sentences.append(f"Chance is {score(chance, metric)}{_against_chance(main, chance)}.")
    return sentences


def _against_chance(main: Interval, chance: float) -> str:
    if main.low is None or main.high is None:
        return ""
    if main.low > chance:
        return "; the interval lies above it"
    return (
        "; the interval lies below it"
        if main.high < chance
        else "; the interval includes it: not told apart from chance"
    )


def speaker_statement(results: Mapping[str, Any]) -> str:
    """Whether a test speaker was also heard in training, in words."""
    overlap = (results.get("protocol") or {}).get("speaker_overlap")
    if overlap is None:
        return "Speaker overlap between training and test: not recorded."
    if overlap:
        return "Speakers overlap: some test speakers were heard in training, so the scores flatter the systems."
    return "Speaker-disjoint: no speaker of a test clip was heard in training."


def skipped_statement(results: Mapping[str, Any]) -> str:
    """How many clips were left out, in words."""
    count = len(results.get("skipped") or [])
    if not count:
        return "No clip was skipped."
    was, its = ("was", "is") if count == 1 else ("were", "are")
    return f"{counted(count, 'clip')} {was} skipped and {its} in no score."


def system_row(system: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """One row of the table of systems, as text."""
    upstream = system.get("upstream") or {}
    scores = []
    for metric in metrics:
        mean, pooled = over_folds(system, metric), over_clips(system, metric)
        std = number(((system.get("metrics") or {}).get(metric) or {}).get("std"))
        spread = f" ± {score(std, metric, unit=False)}" if std is not None and num_folds(system) > 1 else ""
        scores.append(
            {
                "metric": metric_name(metric),
                "mean": score(mean.value, metric, unit=False) + (spread if mean.value is not None else ""),
                "fold_ci": span(mean, metric).removesuffix(" %"),
                "pooled": score(pooled.value, metric, unit=False),
                "ci": span(pooled, metric).removesuffix(" %"),
            }
        )
    return {
        "name": str(system["name"]),
        "upstream": str(upstream.get("name") or upstream.get("target") or MISSING),
        "interface": str(system.get("interface") or MISSING),
        "head": str(system.get("head") or MISSING),
        "scores": scores,
    }


def metric_heading(metric: str) -> str:
    """Column heading with unit."""
    return metric_name(metric) + (" %" if is_percent(metric) else "")


def summary_table(results: Mapping[str, Any]) -> str:
    """The result as plain text for a terminal: one line per system, best first, chance and what was skipped below.

    Args:
        results: the content of `results.json`.

    Raises:
        StageError: the results are of another schema or hold no system.
    """
    check_results(results)
    metrics = metrics_of(results)
    first = metric_heading(metrics[0])
    header = ["system", "interface", "head", first, "95 % over folds", "all clips", "95 % over clips"]
    header += [metric_heading(m) for m in metrics[1:]]
    rows = []
    for system in ranked(results):
        row = system_row(system, metrics)
        main = row["scores"][0]
        cells = [row["name"], row["interface"], row["head"], main["mean"], main["fold_ci"], main["pooled"], main["ci"]]
        rows.append([*cells, *(s["mean"] for s in row["scores"][1:])])
    lines = align([header, *rows], left=3)
    lines.insert(1, "-" * max(len(line) for line in lines))
    folds = {num_folds(s) for s in results["systems"]}
    spread = " ± standard deviation" if max(folds) > 1 else ""
    notes = [f"Scores are means{spread} over folds ({counted(max(folds), 'fold')})."]
    chance = number(results.get("chance"))
    if chance is not None and is_percent(metrics[0]):
        notes[0] += f" Chance: {score(chance, metrics[0])}."
    return "\n".join([*lines, "", *notes, speaker_statement(results), skipped_statement(results)])


def align(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines with aligned columns; the first `left` columns flush left, the others flush right.

    Control characters in a cell become a space, so that no cell can break its row.
    """
    clean = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*clean, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in clean
    ]
