"""Seconds and exactness of EER and minDCF on trial lists, against other toolkits and other ways to compute them.

SpeechBrain and ESPnet are installed by this script into an environment of their own, and their functions are called as
they are. WeSpeaker is in no package index: its way (sort the trials, cumulate errors one by one) is the route "sorted
trials, numpy", written here. Beside them run a plain loop over the trials, and the route over scikit-learn's
`roc_curve` with a root finder.

SpeechBrain compares every threshold with every score: its time grows with the square of the trials and its minDCF holds
a table of thresholds x scores, so that it is measured on short lists only (`--quadratic`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from common import interleave, median, print_table, timed
from peers import enter

from mmssl.metrics.speaker_bootstrap import speaker_bootstrap
from mmssl.metrics.verification import verification_metrics

PRIOR = 0.01
Metrics = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


def ours(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """EER and minDCF of mmssl."""
    found = verification_metrics(scores, labels, (PRIOR,))
    return found["eer"], found["min_dcf_p01"]


def sorted_trials(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cumulated errors trial by trial; nearest point to miss = false alarm, ties in the order of the list."""
    ranked = labels[np.argsort(scores, kind="stable")]
    miss, alarm = np.cumsum(ranked) / ranked.sum(), 1 - np.cumsum(~ranked) / (~ranked).sum()
    at = np.abs(miss - alarm).argmin()
    return float(miss[at] + alarm[at]) / 2, float((PRIOR * miss + (1 - PRIOR) * alarm).min() / PRIOR)


def plain_loop(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The same as a loop over Python numbers."""
    targets, others = int(labels.sum()), int((~labels).sum())
    misses, alarms, best, nearest, rate = 0, others, 1.0, 2.0, 1.0
    for _, target in sorted(zip(scores.tolist(), labels.tolist(), strict=True), key=lambda pair: pair[0]):
        misses, alarms = misses + target, alarms - (not target)
        miss, alarm = misses / targets, alarms / others
        best = min(best, (PRIOR * miss + (1 - PRIOR) * alarm) / PRIOR)
        if abs(miss - alarm) < nearest:
            nearest, rate = abs(miss - alarm), (miss + alarm) / 2
    return rate, best


def roc_route(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """scikit-learn's curve, interpolated, and scipy's root finder."""
    from scipy.interpolate import interp1d
    from scipy.optimize import brentq
    from sklearn.metrics import roc_curve

    alarm, hit, _ = roc_curve(labels, scores)
    rate = brentq(lambda x: 1.0 - x - interp1d(alarm, hit)(x), 0.0, 1.0)
    return float(rate), float((PRIOR * (1 - hit) + (1 - PRIOR) * alarm).min() / PRIOR)


def definition(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Both by counting at every distinct threshold: slow and plain."""
    targets, others = scores[labels], scores[~labels]
    points = [((targets < t).mean(), (others >= t).mean()) for t in [*np.unique(scores), np.inf]]
    rate = 1.0
    for (m0, f0), (m1, f1) in pairwise(points):
        if m0 - f0 < 0 <= m1 - f1:
            rate = m0 + (m1 - m0) * (f0 - m0) / ((m1 - f1) - (m0 - f0))
    return float(rate), float(min(PRIOR * m + (1 - PRIOR) * f for m, f in points) / PRIOR)


def speechbrain(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """SpeechBrain's EER and minDCF; the latter is divided by the prior, as the others' is."""
    import torch
    from speechbrain.utils.metric_stats import EER, minDCF

    one, other = torch.from_numpy(scores[labels]), torch.from_numpy(scores[~labels])
    return EER(one, other)[0], minDCF(one, other, p_target=PRIOR)[0] / PRIOR


def espnet(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """ESPnet's EER and minDCF, called as its speaker trainer calls them."""
    from espnet2.utils.eer import ComputeErrorRates, ComputeMinDcf, tuneThresholdfromScore

    rate = tuneThresholdfromScore(scores, labels.astype(int), [1, 0.1])[1] / 100
    misses, alarms, thresholds = ComputeErrorRates(scores.tolist(), labels.astype(int).tolist())
    return float(rate), float(ComputeMinDcf(misses, alarms, thresholds, PRIOR, 1, 1)[0])


def seconds_of(routes: Mapping[str, Metrics], number: int, rounds: int) -> dict[str, float]:
    """Median seconds of each route on one list, in turn."""
    scores, labels = trials(number, 0.5)
    work = {name: (lambda r=route: timed(lambda: r(scores, labels))) for name, route in routes.items()}
    found = interleave(work, rounds, control=lambda: 0.0)
    return {name: median(found[name]) for name in routes}


PACKAGES = ("speechbrain==1.1.2", "espnet==202511", "hyperpyyaml", "ruamel.yaml", "sentencepiece", "joblib")
QUADRATIC = "SpeechBrain 1.1.2"
ROUTES: dict[str, Metrics] = {
    "mmssl": ours,
    "ESPnet 202511": espnet,
    "sorted trials, numpy": sorted_trials,
    "loop over trials": plain_loop,
    "roc_curve + brentq": roc_route,
}


NAMES = (*ROUTES, QUADRATIC)


def trials(number: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels with an EER of some percent."""
    generator = np.random.default_rng(seed)
    labels = generator.random(number) < share
    return generator.normal(size=number) + 3.5 * labels, labels


def exactness() -> None:
    """Print what each route gives on lists with ties, in two orders."""
    generator = np.random.default_rng(1)
    labels = generator.random(400) < 0.3
    tied = np.round(generator.normal(size=400) + 2 * labels)
    targets_first = np.argsort(~labels, kind="stable")
    rows = []
    for name, route in {**ROUTES, QUADRATIC: speechbrain, "the definition": definition}.items():
        first = route(tied[targets_first], labels[targets_first])
        last = route(tied[targets_first[::-1]], labels[targets_first[::-1]])
        cells = [f"{a:.4f} / {b:.4f}" for a, b in zip(first, last, strict=True)]
        rows.append((name, *cells))
    header = ("route", "EER, targets first / last", "min_dcf_p01, targets first / last")
    print_table("400 trials of few distinct scores, the same list in two orders", header, rows)


def deviations(lists: int) -> None:
    """Print how far each route is from the definition, over random lists of several kinds."""
    generator = np.random.default_rng(2)
    kinds: dict[str, Callable[[int], np.ndarray]] = {
        "no ties": lambda n: generator.normal(size=n),
        "many ties": lambda n: np.round(generator.normal(size=n)),
        "all one score": lambda n: np.zeros(n),
    }
    worst: dict[tuple[str, str], list[float]] = {}
    for kind, draw in kinds.items():
        for _ in range(lists):
            number = int(generator.integers(10, 300))
            labels = generator.random(number) < 0.4
            labels[:2] = True, False
            scores = draw(number) if kind == "all one score" else draw(number) + 1.5 * labels
            scores = np.round(scores) if kind == "many ties" else scores
            wanted = definition(scores, labels)
            for name, route in {**ROUTES, QUADRATIC: speechbrain}.items():
                found = route(scores, labels)
                spot = worst.setdefault((name, kind), [0.0, 0.0])
                for k in (0, 1):
                    spot[k] = max(spot[k], abs(found[k] - wanted[k]))
    rows = [
        (name, *(" / ".join(f"{value:.1e}" if value else "0" for value in worst[name, kind]) for kind in kinds))
        for name in NAMES
    ]
    title = f"Largest difference from the definition over {lists} lists of 10 to 299 trials: EER / min_dcf_p01"
    print_table(title, ("route", *kinds), rows)


def main() -> None:
    """Run both comparisons and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quadratic", type=int, nargs="*", default=[1000, 4000], help="lists for SpeechBrain too")
    parser.add_argument("--trials", type=int, nargs="+", default=[37611, 579818, 3_700_000])
    parser.add_argument("--lists", type=int, default=50, help="of each kind that are compared with the definition")
    parser.add_argument("--bootstrap", type=int, default=100, help="samples of the speaker bootstrap")
    args = parser.parse_args()
    enter("metrics", PACKAGES)
    exactness()
    deviations(args.lists)
    rows = []
    for number in [*args.quadratic, *args.trials]:
        every = {**ROUTES, QUADRATIC: speechbrain} if number in args.quadratic else ROUTES
        found = seconds_of(every, number, args.rounds)
        own = found["mmssl"]
        shown = [f"{found[name]:.3g} ({found[name] / own:.3g})" if name in found else "-" for name in NAMES]
        rows.append((f"{number:,}", *shown))
    title = "EER and minDCF together: s, median of rounds in turn (times mmssl)"
    print_table(title, ("trials", *NAMES), rows)
    scores, labels = trials(args.trials[0], 0.5)
    generator = np.random.default_rng(0)
    first = generator.integers(0, 40, len(scores))
    second = np.where(labels, first, (first + generator.integers(1, 40, len(scores))) % 40)
    seconds = timed(lambda: speaker_bootstrap(scores, labels, first, second, num_samples=args.bootstrap))
    print(f"\nspeaker bootstrap, {args.bootstrap} samples of {len(scores)} trials, three metrics: {seconds:.2f} s")


if __name__ == "__main__":
    main()
