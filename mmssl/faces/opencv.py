"""OpenCV's cascades, whose weights are in its wheel (extra `faces`)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError, did_you_mean
from mmssl.faces.boxes import Face
from mmssl.faces.detectors import FaceDetector

if TYPE_CHECKING:
    import numpy


class OpenCVCascade(FaceDetector):
    """Boosted cascade of Haar features (Viola and Jones, CVPR 2001), frontal faces, no landmarks.

    Works offline on any processor at about 25 ms a picture of 360 x 288. Frontal, upright faces only.

    Args:
        cascade: one of OpenCV's, without "haarcascade_" and ".xml".
        min_share: smallest face looked for, as a share of the picture's shorter side.
        neighbours: detections of one place that make a face; more mean fewer false alarms and more missed faces.
        scale: step between the sizes looked at, above 1.

    Raises:
        ConfigError: OpenCV 4 is absent, has no such cascade, or an argument is out of its range.
    """

    margin = 0.2

    def __init__(
        self, cascade: str = "frontalface_alt2", min_share: float = 0.2, neighbours: int = 4, scale: float = 1.1
    ):
        if not 0 < min_share <= 1 or neighbours < 1 or scale <= 1:
            raise ConfigError(
                "The detector 'opencv' takes min_share in (0, 1], neighbours >= 1 and scale > 1; "
                f"got {min_share!r}, {neighbours!r} and {scale!r}."
            )
        cv2 = _opencv()
        folder = Path(cv2.data.haarcascades)
        file = folder / f"haarcascade_{cascade}.xml"
        if not file.is_file():
            known = sorted(p.stem.removeprefix("haarcascade_") for p in folder.glob("haarcascade_*.xml"))
            raise ConfigError(
                f"OpenCV has no cascade {cascade!r}.{did_you_mean(cascade, known)} It has: {', '.join(known)}."
            )
        self.min_share, self.neighbours, self.scale = min_share, neighbours, scale
        self._cv2 = cv2
        self._cascade = cv2.CascadeClassifier(str(file))
        self._checksum = hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def detect(self, pictures: numpy.ndarray, clip_id: str) -> list[list[Face]]:
        """Faces of each picture, on its grey levels spread to the whole range."""
        cv2 = self._cv2
        smallest = max(1, round(min(pictures.shape[1:3]) * self.min_share))
        found = []
        for picture in pictures:
            grey = cv2.equalizeHist(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
            boxes, counts = self._cascade.detectMultiScale2(
                grey, self.scale, self.neighbours, minSize=(smallest, smallest)
            )
            found.append(
                [
                    Face((float(x), float(y), float(x + w), float(y + h)), float(count))
                    for (x, y, w, h), count in zip(boxes, counts, strict=True)
                ]
            )
        return found

    def fingerprint(self) -> dict[str, str]:
        """Version of OpenCV and checksum of the cascade."""
        return {"opencv": str(self._cv2.__version__), "cascade": self._checksum}


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            f"The face detector 'opencv' needs OpenCV 4: {error}. Install the extra: pip install 'mmssl[faces]'; or "
            "give boxes (--detector given file=BOXES.json), or cut the middle (--detector centre)."
        ) from error
    # the cascades left the main modules with version 5
    if not hasattr(cv2, "CascadeClassifier") or not hasattr(cv2, "data"):
        raise ConfigError(
            f"The face detector 'opencv' needs OpenCV 4, whose wheel carries the cascades; {cv2.__version__} has none. "
            "Install: pip install 'opencv-python-headless>=4.8,<5'."
        )
    # one thread a process: several processes share the work
    cv2.setNumThreads(1)
    return cv2
