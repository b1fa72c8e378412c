"""All clips of a manifest: crops, a new manifest, records that a second run goes on from, and the quality page.

OUT/detector.json               which detector, its arguments and version
OUT/boxes.jsonl                 boxes and landmarks of each clip, as they were found
OUT/mouth_96/settings.json      how it is cropped; another region or size is another folder beside it
OUT/mouth_96/clips.jsonl        what came of each clip
OUT/mouth_96/crops/ID.mkv       the crop with its sound
OUT/mouth_96/manifest.jsonl     the clips that have a crop
OUT/mouth_96/quality.html|json  how well it went, worst first
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.files import some
from mmssl.data.manifest import write_manifest
from mmssl.errors import ConfigError, DataError, did_you_mean
from mmssl.faces.cache import read_lines, same_settings
from mmssl.faces.clip import BOXES, CLIPS, CropJob, CropSettings, crop_clip, stamp_of
from mmssl.faces.detectors import build_detector
from mmssl.types import Clip

REGIONS = ("face", "mouth")
SIZES = {"face": 160, "mouth": 96}
Run = Callable[[Callable[[CropJob], None], Sequence[CropJob]], None]


@dataclass(frozen=True)
class FacesSummary:
    """What a run did.

    Attributes:
        folder: of the crops.
        manifest: of the clips that have a crop.
        page: the quality page.
        cropped: clips in the manifest.
        broken: id -> why the clip has no crop.
        computed: clips that this run worked on; the others were there.
    """

    folder: Path
    manifest: Path
    page: Path
    cropped: int
    broken: Mapping[str, str]
    computed: int

    def __str__(self) -> str:
        lost = f", {len(self.broken)} broken" if self.broken else ""
        done = f"{self.computed} computed now"
        return f"{self.manifest}: {self.cropped} clips cropped{lost} ({done}); see {self.page}"


def prepare_faces(
    clips: Sequence[Clip],
    folder: str | os.PathLike[str],
    *,
    detector: str = "opencv",
    arguments: Mapping[str, Any] | None = None,
    region: str = "mouth",
    size: int | None = None,
    margin: float | None = None,
    window: int = 12,
    max_missing: float = 0.5,
    run: Run | None = None,
) -> FacesSummary:
    """Crop the face or mouth of every clip.

    Killed, it goes on where it was; a second run computes nothing. Faces are searched once: another region or size
    takes the boxes that are there. Broken clips are listed, never replaced; they are tried again when their files
    change. A clip is held in memory whole.

    Args:
        clips: with `video`; their sound comes from `audio`, else from the video file.
        folder: for boxes and crops; made where it is not there.
        detector: name, dotted path or .py file.
        arguments: of the detector.
        region: "face" or "mouth".
        size: side of the crops in pixels; None takes 160 for the face and 96 for the mouth.
        margin: added on each side, as a share of the region; None takes what suits: the detector's for the face (0 for
            given boxes), 0 for the mouth.
        window: frames that boxes are smoothed over, 1 for none.
        max_missing: share of frames without a face above which a clip counts as broken, in [0, 1].
        run: (work, jobs) -> None, to work on several processes; None works on one clip after the other.

    Raises:
        ConfigError: an argument is out of its range, or the detector cannot be built.
        DataError: no clip has a video, ids come twice, the folder was begun with other settings, or no clip could be
            cropped.
        RegistryError: there is no such detector.
    """
    _check(clips, region, size, margin, window, max_missing)
    given = dict(arguments or {})
    built = build_detector(detector, **given)
    if margin is None:
        margin = built.margin if region == "face" else 0.0
    settings = CropSettings(region, size or SIZES[region], float(margin), window, float(max_missing))
    root = Path(folder).absolute()
    target = root / settings.name
    for sub in ("crops", "strips"):
        (target / sub).mkdir(parents=True, exist_ok=True)
    same_settings(
        root / "detector.json", {"detector": detector, "arguments": given, "fingerprint": built.fingerprint()}
    )
    same_settings(target / "settings.json", dataclasses.asdict(settings))
    jobs = _open_jobs(clips, root, detector, given, settings)
    if run is None:
        for job in jobs:
            crop_clip(job)
    else:
        run(crop_clip, jobs)
    return _finish(clips, target, len(jobs), detector)


def _check(
    clips: Sequence[Clip], region: str, size: int | None, margin: float | None, window: int, max_missing: float
) -> None:
    if region not in REGIONS:
        raise ConfigError(f"There is no region {region!r}.{did_you_mean(region, REGIONS)} Regions: face, mouth.")
    for name, value, low in (("size", size, 8), ("window", window, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ConfigError(f"{name} must be a whole number of {low} or more, got {value!r}.")
    if margin is not None and not (math.isfinite(margin) and margin > -0.5):
        raise ConfigError(f"margin must be a share of the region above -0.5, got {margin!r}.")
    if not 0 <= max_missing <= 1:
        raise ConfigError(f"max_missing must be a share from 0 to 1, got {max_missing!r}.")
    if not any(clip.video for clip in clips):
        raise DataError(
            "No clip of the manifest has a video. Add the field `video` to its lines: the path of a video file."
        )
    seen: set[str] = set()
    twice = [clip.id for clip in clips if clip.id in seen or seen.add(clip.id)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"Ids come twice: {some(twice)}. Give every clip an id of its own.")


def _open_jobs(
    clips: Sequence[Clip], root: Path, detector: str, arguments: Mapping[str, Any], settings: CropSettings
) -> list[CropJob]:
    """What is left to do: clips without a record, of changed files, or whose crop is gone."""
    target = root / settings.name
    found, done = read_lines(root / BOXES), read_lines(target / CLIPS)
    jobs = []
    for clip in clips:
        stamp = stamp_of(clip)
        record = done.get(clip.id)
        current = record is not None and record.get("source") == stamp
        if record is not None and current and ("error" in record or (target / record["file"]).is_file()):
            continue
        boxes = found.get(clip.id)
        known = boxes if boxes is not None and boxes.get("source") == stamp else None
        jobs.append(CropJob(clip, str(root), detector, settings, arguments, known))
    return jobs


def _finish(clips: Sequence[Clip], target: Path, computed: int, detector: str) -> FacesSummary:
    """Write the manifest and the quality page of the clips that were asked for."""
    from mmssl.faces.quality import write_quality

    records = read_lines(target / CLIPS)
    mine = {clip.id: records[clip.id] for clip in clips}
    broken = {key: record["error"] for key, record in mine.items() if "error" in record}
    page = write_quality(target, list(mine.values()), detector)
    good = [_cropped(clip, target, mine[clip.id]) for clip in clips if clip.id not in broken]
    if not good:
        first = next(iter(broken.values()))
        raise DataError(f"None of the {len(clips)} clips could be cropped; see {page}. The first: {first}")
    manifest = target / "manifest.jsonl"
    write_manifest(manifest, good)
    return FacesSummary(target, manifest, page, len(good), broken, computed)


def _cropped(clip: Clip, target: Path, record: Mapping[str, Any]) -> Clip:
    """The clip with its crop, which holds its stretch of the sound too and so begins at 0."""
    file = str(target / record["file"])
    return dataclasses.replace(
        clip,
        video=file,
        audio=file if record["audio"] else None,
        start=0.0,
        duration=record["frames"] / record["fps"],
    )
