"""Face detectors by name, dotted path, .py file or entry point (group `mmssl.face_detectors`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError
from mmssl.faces.boxes import Face
from mmssl.registry import Registry

if TYPE_CHECKING:
    import numpy

DETECTORS = Registry(
    "face detector",
    "mmssl.face_detectors",
    {
        "given": "mmssl.faces.given.GivenBoxes",
        "centre": "mmssl.faces.detectors.CentreBox",
        "opencv": "mmssl.faces.opencv.OpenCVCascade",
        "mtcnn": "mmssl.faces.mtcnn.MTCNN",
    },
    file_base="mmssl.faces.detectors.FaceDetector",
)


class FaceDetector(ABC):
    """Finds faces in pictures.

    Attributes:
        margin: that suits its boxes for a crop of the whole face, as a share of the box on each side.
    """

    margin: float = 0.0

    @abstractmethod
    def detect(self, pictures: numpy.ndarray, clip_id: str) -> list[list[Face]]:
        """Find the faces of a clip.

        Args:
            pictures: (T, H, W, 3) uint8 RGB.
            clip_id: of the clip that they are of.

        Returns:
            The faces of each picture, in any order; each picture's must not depend on other clips.

        Raises:
            DataError: this clip cannot be done.
        """

    def fingerprint(self) -> dict[str, str]:
        """What determines the result besides the arguments: versions, checksums of files."""
        return {}


class CentreBox(FaceDetector):
    """A square in the middle of every picture, for corpora that are cropped already.

    Args:
        share: side of the square as a share of the shorter side of the picture, in (0, 1].
        x: where its centre is, as a share of the width.
        y: where its centre is, as a share of the height.

    Raises:
        ConfigError: a share is out of its range.
    """

    def __init__(self, share: float = 1.0, x: float = 0.5, y: float = 0.5):
        for name, value, low in (("share", share, 1e-6), ("x", x, 0.0), ("y", y, 0.0)):
            if not (isinstance(value, int | float) and math.isfinite(value) and low <= value <= 1):
                raise ConfigError(f"The detector 'centre' takes {name} from 0 to 1, got {value!r}.")
        self.share, self.x, self.y = float(share), float(x), float(y)

    def detect(self, pictures: numpy.ndarray, clip_id: str) -> list[list[Face]]:
        """The same box in every picture."""
        height, width = pictures.shape[1:3]
        half = min(height, width) * self.share / 2
        x, y = width * self.x, height * self.y
        return [[Face((x - half, y - half, x + half, y + half))] for _ in pictures]


def build_detector(name: str, **kwargs: Any) -> FaceDetector:
    """Build a detector.

    Args:
        name: built-in, entry point, dotted path or .py file.
        kwargs: its arguments.

    Raises:
        RegistryError: there is none of that name, or what it gives is no detector.
        ConfigError: the arguments do not fit, or a package that it needs is absent.
    """
    detector = DETECTORS.build(name, **kwargs)
    if not isinstance(detector, FaceDetector):
        raise ConfigError(
            f"The face detector {name!r} gives a {type(detector).__name__}; it must derive from "
            "mmssl.faces.detectors.FaceDetector."
        )
    return detector
