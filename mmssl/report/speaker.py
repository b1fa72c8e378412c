"""The report of speaker verification: RESULTS.md and one HTML page with error rates, DET curves and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.errors import StageError
from mmssl.files import replace_file
from mmssl.report.figures import Line, line_plot
from mmssl.report.speaker_figures import DetCurve, det_plot, line_mark

KIND = "speaker verification"
MISSING = "–"
NAMES = {
    "cosine": "cosine",
    "as_norm": "cosine, AS-norm",
    "plda": "PLDA",
    "qmf": "cosine with quality measures",
    "log_mel": "baseline: mean log-mel, cosine",
    "log_mel_standardized": "baseline: mean log-mel, standardised, cosine",
}
_EXPLAINED = (
    "EER and minDCF: lower is better; P is the prior of a target trial. actDCF and Cllr are those of scores that were "
    "calibrated on development trials: actDCF above minDCF, and Cllr above its minimum, is what calibration loses. In "
    "brackets the 95 % interval of a bootstrap over the speakers of the list. Checkpoint, calibration and method are "
    "chosen on trials of held-out training speakers; the lists below are looked at once."
)


def write_speaker_report(results: Mapping[str, Any], folder: str | Path) -> str:
    """Write RESULTS.md and report.html, each whole or not at all.

    Args:
        results: what stage 5 of recipes/spk gathers, see `mmssl.stages.spk_report.report`.
        folder: made if it does not exist.

    Returns:
        The tables as text, for a terminal.

    Raises:
        StageError: the results are of another kind.
    """
    if results.get("kind") != KIND or results.get("schema") != 1:
        raise StageError(
            f"These are no results of recipes/spk of schema 1, but {results.get('kind')!r} of schema "
            f"{results.get('schema')!r}: run stage report again."
        )
    target = Path(folder)
    texts = {"RESULTS.md": speaker_markdown(results), "report.html": speaker_html(results)}
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with replace_file(target / name) as file:
            file.write(text.encode("utf-8"))
    return "\n\n".join(
        "\n".join([f"Trials {name}:", *_markdown(*rates_table(results, name))]) for name in results["trials"]
    )


def metrics_of(results: Mapping[str, Any]) -> list[str]:
    """Names of the metrics in the order of columns: EER, each prior's minDCF and actDCF, Cllr and its minimum."""
    found = results["scores"]["rows"][0]["metrics"]
    priors = [name.removeprefix("min_dcf_") for name in found if name.startswith("min_dcf_")]
    costs = [f"{kind}_dcf_{prior}" for prior in priors for kind in ("min", "act")]
    return [name for name in ("eer", *costs, "cllr", "min_cllr") if name in found]


def rates_table(results: Mapping[str, Any], trials: str) -> tuple[list[str], list[list[str]]]:
    """Heading and one row for each method on one list."""
    metrics = metrics_of(results)
    rows = []
    for row in _rows(results, trials):
        cells = [_cell(name, row["metrics"][name], row["intervals"].get(name)) for name in metrics]
        rows.append([_named(results, row["method"]), *cells])
    return ["scores", *(_heading(name) for name in metrics)], rows


def margins_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """By how much the chosen method is below each baseline, list by list."""
    rows = []
    for row in results["scores"]["margins"]:
        span = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        rows.append([row["list"], NAMES[row["baseline"]], f"{100 * row['eer']:.1f}", span])
    return ["trials", "compared with", "EER lower by (points)", "95 % interval, paired over speakers"], rows


def trials_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and one row for each list of trials, and one for the development trials."""
    rows = [
        [name, str(row["trials"]), str(row["targets"]), str(row["speakers"]), str(row["clips"]), " ".join(row["notes"])]
        for name, row in results["trials"].items()
    ]
    dev = results["scores"]["dev"]
    rows.append(
        ["(development)", str(dev["trials"]), MISSING, str(dev["speakers"]), MISSING, "held-out training speakers"]
    )
    return ["trials", "number", "target", "speakers", "clips", "notes"], rows


def facts_of(results: Mapping[str, Any]) -> list[str]:
    """Sentences on corpus, training and calibration."""
    corpus, run, scores = results["corpus"], results["training"], results["scores"]
    best, calibration = run["best"], scores["calibration"]
    found = [
        f"{corpus['clips']} clips of {corpus['speakers']} speakers, {corpus['hours']:.2f} h; "
        f"{len(results['skipped'])} left out.",
        f"{run['system']}, {run['trained_parameters'] / 1e6:.2f} M trained parameters, on {run['clips']} clips of "
        f"{run['speakers']} speakers: {run['steps']} steps in {run['seconds']:.0f} s; kept is step "
        f"{int(best['step'])} of stage {int(best['stage']) + 1}, EER {100 * best['dev_eer']:.2f} % on "
        f"{run['dev_trials']} trials of development speakers.",
        f"Cohort, PLDA and standardisation: {scores['cohort']['clips']} clips of {scores['cohort']['speakers']} "
        "training speakers.",
    ]
    if calibration is not None:
        found.append(
            f"Calibration of the cosine: llr = {calibration['scale']:.3f} cosine {calibration['offset']:+.3f}, "
            f"threshold {calibration['threshold']:.3f} at prior {calibration['prior']:g}, from "
            f"{calibration['trials']} development trials."
        )
    return found


def headline(results: Mapping[str, Any]) -> list[str]:
    """One sentence for each list: the chosen method against the better baseline."""
    chosen = results["scores"]["chosen"]
    said = []
    for trials in results["trials"]:
        rows = {row["method"]: row for row in _rows(results, trials)}
        plain = min((row for row in rows.values() if row["baseline"]), key=lambda row: row["metrics"]["eer"])
        ours, other = (_cell("eer", r["metrics"]["eer"], r["intervals"].get("eer")) for r in (rows[chosen], plain))
        said.append(
            f"{trials}: EER {ours} % ({results['training']['system']}, {NAMES[chosen]}), against {other} % "
            f"({NAMES[plain['method']]})."
        )
    return said


def speaker_markdown(results: Mapping[str, Any]) -> str:
    """RESULTS.md."""
    lines = [f"# Speaker verification on {results['corpus']['name']}: {results['name']}", ""]
    lines += [*headline(results), ""]
    lines += [f"> **Warning.** {text}\n" for text in results["scores"]["warnings"]]
    lines += [_EXPLAINED, ""]
    for name in results["trials"]:
        lines += [f"## {name}", "", *_markdown(*rates_table(results, name)), ""]
    header, rows = margins_table(results)
    lines += ["## Margin", "", *_markdown(header, rows), ""] if rows else []
    lines += ["## Trials and training", "", *_markdown(*trials_table(results)), ""]
    lines += [f"- {text}" for text in facts_of(results)]
    if results["protocol"]["notes"]:
        lines += ["", str(results["protocol"]["notes"])]
    return "\n".join([*lines, "", f"    {results['command']}", ""])


def speaker_html(results: Mapping[str, Any]) -> str:
    """The page; text is escaped, nothing is fetched, no script runs."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mmssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        {"name": name, "table": rates_table(results, name), "det": _det(results, name)} for name in results["trials"]
    ]
    return environment.get_template("speaker.html.j2").render(
        title=f"Speaker verification on {results['corpus']['name']}",
        name=results["name"],
        headline=headline(results),
        explained=_EXPLAINED,
        warnings=results["scores"]["warnings"],
        sections=sections,
        margins=margins_table(results),
        trials=trials_table(results),
        facts=facts_of(results),
        notes=str(results["protocol"]["notes"] or ""),
        figures=training_figures(results["training"]["history"]),
        settings=results["settings"],
        command=results["command"],
        versions=results["versions"],
    )


def training_figures(history: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Loss, accuracy, EER on development trials, margin and learning rate over the steps of all stages."""
    offsets: dict[float, float] = {}
    total = 0.0
    for stage in sorted({row["stage"] for row in history}):
        offsets[stage] = total
        total += max(row["step"] for row in history if row["stage"] == stage)
    found = []
    for name, text in (
        ("loss", "training loss"),
        ("accuracy", "share of training crops whose speaker is right"),
        ("dev_eer", "EER on development trials"),
        ("margin", "margin"),
        ("learning_rate", "learning rate"),
    ):
        points = [(row["step"] + offsets[row["stage"]], row[name]) for row in history if row.get(name) is not None]
        if len(points) > 1:
            words = f"{text} over steps: from {points[0][1]:.4g} to {points[-1][1]:.4g}"
            found.append(
                {"text": text, "figure": line_plot([Line(points, 0, name, "mean")], "step", text, words, height=200)}
            )
    return found


def _det(results: Mapping[str, Any], trials: str) -> dict[str, Any]:
    rows = _rows(results, trials)
    curves = [
        DetCurve(_named(results, row["method"]), list(zip(*row["det"], strict=True)), k, row["baseline"])
        for k, row in enumerate(rows)
    ]
    said = "; ".join(
        f"{curve.name}: EER {100 * row['metrics']['eer']:.1f} %" for curve, row in zip(curves, rows, strict=True)
    )
    legend = [(line_mark(curve), curve.name) for curve in curves]
    return {"figure": det_plot(curves, f"DET curves on {trials}. {said}"), "legend": legend}


def _rows(results: Mapping[str, Any], trials: str) -> list[Mapping[str, Any]]:
    return [row for row in results["scores"]["rows"] if row["list"] == trials]


def _named(results: Mapping[str, Any], method: str) -> str:
    return NAMES[method] + (" (chosen)" if method == results["scores"]["chosen"] else "")


def _heading(metric: str) -> str:
    if "_dcf_p" in metric:
        return f"{metric[:3]}DCF (P .{metric.rpartition('_p')[2]})"
    return {"eer": "EER %", "cllr": "Cllr", "min_cllr": "min Cllr"}[metric]


def _cell(metric: str, value: float, interval: Sequence[float] | None) -> str:
    factor, digits = (100, 2) if metric == "eer" else (1, 3)
    span = "" if interval is None else f" [{factor * interval[0]:.{digits}f} to {factor * interval[1]:.{digits}f}]"
    return f"{factor * value:.{digits}f}{span}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *escaped)]
