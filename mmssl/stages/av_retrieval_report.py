"""Stage 5 of recipes/av_retrieval: scores.json, RESULTS.md and report.html."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmssl.data.folds import read_folds, speaker_overlap
from mmssl.data.manifest import read_manifest
from mmssl.media.video import load_video, video_info
from mmssl.report.figures import ForestRow, forest
from mmssl.stages.av_bootstrap import mean_of, paired_interval, percent, scored, speaker_draws
from mmssl.stages.av_jobs import results_of
from mmssl.stages.av_page import Figure, Section, picture, write_page
from mmssl.stages.av_report import protocol_section, warnings_of
from mmssl.stages.av_retrieval import GALLERIES, KS
from mmssl.stages.context import Context, versions
from mmssl.stages.files import write_json
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.types import Clip

SCORES = "scores.json"
DIRECTIONS = ("audio_to_video", "video_to_audio")
_WORDS = {"audio_to_video": "sound finds pictures", "video_to_audio": "pictures find sound"}
_QUERIES = 4


def report(context: Context) -> str:
    """Recall and rank of every encoder in both directions, against chance, with intervals over speakers."""
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    found = results_of(context)
    scores = [
        _score(encoder, record["title"], [row for fold in folds for row in fold["rows"]], gallery, direction, clips)
        for gallery in GALLERIES
        for encoder, (record, folds) in found.items()
        for direction in DIRECTIONS
    ]
    differences = _differences(found, clips)
    write_json(context.exp_dir / SCORES, {"scores": scores, "differences": differences})
    folds = read_folds(context.data / FOLDS)
    overlap = any(speaker_overlap(fold, list(clips.values())) for fold in folds)
    sections = [_section(scores, gallery) for gallery in GALLERIES]
    sections.append(
        Section(
            "Differences",
            ["R@1 among all test clips, mean of both directions, on the same clips and draws of speakers."],
            ["first", "second", "difference, R@1 %"],
            [[d["first"], d["second"], percent(d)] for d in differences],
        )
    )
    main = next(iter(found))
    rows = [row for row in found[main][1][0]["rows"] if row["gallery"] == "all"]
    image = _found_faces([row for row in rows if row["direction"] == "audio_to_video"], clips, context.config["label"])
    words = (
        f"Left: the face of the clip whose sound is the query. Then what {found[main][0]['title']} finds, best first."
    )
    sections.append(Section("What is found", [], figures=[Figure(picture(image, words), words)]))
    sections = [section for section in sections if section.rows or section.figures]
    sections.append(protocol_section(context, _HOW[context.config["retrieval"]["match"]] + _CHANCE))
    best = [s for s in scores if s["encoder"] == main and s["gallery"] == "all"]
    said = "; ".join(
        f"{_WORDS[s['direction']]}: R@1 {percent(s['r1'])}, chance {100 * s['chance_r1']:.1f}" for s in best
    )
    write_page(
        context.exp_dir,
        f"{context.config['corpus']}: retrieval between sound and pictures",
        [f"{found[main][0]['title']}: {said}."],
        sections,
        warnings=warnings_of(context, overlap),
        command=context.command,
        versions=versions(),
    )
    return f"{found[main][0]['title']}: {said}"


_HOW = {
    "clips": (
        "A linear head for each stream is trained by InfoNCE on frozen features of training speakers' clips, and "
        "selected by R@1 on development speakers."
    ),
    "frames": (
        "A head on frozen frames is trained to find the offset of sound and pictures of training speakers' clips, and "
        "selected on development speakers; two clips are as similar as the frames that they have in common."
    ),
}
_CHANCE = (
    " Clips of test speakers are ranked once. A query has one right answer, its own clip. With N clips to search, "
    "chance is k / N for R@k and (N + 1) / 2 for the rank."
)


def _score(
    encoder: str, title: str, rows: Sequence[Mapping[str, Any]], gallery: str, direction: str, clips: Mapping[str, Clip]
) -> dict[str, Any]:
    own = [row for row in rows if row["gallery"] == gallery and row["direction"] == direction]
    draws = speaker_draws([clips[row["id"]].speaker for row in own])
    sizes = np.asarray([row["size"] for row in own], dtype=float)
    ranks = np.asarray([row["rank"] for row in own])
    scored_at = {
        f"r{k}": scored(mean_of([row["recall"][place] for row in own]), len(own), draws) for place, k in enumerate(KS)
    }
    return {
        "encoder": encoder,
        "title": title,
        "gallery": gallery,
        "direction": direction,
        "queries": len(own),
        "gallery_size": float(sizes.mean()),
        **scored_at,
        **{f"chance_r{k}": float(np.minimum(k / sizes, 1).mean()) for k in KS},
        "median_rank": scored(lambda picked: float(np.median(ranks[picked])), len(own), draws),
        "chance_median_rank": float(np.median((sizes + 1) / 2)),
    }


def _section(scores: Sequence[Mapping[str, Any]], gallery: str) -> Section:
    own = [s for s in scores if s["gallery"] == gallery]
    rows = [
        [f"{s['title']}: {_WORDS[s['direction']]}", *(percent(s[f"r{k}"]) for k in KS), _rank(s["median_rank"])]
        for s in own
    ]
    first = own[0]
    rows.append(["chance", *(f"{100 * first[f'chance_r{k}']:.1f}" for k in KS), f"{first['chance_median_rank']:.1f}"])
    size = f"{first['gallery_size']:.0f}"
    title = "All test clips of a fold" if gallery == "all" else "The clips of the query's own speaker"
    text = (
        f"{first['queries']} queries in all, {size} clips to search; speaker, emotion and words help."
        if gallery == "all"
        else f"{first['queries']} queries in all, {size} clips to search: who speaks is no help here."
    )
    lines = [ForestRow(f"{s['title']}: {_WORDS[s['direction']]}", _plotted(s["r1"]), None, []) for s in own]
    drawn = forest(lines, "R@1 %", ("chance", 100 * first["chance_r1"]), "; ".join(" ".join(row[:2]) for row in rows))
    text += " In brackets: 95 % interval from speakers drawn anew."
    return Section(title, [text], ["", *(f"R@{k} %" for k in KS), "median rank"], rows, [Figure(drawn, title)])


def _plotted(found: Mapping[str, Any]) -> Any:
    return tuple(None if found[key] is None else 100 * found[key] for key in ("value", "low", "high"))


def _rank(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.1f} ({found['low']:.1f} to {found['high']:.1f})"


def _differences(found: Mapping[str, Any], clips: Mapping[str, Clip]) -> list[dict[str, Any]]:
    """The main encoder against the others: R@1 among all, mean of both directions."""
    tables = {name: _hits([row for fold in folds for row in fold["rows"]]) for name, (_, folds) in found.items()}
    main, *others = tables
    rows = []
    for other in others:
        shared = sorted({*tables[main]} & {*tables[other]})
        draws = speaker_draws([clips[name].speaker for name in shared])
        one, two = (mean_of([tables[encoder][name] for name in shared]) for encoder in (main, other))
        low, high = paired_interval(one, two, draws) or (None, None)
        every = np.arange(len(shared))
        value = one(every) - two(every)
        titles = found[main][0]["title"], found[other][0]["title"]
        rows.append({"first": titles[0], "second": titles[1], "value": value, "low": low, "high": high})
    return rows


def _hits(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    table: dict[str, list[float]] = {}
    for row in rows:
        if row["gallery"] == "all":
            table.setdefault(row["id"], []).append(row["recall"][0])
    return {name: float(np.mean(values)) for name, values in table.items()}


def _found_faces(rows: Sequence[Mapping[str, Any]], clips: Mapping[str, Clip], label: str) -> bytes:
    """The query's own face and the faces that are found, for a few queries spread over the test clips, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    chosen = rows[:: max(1, len(rows) // _QUERIES)][:_QUERIES]
    columns = 1 + max(len(row["top"]) for row in chosen)
    figure = Drawing(figsize=(1.6 * columns, 1.9 * len(chosen)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for line, row in enumerate(chosen):
        for place, name in enumerate([row["id"], *row["top"]]):
            axes = figure.add_subplot(len(chosen), columns, line * columns + place + 1)
            axes.set_axis_off()
            axes.imshow(_middle(clips[name]))
            head = "query" if place == 0 else f"{place}, right" if name == row["id"] else str(place)
            axes.set_title(f"{head}\n{clips[name].speaker} {clips[name].labels.get(label, '')}", fontsize=7)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _middle(clip: Clip) -> Any:
    """The picture in the middle of a clip, (H, W, 3) uint8."""
    info = video_info(str(clip.video))
    seconds = info.duration - clip.start if clip.duration is None else min(clip.duration, info.duration - clip.start)
    start = clip.start + max(0.0, seconds / 2 - 1 / info.fps)
    video, _ = load_video(str(clip.video), start=start, duration=1 / info.fps, as_uint8=True)
    return video[0].permute(1, 2, 0).numpy()
