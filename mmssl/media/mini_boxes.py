"""Where the drawn faces of the corpus `mini` are: known, not detected."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from mmssl.errors import DataError
from mmssl.lengths import seconds_to_frames
from mmssl.media.face import head_box
from mmssl.media.mini_video import FPS, SIZE, job_of, performance
from mmssl.media.paths import write_atomically
from mmssl.types import Clip

Box = tuple[float, float, float, float]
DIGITS = 2


def face_boxes(root: str | os.PathLike[str], clip: Clip, seed: int = 0) -> list[Box]:
    """The face's box (left, top, right, bottom) in pixels of every picture of a clip's video: the head without hair.

    Args:
        root: folder of the corpus, with its phones.
        clip: of it.
        seed: of the corpus.

    Raises:
        DataError: the clip's file of phonemes is not there.
    """
    actor, _, frames = performance(job_of(Path(root), clip, seed))
    return [head_box(actor.identity, expression, pose, SIZE) for expression, pose in frames]


def write_boxes(
    path: str | os.PathLike[str], root: str | os.PathLike[str], clips: Sequence[Clip], seed: int = 0
) -> None:
    """Write the boxes of all clips as JSON, as the face detector "given" reads them.

    A picture that the clip's duration does not reach half of, as its last may be, is no frame of the clip.

    Raises:
        DataError: there is no clip, or one has no video.
    """
    if not clips or any(clip.video is None for clip in clips):
        raise DataError("Boxes are those of drawn faces: make the corpus with its videos (mmssl data mini --video).")
    found = {}
    for clip in clips:
        boxes = face_boxes(root, clip, seed)[: seconds_to_frames(float(clip.duration or 0.0), Fraction(FPS))]
        found[clip.id] = [[round(value, DIGITS) for value in box] for box in boxes]
    write_atomically(Path(path), json.dumps(found).encode())
