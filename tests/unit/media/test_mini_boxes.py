from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.errors import DataError
from mmssl.faces.prepare import prepare_faces
from mmssl.media.face import Expression, Identity, Pose, backdrop, draw_face, head_box
from mmssl.media.mini import make_mini
from mmssl.media.mini_boxes import face_boxes, write_boxes
from mmssl.media.video import load_video

SKIN = (250, 10, 10)
FACE = Identity(
    SKIN, (0, 0, 250), (0, 0, 0), (0, 0, 0), (0, 0, 0), 0.7, 0.2, (0.3, 0.1), (0.2, 0.1), (0.3, 0.1), 0.1, "bald", ()
)


@pytest.mark.parametrize(
    "pose", [Pose(), Pose(0.4, 0.55, 0.3, 0.0, 0.5, -0.5), Pose(0.55, 0.45, 0.36, 0.15, -1.0, 1.0)], ids=str
)
def test_the_box_is_where_skin_is_drawn(pose):
    expression = Expression(opening=0.8)
    picture = draw_face(backdrop((0, 0, 0), (0, 0, 0), 96), FACE, expression, pose).astype(int)
    # the neck and the ears are darker skin
    skin = (np.abs(picture - SKIN) < 12).all(-1)
    rows, columns = np.flatnonzero(skin.any(1)), np.flatnonzero(skin.any(0))
    left, top, right, bottom = head_box(FACE, expression, pose, 96)
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_allclose((left, top, right, bottom), found, atol=1.6)


def test_given_boxes_of_mini(tmp_path: Path):
    clips = make_mini(tmp_path / "mini", num_speakers=1, num_sentences=1, sentences_per_speaker=1, video=True)
    file = tmp_path / "face_boxes.json"
    write_boxes(file, tmp_path / "mini", clips)
    boxes = json.loads(file.read_text())
    assert list(boxes) == [clip.id for clip in clips]
    video, _ = load_video(clips[0].video)
    assert len(face_boxes(tmp_path / "mini", clips[0])) == len(video)
    assert len(boxes[clips[0].id]) == round(25 * clips[0].duration)
    for left, top, right, bottom in boxes[clips[0].id]:
        assert 0 < left < right < 96
        assert -5 < top < bottom < 96
        assert 30 < right - left < 80
    summary = prepare_faces(clips[:1], tmp_path / "faces", detector="given", arguments={"file": str(file)})
    assert not summary.broken
    with pytest.raises(DataError, match="with its videos"):
        write_boxes(file, tmp_path / "mini", [])
