"""From the faces found in each frame to one smooth square a frame.

A box is (left, top, right, bottom) in pixels, with edges between pixels: (10, 20, 106, 116) holds the columns 10 to 105
and the rows 20 to 115. Five landmarks are (5, 2), x and y of the eye, eye, nose tip, mouth corner and mouth corner, the
left one in the picture first. A frame without a face is a row of NaN.

Every function sees one clip alone, so that a result depends on no other clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

NUM_LANDMARKS = 5
# A face is the same as the one of the last frame where their boxes overlap by this much (intersection over union).
_SAME_FACE = 0.3
# A face that was away for longer is looked for anew.
_LONGEST_ABSENCE = 25
# Pieces shorter than this, or of another size than the main one by more than the factor, are taken for false alarms.
_SHORTEST_PIECE = 3
_SIZE_RANGE = 2.0
# Where the mouth is in the box of a face, and how wide the region around it is, as shares of the box. Measured against
# landmarks on GRID with OpenCV's frontal cascade: mouth at .51 of the width and .79 to .87 of the height, eyes .34 to
# .39 of the width apart.
MOUTH_HEIGHT = 0.82
MOUTH_SIDE = 0.6
# The same width in distances between the eyes.
MOUTH_SIDE_OF_EYES = 1.7


@dataclass(frozen=True)
class Face:
    """One face in one frame.

    Attributes:
        box: (left, top, right, bottom) in pixels.
        score: how sure the detector is; only compared within a clip.
        landmarks: five (x, y), or None where the detector gives none.
    """

    box: tuple[float, float, float, float]
    score: float = 1.0
    landmarks: tuple[tuple[float, float], ...] | None = None

    @property
    def size(self) -> float:
        """Side of the square of the same area, in pixels."""
        return (max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1])) ** 0.5


@dataclass
class Track:
    """The same face through the frames of a clip: frame -> face."""

    faces: dict[int, Face]

    @property
    def weight(self) -> float:
        """Sum of sizes: a large face counts for more, and so does one that stays."""
        return sum(face.size for face in self.faces.values())

    @property
    def size(self) -> float:
        """Mean size in pixels."""
        return self.weight / len(self.faces)

    @property
    def last(self) -> int:
        """The last frame it was seen in."""
        return max(self.faces)


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (areas[0] + areas[1] - width * height)


def link(frames: Sequence[Sequence[Face]]) -> list[Track]:
    """Join the faces of neighbouring frames into tracks.

    The pair of a track and a face that overlap most is joined first; a face that joins none begins a track.
    """
    tracks: list[Track] = []
    for index, faces in enumerate(frames):
        live = [track for track in tracks if index - track.last <= _LONGEST_ABSENCE]
        pairs = [
            (overlap(track.faces[track.last].box, face.box), -number, -place)
            for number, track in enumerate(live)
            for place, face in enumerate(faces)
        ]
        joined: set[int] = set()
        taken: set[int] = set()
        for share, number, place in sorted(pairs, reverse=True):
            if share >= _SAME_FACE and -number not in joined and -place not in taken:
                live[-number].faces[index] = faces[-place]
                joined.add(-number)
                taken.add(-place)
        tracks += [Track({index: face}) for place, face in enumerate(faces) if place not in taken]
    return tracks


def main_face(frames: Sequence[Sequence[Face]]) -> list[Face | None]:
    """The face that the clip is about, in each frame, or None where it was not found.

    It is the track with the largest sum of sizes over the frames. A face that goes and comes back elsewhere, as after a
    cut, is followed: further tracks, heaviest first, are added where they share no frame with what is taken, last three
    frames or more, and have half to twice the size.
    """
    tracks = sorted(link(frames), key=lambda track: (-track.weight, min(track.faces)))
    chosen: dict[int, Face] = {}
    for track in tracks:
        first = track is tracks[0]
        ratio = track.size / tracks[0].size if tracks[0].size > 0 else 1.0
        fits = len(track.faces) >= _SHORTEST_PIECE and 1 / _SIZE_RANGE <= ratio <= _SIZE_RANGE
        if first or (fits and not chosen.keys() & track.faces.keys()):
            chosen.update(track.faces)
    return [chosen.get(index) for index in range(len(frames))]


def longest_gap(missing: Sequence[bool]) -> int:
    """Length of the longest run of frames without a face."""
    longest = run = 0
    for gone in missing:
        run = run + 1 if gone else 0
        longest = max(longest, run)
    return longest


def interpolate(values: numpy.ndarray) -> numpy.ndarray:
    """Fill frames without a face: on a straight line between the neighbours, and as the nearest at both ends.

    Args:
        values: (T, D) float; a missing frame is NaN throughout.

    Returns:
        (T, D) without NaN.

    Raises:
        ValueError: every frame is missing.
    """
    import numpy as np

    known = np.flatnonzero(~np.isnan(values).any(axis=1))
    if known.size == 0:
        raise ValueError("no frame has a value to interpolate from")
    places = np.arange(len(values))
    return np.stack([np.interp(places, known, column[known]) for column in values.T], axis=1)


def smooth(values: numpy.ndarray, window: int = 12) -> numpy.ndarray:
    """Mean over a window centred on each frame.

    A window of an even number of frames w takes the w / 2 frames on either side, the outermost two at half weight, so
    that it is centred too (AV-HuBERT smooths landmarks over 12 frames). At both ends of the clip it holds the frames
    that there are, and their weights sum to one.

    Args:
        values: (T, D) float, without NaN.
        window: frames, 1 or more; 1 changes nothing.

    Returns:
        (T, D) float64.
    """
    import numpy as np

    half = window // 2
    kernel = np.ones(2 * half + 1)
    if window % 2 == 0:
        kernel[[0, -1]] = 0.5
    count = len(values)

    def summed(column: numpy.ndarray) -> numpy.ndarray:
        return np.convolve(np.pad(column, half), kernel, mode="valid")

    weight = summed(np.ones(count))
    return np.stack([summed(column.astype(np.float64)) / weight for column in values.T], axis=1)


def face_squares(boxes: numpy.ndarray, margin: float) -> numpy.ndarray:
    """Squares around faces.

    Args:
        boxes: (T, 4).
        margin: added on each of the four sides, as a share of the longer side of the box; negative cuts away.

    Returns:
        (T, 3): x and y of the centre, and the side, in pixels.
    """
    import numpy as np

    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = np.maximum(width, height) * (1 + 2 * margin)
    return np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2, side], axis=1)


def mouth_squares(boxes: numpy.ndarray, landmarks: numpy.ndarray | None, margin: float = 0.0) -> numpy.ndarray:
    """Squares around mouths.

    With landmarks: centred between the corners of the mouth, 1.7 distances between the eyes wide. Without: from the box
    of the face, centred in its lower third (at 82 % of its height), 60 % of its width wide; for boxes that end at the
    chin.

    Args:
        boxes: (T, 4).
        landmarks: (T, 5, 2), or None.
        margin: as in `face_squares`.

    Returns:
        (T, 3): x and y of the centre, and the side, in pixels.
    """
    import numpy as np

    if landmarks is not None:
        centre = landmarks[:, 3:5].mean(axis=1)
        side = np.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=1) * MOUTH_SIDE_OF_EYES
        return np.concatenate([centre, side[:, None] * (1 + 2 * margin)], axis=1)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 1] + MOUTH_HEIGHT * height
    return np.stack([x, y, width * MOUTH_SIDE * (1 + 2 * margin)], axis=1)
