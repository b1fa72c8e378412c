"""IEMOCAP's videos show both actors: the one with markers, whom the name of the dialogue tells, in the left half."""

from __future__ import annotations

import re
from typing import Any

import numpy

from mmssl.errors import DataError
from mmssl.faces.boxes import Face
from mmssl.faces.detectors import FaceDetector, build_detector

# Ses01F_impro01_M000: in the dialogues Ses01F the woman wears markers; a man speaks
UTTERANCE = re.compile(r"Ses0[1-5](?P<markers>[FM])_\w+_(?P<speaker>[FM])\d+")


class SpeakersHalf(FaceDetector):
    """Another detector, on the half of the picture in which the speaker of the utterance is.

    Args:
        inner: name of the other detector.
        arguments: of it.
    """

    def __init__(self, inner: str = "opencv", arguments: dict[str, Any] | None = None):
        self.inner = build_detector(inner, **(arguments or {}))
        self.margin = self.inner.margin

    def detect(self, pictures: numpy.ndarray, clip_id: str) -> list[list[Face]]:
        """Faces in the speaker's half, in pixels of the whole picture."""
        match = UTTERANCE.fullmatch(clip_id)
        if match is None:
            raise DataError(f"{clip_id!r} is no utterance of IEMOCAP, such as Ses01F_impro01_M000.")
        middle = pictures.shape[2] // 2
        start = 0 if match["markers"] == match["speaker"] else middle
        half = numpy.ascontiguousarray(pictures[:, :, start : start + middle])
        return [[_moved(face, start) for face in faces] for faces in self.inner.detect(half, clip_id)]

    def fingerprint(self) -> dict[str, str]:
        """That of the other detector."""
        return self.inner.fingerprint()


def _moved(face: Face, by: int) -> Face:
    left, top, right, bottom = face.box
    marks = None if face.landmarks is None else tuple((x + by, y) for x, y in face.landmarks)
    return Face((left + by, top, right + by, bottom), face.score, marks)
