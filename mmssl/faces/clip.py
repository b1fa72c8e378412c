"""One clip: read, find the face, crop, write, and measure."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import DataError, MediaError
from mmssl.faces.boxes import (
    NUM_LANDMARKS,
    Face,
    face_squares,
    interpolate,
    longest_gap,
    main_face,
    mouth_squares,
    smooth,
)
from mmssl.faces.cache import append_line, file_name, source_stamp
from mmssl.faces.crop import black_frames, crop_squares, share_outside
from mmssl.faces.detectors import FaceDetector, build_detector
from mmssl.types import Clip

if TYPE_CHECKING:
    import numpy

BOXES = "boxes.jsonl"
CLIPS = "clips.jsonl"


@dataclass(frozen=True)
class CropSettings:
    """What the crops look like.

    Attributes:
        region: "face" or "mouth".
        size: side of the crops in pixels.
        margin: added on each side, as a share of the region.
        window: frames that boxes are smoothed over.
        max_missing: a clip with a larger share of frames without a face counts as broken.
    """

    region: str = "mouth"
    size: int = 96
    margin: float = 0.0
    window: int = 12
    max_missing: float = 0.5

    @property
    def name(self) -> str:
        """Of the folder: mouth_96."""
        return f"{self.region}_{self.size}"


@dataclass(frozen=True)
class CropJob:
    """All that determines a crop, for a process of its own.

    Attributes:
        clip: what to crop.
        folder: of the boxes; the crops are in a folder in it.
        detector: name, and `arguments` its arguments.
        settings: of the crop.
        boxes: what an earlier run found, or None.
    """

    clip: Clip
    folder: str
    detector: str
    settings: CropSettings
    arguments: Mapping[str, Any] = field(default_factory=dict)
    boxes: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Stretch:
    """What a clip holds: pictures (T, H, W, 3) uint8, and its sound (C, T') or None."""

    pictures: numpy.ndarray
    fps: float
    waveform: numpy.ndarray | None
    sample_rate: int
    audio_minus_video: float | None
    audio_starts_later: float | None


def stamp_of(clip: Clip) -> dict[str, Any]:
    """What a result is valid for: the files as they are, and the stretch of them."""
    return {"files": source_stamp(clip.video, clip.audio), "start": clip.start, "duration": clip.duration}


def crop_clip(job: CropJob) -> None:
    """Crop one clip and append what came of it to the folder's records; a broken clip gets a record with its error."""
    target = Path(job.folder) / job.settings.name
    record: dict[str, Any] = {"id": job.clip.id, "source": stamp_of(job.clip)}
    try:
        record |= _crop(job, target)
    except (MediaError, DataError) as error:
        record["error"] = str(error)
    append_line(target / CLIPS, record)


def read_stretch(clip: Clip) -> Stretch:
    """Read the pictures of a clip, with its sound on the same clock where it has any.

    Raises:
        DataError: the clip has no video.
        MediaError: as `mmssl.media.sync.load_audio_video`.
    """
    from mmssl.media.audio import audio_info
    from mmssl.media.sync import load_audio_video
    from mmssl.media.video import load_video, video_info

    if clip.video is None:
        raise DataError(f"The clip {clip.id!r} has no video. Add the field, or leave the clip out.")
    info = video_info(clip.video)
    apart = clip.audio if clip.audio != clip.video else None
    if apart is None and not info.has_audio:
        video, fps = load_video(clip.video, start=clip.start, duration=clip.duration, as_uint8=True)
        return Stretch(_last_colour(video), fps, None, 0, None, None)
    both = load_audio_video(
        clip.video, audio=apart, start=clip.start, duration=clip.duration, mono=False, as_uint8=True
    )
    sound = audio_info(apart or clip.video)
    waveform = both.waveform.numpy()
    later = 0.0 if apart is not None or info.audio_start is None else info.audio_start - info.start
    return Stretch(
        _last_colour(both.video),
        both.fps,
        waveform if waveform.ndim == 2 else waveform[None],
        both.sample_rate,
        sound.duration - info.duration,
        later,
    )


def _last_colour(video: Any) -> numpy.ndarray:
    """(T, 3, H, W) tensor -> (T, H, W, 3) array."""
    return video.permute(0, 2, 3, 1).contiguous().numpy()


def _crop(job: CropJob, target: Path) -> dict[str, Any]:
    from mmssl.faces.thumbnails import write_strip
    from mmssl.faces.write import write_video

    stretch = read_stretch(job.clip)
    count, height, width = stretch.pictures.shape[:3]
    found = job.boxes
    if found is None:
        found = find_faces(stretch.pictures, job.clip, cached_detector(job.detector, _key(job.arguments)))
        append_line(Path(job.folder) / BOXES, found)
    missing = [box is None for box in found["boxes"]]
    if len(missing) != count:
        raise DataError(f"The boxes of the clip {job.clip.id!r} are for {len(missing)} frames, but it has {count}.")
    share = sum(missing) / count
    quality: dict[str, Any] = {
        "frames": count,
        "fps": stretch.fps,
        "width": width,
        "height": height,
        "no_face": share,
        "longest_gap": longest_gap(missing),
        "faces": found["faces"],
        "black": black_frames(stretch.pictures) / count,
        "audio_minus_video": stretch.audio_minus_video,
        "audio_starts_later": stretch.audio_starts_later,
        "audio": stretch.waveform is not None,
    }
    name = file_name(job.clip.id)
    strip = f"strips/{name}.jpg"
    if all(missing) or share > job.settings.max_missing:
        write_strip(target / strip, stretch.pictures, None, None)
        wrong = f"no face in {sum(missing)} of {count} frames"
        return quality | {
            "strip": strip,
            "error": f"{wrong}; more than the allowed share {job.settings.max_missing:g}.",
        }
    squares, source = squares_of(found, job.settings)
    crops = crop_squares(stretch.pictures, squares, job.settings.size)
    file = f"crops/{name}.mkv"
    write_video(target / file, crops, stretch.fps, stretch.waveform, stretch.sample_rate)
    write_strip(target / strip, stretch.pictures, squares, crops)
    return quality | {
        "file": file,
        "strip": strip,
        "from": source,
        "side": float(squares[:, 2].mean()),
        "outside": share_outside(squares, height, width),
        "black_crops": black_frames(crops) / count,
    }


def find_faces(pictures: numpy.ndarray, clip: Clip, detector: FaceDetector) -> dict[str, Any]:
    """Boxes and landmarks of the main face in each frame, as a record of JSON values; None in frames without."""
    frames = detector.detect(pictures, clip.id)
    chosen: list[Face | None] = main_face(frames)
    return {
        "id": clip.id,
        "source": stamp_of(clip),
        "faces": sum(map(len, frames)) / max(1, len(frames)),
        "boxes": [None if face is None else list(face.box) for face in chosen],
        "scores": [None if face is None else face.score for face in chosen],
        "landmarks": [None if face is None or face.landmarks is None else list(face.landmarks) for face in chosen],
    }


def squares_of(found: Mapping[str, Any], settings: CropSettings) -> tuple[numpy.ndarray, str]:
    """Boxes as `find_faces` gives them -> (T, 3) squares, interpolated and smoothed, and what they were made from.

    Landmarks are used where every frame with a face has them, so that a clip never mixes the two.
    """
    import numpy as np

    boxes = np.array([[np.nan] * 4 if box is None else box for box in found["boxes"]], dtype=np.float64)
    boxes = smooth(interpolate(boxes), settings.window)
    if settings.region == "face":
        return face_squares(boxes, settings.margin), "box"
    marks = [m for box, m in zip(found["boxes"], found["landmarks"], strict=True) if box is not None]
    if any(m is None or len(m) != NUM_LANDMARKS for m in marks):
        return mouth_squares(boxes, None, settings.margin), "box"
    nothing = [[np.nan, np.nan]] * NUM_LANDMARKS
    points = np.array([nothing if m is None else m for m in found["landmarks"]], dtype=np.float64)
    points = smooth(interpolate(points.reshape(len(points), -1)), settings.window)
    return mouth_squares(boxes, points.reshape(-1, NUM_LANDMARKS, 2), settings.margin), "landmarks"


def _key(arguments: Mapping[str, Any]) -> str:
    return json.dumps(dict(arguments), sort_keys=True)


@functools.lru_cache(maxsize=1)
def cached_detector(name: str, arguments: str) -> FaceDetector:
    """A detector that a process builds once for all its clips; `arguments` as JSON."""
    return build_detector(name, **json.loads(arguments))
