"""Stage 5 of recipes/av_sync: scores.json, RESULTS.md and report.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmssl.data.folds import read_folds, speaker_overlap
from mmssl.data.manifest import read_manifest
from mmssl.downstream.sync import estimate_offset, manipulation_scores
from mmssl.metrics.ranking import roc_auc
from mmssl.report.figures import ForestRow, Line, forest, line_plot
from mmssl.stages.av_bootstrap import Rows, mean_of, paired_interval, percent, scored, speaker_draws
from mmssl.stages.av_cuts import NEAR
from mmssl.stages.av_jobs import results_of
from mmssl.stages.av_page import Figure, Section, write_page
from mmssl.stages.av_report import protocol_section, warnings_of
from mmssl.stages.context import Context, versions
from mmssl.stages.files import write_json
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.types import Clip

SCORES = "scores.json"
Statistic = Callable[[Rows], float]
MEASURES = {
    "within_1": "offset found within one frame",
    "exact": "offset found exactly",
    "choice": "recorded against shifted, the same clip: the right one scores higher",
    "auc_match": "recorded against shifted, all clips: area under the curve",
    "auc_shifted": "shifted clips detected: area under the curve",
    "auc_dubbed": "dubbed clips detected: area under the curve",
    "control": "control, pictures of another clip: offset within one frame",
}


def report(context: Context) -> str:
    """Offsets, matched pairs and manipulated clips of every encoder, against chance, with intervals over speakers."""
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    found = results_of(context)
    tables = {name: _table([row for fold in folds for row in fold["rows"]]) for name, (_, folds) in found.items()}
    shift = next(iter(found.values()))[1][0]["frame_shift"]
    scores, curves = [], []
    for number, (name, (record, _)) in enumerate(found.items()):
        table = tables[name]
        ids = sorted(table["matched"])
        draws = speaker_draws([clips[clip].speaker for clip in ids])
        measures = _measures(table, ids)
        row: dict[str, Any] = {"encoder": name, "title": record["title"], "clips": len(ids), "chance": _chance(table)}
        row |= {key: scored(statistic, len(ids), draws) for key, statistic in measures.items()}
        row["mean_error"] = scored(mean_of(_errors(table, ids, "offset")), len(ids), draws)
        scores.append(row)
        curves.append(_curve(table, number, record["title"]))
    differences = _differences(found, tables, clips)
    write_json(context.exp_dir / SCORES, {"frame_shift": shift, "scores": scores, "differences": differences})
    folds = read_folds(context.data / FOLDS)
    overlap = any(speaker_overlap(fold, list(clips.values())) for fold in folds)
    sections = [
        _section(scores, shift),
        _curves_section(curves),
        Section(
            "Differences",
            ["Offset within one frame, on the same clips and draws of speakers."],
            ["first", "second", "difference %"],
            [[d["first"], d["second"], percent(d)] for d in differences],
        ),
        protocol_section(context, _HOW.format(near=NEAR)),
    ]
    sections = [section for section in sections if section.rows or section.figures or section.title == "Protocol"]
    main, chance = scores[0], scores[0]["chance"]
    said = (
        f"offset within one frame ({shift * 1000:.0f} ms) {percent(main['within_1'])} %, chance "
        f"{100 * chance['within_1']:.1f}; recorded against shifted {percent(main['choice'])} %, chance 50"
    )
    write_page(
        context.exp_dir,
        f"{context.config['corpus']}: synchrony of sound and pictures",
        [f"{main['title']}: {said}."],
        sections,
        warnings=[*warnings_of(context, overlap), *_short(found)],
        command=context.command,
        versions=versions(),
    )
    return f"{main['title']}: {said}"


_HOW = (
    "A head that projects the frozen frames of both streams is trained to find the offset of cuts of training "
    "speakers' clips, and selected on development speakers. Cuts are made within a clip: nothing wraps around. Shifted "
    "clips are late or early by more than {near} frames; dubbed ones have the sound of another clip of the same "
    "speaker, and of the same label where there is one. The control has the true sound and the pictures of another "
    "clip: above chance, a single stream would give the offset away."
)


def _curves_section(curves: Sequence[tuple[int, str, list[tuple[float, float]]]]) -> Section:
    drawn = line_plot(
        [Line(points, k, title, "mean") for k, title, points in curves],
        "shift in frames",
        "mean cosine, from each curve's mean",
        "; ".join(f"{title} peaks at {max(points, key=lambda p: p[1])[0]:g}" for _, title, points in curves),
    )
    colours = ("blue", "orange", "green", "pink", "light blue", "brown", "violet", "grey")
    names = ", ".join(f"{colours[k % len(colours)]}: {title}" for k, title, _ in curves)
    text = "Of clips as they were recorded: the mean cosine of sound and pictures if the sound is moved."
    return Section("Score over shifts", [text], figures=[Figure(drawn, names)])


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[int, torch.Tensor]]]:
    """Kind -> clip -> offset and scores."""
    found: dict[str, dict[str, tuple[int, torch.Tensor]]] = {}
    for row in rows:
        found.setdefault(row["kind"], {})[row["id"]] = (row["offset"], torch.tensor(row["scores"]))
    return found


def _scores(table: Mapping[str, Any], ids: Sequence[str], kind: str) -> torch.Tensor:
    return torch.stack([table[kind][clip][1] for clip in ids])


def _errors(table: Mapping[str, Any], ids: Sequence[str], kind: str) -> npt.NDArray[np.float64]:
    """Frames by which the found offset of each clip is wrong."""
    true = torch.tensor([table[kind][clip][0] for clip in ids])
    return (estimate_offset(_scores(table, ids, kind)).offset - true).abs().double().numpy()


def _measures(table: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Statistic]:
    """Each measure as a statistic of rows of `ids`."""
    error = _errors(table, ids, "offset")
    matched, shifted = _scores(table, ids, "matched"), _scores(table, ids, "shifted")
    middle = matched.shape[1] // 2
    right, wrong = matched[:, middle].double().numpy(), shifted[:, middle].double().numpy()
    change = {kind: manipulation_scores(s).double().numpy() for kind, s in (("m", matched), ("s", shifted))}
    found: dict[str, Statistic] = {
        "within_1": mean_of(error <= 1),
        "exact": mean_of(error == 0),
        "choice": mean_of((right > wrong) + 0.5 * (right == wrong)),
        "auc_match": _auc(right, wrong),
        "auc_shifted": _auc(change["s"], change["m"]),
    }
    others = [place for place, clip in enumerate(ids) if clip in table.get("dubbed", {})]
    if others:
        names = [ids[place] for place in others]
        dubbed = np.full(len(ids), np.nan)
        dubbed[others] = manipulation_scores(_scores(table, names, "dubbed")).double().numpy()
        found["auc_dubbed"] = _auc(dubbed, change["m"])
    foreign = [place for place, clip in enumerate(ids) if clip in table.get("control", {})]
    if foreign:
        near = np.full(len(ids), np.nan)
        near[foreign] = _errors(table, [ids[place] for place in foreign], "control") <= 1
        found["control"] = lambda rows: float(np.nanmean(near[rows]))
    return found


def _auc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> Statistic:
    def statistic(rows: Rows) -> float:
        above = positive[rows][np.isfinite(positive[rows])]
        if not len(above):
            return float("nan")
        values = np.concatenate([above, negative[rows]])
        return roc_auc(values, np.arange(len(values)) < len(above))

    return statistic


def _chance(table: Mapping[str, Any]) -> dict[str, float]:
    """What an offset drawn from all shifts alike would give, and 0.5 for choices and areas."""
    true = np.asarray([offset for offset, _ in table["offset"].values()])
    most = (len(next(iter(table["offset"].values()))[1]) - 1) // 2
    shifts = np.arange(-most, most + 1)
    near = np.abs(shifts[None] - true[:, None]) <= 1
    halves = dict.fromkeys(("choice", "auc_match", "auc_shifted", "auc_dubbed"), 0.5)
    within = float(near.mean())
    error = float(np.abs(shifts[None] - true[:, None]).mean())
    return {"within_1": within, "control": within, "exact": 1 / len(shifts), "mean_error": error, **halves}


def _section(scores: Sequence[Mapping[str, Any]], shift: float) -> Section:
    header = ["%", *(s["title"] for s in scores), "chance"]
    rows = [
        [words, *(percent(s[key]) if key in s else "–" for s in scores), f"{100 * scores[0]['chance'][key]:.1f}"]
        for key, words in MEASURES.items()
    ]
    errors = [f"{s['mean_error']['value']:.2f}" for s in scores]
    rows.append(["mean error of the offset, in frames", *errors, f"{scores[0]['chance']['mean_error']:.2f}"])
    lines = [ForestRow(s["title"], _plotted(s["within_1"]), None, []) for s in scores]
    reference = ("chance", 100 * scores[0]["chance"]["within_1"])
    drawn = forest(lines, "offset within one frame, %", reference, "; ".join(line.name for line in lines))
    text = (
        f"{scores[0]['clips']} clips of test speakers; a frame is {shift * 1000:.0f} ms. In brackets: 95 % interval "
        "from speakers drawn anew."
    )
    return Section("Offsets, pairs and manipulated clips", [text], header, rows, [Figure(drawn, MEASURES["within_1"])])


def _plotted(found: Mapping[str, Any]) -> Any:
    return tuple(None if found[key] is None else 100 * found[key] for key in ("value", "low", "high"))


def _curve(table: Mapping[str, Any], number: int, title: str) -> tuple[int, str, list[tuple[float, float]]]:
    mean = _scores(table, sorted(table["matched"]), "matched").double().mean(0)
    mean = mean - mean[torch.isfinite(mean)].mean()
    reach = len(mean) // 2
    return number, title, [(float(k - reach), float(v)) for k, v in enumerate(mean) if torch.isfinite(v)]


def _differences(
    found: Mapping[str, Any], tables: Mapping[str, Any], clips: Mapping[str, Clip]
) -> list[dict[str, Any]]:
    """The main encoder against the others: offset within one frame."""
    main, *others = tables
    rows = []
    for other in others:
        shared = sorted({*tables[main]["offset"]} & {*tables[other]["offset"]})
        draws = speaker_draws([clips[clip].speaker for clip in shared])
        one, two = (mean_of(_errors(tables[name], shared, "offset") <= 1) for name in (main, other))
        low, high = paired_interval(one, two, draws) or (None, None)
        every = np.arange(len(shared))
        titles = found[main][0]["title"], found[other][0]["title"]
        rows.append(
            {"first": titles[0], "second": titles[1], "value": one(every) - two(every), "low": low, "high": high}
        )
    return rows


def _short(found: Mapping[str, Any]) -> list[str]:
    """What was left out because it is too short for the shifts."""
    folds = next(iter(found.values()))[1]
    count = sum(fold["too_short"]["test"] for fold in folds)
    return [f"{count} test clips are too short for the shifts and were left out."] if count else []
