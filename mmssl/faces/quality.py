"""The quality page: each clip's frames without a face, black frames and length mismatch, worst first, with pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.data.files import write_text

# A page with more pictures takes long to open; quality.json lists every clip.
_NUM_SHOWN = 200
# A mismatch of this many seconds weighs as much as a clip without any face.
_BAD_MISMATCH = 1.0
_WORTH_A_LOOK = 0.05

_MEASURES = (
    ("no_face", "frames without a face"),
    ("black", "black frames"),
    ("black_crops", "black crops"),
    ("outside", "of the region beyond the picture"),
)
_MISMATCHES = (("audio_minus_video", "length of sound minus video"), ("audio_starts_later", "sound starts later"))


def badness(record: Mapping[str, Any]) -> float:
    """How much a clip needs a look: its worst measure, 1 for one that is lost; 2 and more where it is broken."""
    shares = [float(record.get(key) or 0.0) for key, _ in _MEASURES]
    for key, _ in _MISMATCHES:
        shares.append(min(1.0, abs(float(record.get(key) or 0.0)) / _BAD_MISMATCH))
    return max(shares) + (2.0 if "error" in record else 0.0)


def write_quality(folder: Path, records: Sequence[Mapping[str, Any]], detector: str) -> Path:
    """Write quality.json and quality.html into the folder of the crops.

    Args:
        folder: with the strips of pictures that the records name.
        records: one a clip, as `mmssl.faces.clip.crop_clip` writes them.
        detector: its name.

    Returns:
        Path of the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    ranked = sorted(records, key=lambda record: (-badness(record), record["id"]))
    broken = sum("error" in record for record in records)
    counts = {"clips": len(records), "cropped": len(records) - broken, "broken": broken}
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    listed = [{k: v for k, v in record.items() if k != "source"} | {"badness": badness(record)} for record in ranked]
    content = {"detector": detector, "settings": settings, "counts": counts, "clips": listed}
    write_text(folder / "quality.json", json.dumps(content, indent=1) + "\n")
    loader = PackageLoader("mmssl.faces")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    shown = [_shown(folder, record) for record in ranked[:_NUM_SHOWN]]
    html = pages.get_template("quality.html.j2").render(
        title=f"{settings['region'].capitalize()} crops of {len(records)} clips",
        sentences=_sentences(records, settings, counts, detector),
        totals=_totals(records),
        level=f"{_WORTH_A_LOOK:.0%}",
        shown=shown,
        more=max(0, len(ranked) - _NUM_SHOWN),
    )
    write_text(folder / "quality.html", html)
    return folder / "quality.html"


def _sentences(
    records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], counts: Mapping[str, int], detector: str
) -> list[str]:
    lost = f"{counts['broken']} are broken and have no crop; nothing stands in for them." if counts["broken"] else ""
    sources = sorted({record["from"] for record in records if "from" in record})
    made = {
        "landmarks": "around the mouth corners that the detector found",
        "box": "from the boxes of the faces"
        + (", in their lower third (the detector gave no landmarks)" if settings["region"] == "mouth" else ""),
    }
    where = " or ".join(made[source] for source in sources) or "nowhere"
    return [
        f"{counts['cropped']} of {counts['clips']} clips are cropped. {lost or 'None is broken.'}",
        f"Detector {detector}; squares of {settings['size']} pixels, {where}; margin {settings['margin']:g}, "
        f"smoothed over {settings['window']} frames.",
        "Frames without a face are on a straight line between their neighbours. Each clip shows six frames with the "
        "region marked, and what was cut out below.",
    ]


def _totals(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for key, text in _MEASURES:
        values = [float(record[key]) for record in records if record.get(key) is not None]
        if values:
            many = sum(value > _WORTH_A_LOOK for value in values)
            rows.append([text, f"{sum(values) / len(values):.1%}", f"{max(values):.1%}", str(many)])
    for key, text in (
        ("audio_minus_video", "length of sound minus video"),
        ("audio_starts_later", "sound starts later"),
    ):
        values = [float(record[key]) for record in records if record.get(key) is not None]
        if values:
            many = sum(abs(value) > _WORTH_A_LOOK for value in values)
            worst = max(values, key=abs)
            rows.append([f"{text} (s; above 0.05 s)", f"{sum(values) / len(values):+.3f}", f"{worst:+.3f}", str(many)])
    return rows


def _shown(folder: Path, record: Mapping[str, Any]) -> dict[str, str]:
    strip = folder / record["strip"] if record.get("strip") else None
    picture = base64.b64encode(strip.read_bytes()).decode() if strip is not None and strip.is_file() else ""
    return {
        "id": record["id"],
        "error": record.get("error", ""),
        "text": _facts(record) if "frames" in record else "",
        "picture": picture,
    }


def _facts(record: Mapping[str, Any]) -> str:
    facts = [f"{record['frames']} frames of {record['width']} x {record['height']} at {record['fps']:g} Hz"]
    gap = f" (longest gap {record['longest_gap']})" if record["longest_gap"] else ""
    facts.append(f"no face in {record['no_face']:.1%}{gap}")
    facts.append(f"{record['faces']:.2f} faces a frame")
    facts.append(f"black {record['black']:.1%}")
    if record.get("side") is not None:
        facts.append(f"region {record['side']:.0f} pixels wide, {record['outside']:.1%} beyond the picture")
    if not record["audio"]:
        facts.append("no sound")
    elif record["audio_minus_video"] is not None:
        facts.append(f"sound minus video {record['audio_minus_video']:+.3f} s in length")
        facts.append(f"{record['audio_starts_later'] or 0.0:+.3f} s in start")
    return "; ".join(facts) + "."
