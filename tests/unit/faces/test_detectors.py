from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mmssl.errors import ConfigError, DataError, RegistryError
from mmssl.faces.detectors import DETECTORS, build_detector

PICTURES = np.zeros((3, 40, 60, 3), np.uint8)


def test_the_centre() -> None:
    faces = build_detector("centre", share=0.5).detect(PICTURES, "a")
    assert [[face.box for face in frame] for frame in faces] == [[(20, 10, 40, 30)]] * 3
    with pytest.raises(ConfigError, match="share from 0 to 1, got 2"):
        build_detector("centre", share=2)


def test_boxes_given_as_json(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"a": [1, 2, 3, 4], "b": [[0, 0, 2, 2], None, [1, 0, 3, 2]], "c": {"2": [5, 5, 6, 6]}}))
    detector = build_detector("given", file=str(file))
    boxes = {clip: [[f.box for f in frame] for frame in detector.detect(PICTURES, clip)] for clip in "abc"}
    assert boxes == {
        "a": [[(1, 2, 3, 4)]] * 3,
        "b": [[(0, 0, 2, 2)], [], [(1, 0, 3, 2)]],
        "c": [[], [], [(5, 5, 6, 6)]],
    }
    with pytest.raises(DataError, match="no boxes of the clip 'd'"):
        detector.detect(PICTURES, "d")
    with pytest.raises(DataError, match="frame 2 of the clip 'b', which has 2 frames"):
        detector.detect(PICTURES[:2], "b")


def test_boxes_given_as_a_table(tmp_path: Path) -> None:
    file = tmp_path / "b.csv"
    file.write_text("clip,frame,left,top,right,bottom\na,1,1,2,3,4\nb,,0,0,9,9\n")
    detector = build_detector("given", file=str(file))
    assert [[f.box for f in frame] for frame in detector.detect(PICTURES, "a")] == [[], [(1, 2, 3, 4)], []]
    assert all(frame[0].box == (0, 0, 9, 9) for frame in detector.detect(PICTURES, "b"))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("b.json", "[1]", "object of clip ids"),
        ("b.json", "{", "not JSON"),
        ("b.json", '{"a": [3, 0, 1, 2]}', "left < right"),
        ("b.json", '{"a": {"x": [0, 0, 1, 2]}}', "whole number from 0, got 'x'"),
        ("b.json", '{"a": [0, 0, NaN, 2]}', "four finite numbers"),
        ("b.csv", "clip,frame,left\n", "no column top, right, bottom"),
        ("b.csv", "clip,frame,left,top,right,bottom\na,1,0,0,1,1\na,1,0,0,1,1\n", ":3: .* already"),
    ],
)
def test_wrong_boxes_are_refused(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=match):
        build_detector("given", file=str(tmp_path / name))


def test_names() -> None:
    assert DETECTORS.names() == ["centre", "given", "mtcnn", "opencv"]
    with pytest.raises(RegistryError, match="Did you mean 'opencv'"):
        build_detector("opencvv")
    with pytest.raises(ConfigError, match="must derive from"):
        build_detector("pathlib.PurePosixPath")


@pytest.mark.parametrize(
    ("name", "module", "match"),
    [("opencv", "cv2", r"mmssl\[faces\]"), ("mtcnn", "facenet_pytorch", "--no-deps facenet-pytorch")],
)
def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, module: str, match: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=match):
        build_detector(name)


def test_a_plug_in_file(tmp_path: Path) -> None:
    file = tmp_path / "corner.py"
    file.write_text(
        "from mmssl.faces.boxes import Face\nfrom mmssl.faces.detectors import FaceDetector\n"
        "class Corner(FaceDetector):\n"
        "    def detect(self, pictures, clip_id):\n        return [[Face((0, 0, 8, 8))] for _ in pictures]\n"
    )
    assert build_detector(str(file)).detect(PICTURES, "a")[0][0].box == (0, 0, 8, 8)


def test_opencv_refuses_what_it_has_not() -> None:
    pytest.importorskip("cv2", reason="the extra faces")
    with pytest.raises(ConfigError, match="no cascade 'nobody'"):
        build_detector("opencv", cascade="nobody")
    with pytest.raises(ConfigError, match="min_share"):
        build_detector("opencv", min_share=0)
    # nothing in a grey picture
    assert build_detector("opencv").detect(PICTURES + 90, "a") == [[], [], []]
