"""MTCNN with the weights in the wheel of facenet-pytorch, whose pins must be passed over (see docs/how-to/faces.md)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from mmssl.errors import ConfigError
from mmssl.faces.boxes import Face
from mmssl.faces.detectors import FaceDetector

if TYPE_CHECKING:
    import numpy


class MTCNN(FaceDetector):
    """Three convolutional networks in a row (Zhang et al., IEEE SPL 2016), with five landmarks.

    About 170 ms a picture of 360 x 288 on one core. The package asks for torch < 2.3 but runs with later ones:
    `pip install --no-deps facenet-pytorch`.

    Args:
        min_share: smallest face looked for, as a share of the picture's shorter side.
        min_score: of a face, in [0, 1].
        device: torch device.

    Raises:
        ConfigError: facenet-pytorch is absent, or an argument is out of its range.
    """

    margin = 0.3

    def __init__(self, min_share: float = 0.15, min_score: float = 0.9, device: str = "cpu"):
        if not 0 < min_share <= 1 or not 0 <= min_score <= 1:
            raise ConfigError(
                f"The detector 'mtcnn' takes min_share in (0, 1] and min_score in [0, 1]; got {min_share!r} and "
                f"{min_score!r}."
            )
        try:
            import facenet_pytorch
        except ImportError as error:
            raise ConfigError(
                f"The face detector 'mtcnn' needs facenet-pytorch: {error}. Its pins are old, so install it alone: "
                "pip install --no-deps facenet-pytorch; or use --detector opencv (pip install 'mmssl[faces]')."
            ) from error
        self.min_share, self.min_score = min_share, min_score
        self._network = facenet_pytorch.MTCNN(keep_all=True, device=device)

    def detect(self, pictures: numpy.ndarray, clip_id: str) -> list[list[Face]]:
        """Faces of each picture, each picture on its own."""
        self._network.min_face_size = max(20, round(min(pictures.shape[1:3]) * self.min_share))
        found = []
        for picture in pictures:
            boxes, scores, landmarks = self._network.detect(picture, landmarks=True)
            faces = []
            for box, score, points in zip(boxes, scores, landmarks, strict=True) if boxes is not None else ():
                if score is not None and score >= self.min_score:
                    left, top, right, bottom = (float(v) for v in box)
                    marks = tuple((float(x), float(y)) for x, y in points)
                    faces.append(Face((left, top, right, bottom), float(score), marks))
            found.append(faces)
        return found

    def fingerprint(self) -> dict[str, str]:
        """Version of the package that holds the weights."""
        try:
            return {"facenet-pytorch": version("facenet-pytorch")}
        except PackageNotFoundError:
            return {"facenet-pytorch": "unknown"}
