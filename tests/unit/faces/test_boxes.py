from __future__ import annotations

import numpy as np
import pytest

from mmssl.faces.boxes import (
    Face,
    face_squares,
    interpolate,
    longest_gap,
    main_face,
    mouth_squares,
    overlap,
    smooth,
)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 12, 40])
@pytest.mark.parametrize("count", [1, 2, 5, 13, 50])
def test_smoothing_equals_a_slow_loop(window: int, count: int) -> None:
    values = np.random.default_rng(count).normal(size=(count, 4))
    expected = np.zeros_like(values)
    for frame in range(count):
        total = 0.0
        for other in range(frame - window // 2, frame + window // 2 + 1):
            if 0 <= other < count:
                weight = 0.5 if window % 2 == 0 and abs(other - frame) == window // 2 else 1.0
                expected[frame] += weight * values[other]
                total += weight
        expected[frame] /= total
    np.testing.assert_allclose(smooth(values, window), expected, rtol=1e-12, atol=1e-12)


def test_smoothing_is_centred() -> None:
    ramp = np.arange(60.0)[:, None]
    np.testing.assert_allclose(smooth(ramp, 12)[6:-6], ramp[6:-6])
    # away from the ends a mirrored clip gives the mirrored result
    values = np.random.default_rng(0).normal(size=(30, 2))
    np.testing.assert_allclose(smooth(values[::-1], 12)[::-1], smooth(values, 12))


def test_interpolation_is_a_line_inside_and_constant_outside() -> None:
    values = np.array([[np.nan], [2.0], [np.nan], [np.nan], [8.0], [np.nan]])
    assert interpolate(values)[:, 0].tolist() == [2, 2, 4, 6, 8, 8]
    with pytest.raises(ValueError, match="no frame"):
        interpolate(np.full((3, 2), np.nan))


def test_longest_gap() -> None:
    assert longest_gap([True, False, True, True, False]) == 2
    assert longest_gap([]) == 0


def test_overlap() -> None:
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 0, 3, 2)) == 0
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1


def at(x: float, side: float = 20.0) -> Face:
    return Face((x, 10, x + side, 10 + side))


def test_the_main_face_is_the_large_one_that_stays() -> None:
    # a small face all the time, a huge false alarm once, and a large face that moves
    frames = [[at(200, 8), at(10 + k, 30)] for k in range(12)]
    frames[5].append(at(300, 60))
    chosen = main_face(frames)
    assert [face.box[0] for face in chosen if face] == [10 + k for k in range(12)]


def test_the_order_of_faces_in_a_frame_does_not_matter() -> None:
    frames = [[at(10 + k, 30), at(60 - k, 29), at(200, 10)] for k in range(8)]
    assert main_face(frames) == main_face([frame[::-1] for frame in frames])


def test_a_face_that_comes_back_elsewhere_is_followed() -> None:
    frames = [[at(10)]] * 6 + [[]] * 2 + [[at(100)]] * 4 + [[at(200)]]
    found = [None if face is None else face.box[0] for face in main_face(frames)]
    assert found == [10] * 6 + [None] * 2 + [100] * 4 + [None]  # one frame alone is a false alarm
    assert main_face([[], []]) == [None, None]


def test_squares() -> None:
    box = np.array([[10.0, 20.0, 30.0, 60.0]])
    assert face_squares(box, 0.25).tolist() == [[20, 40, 60]]
    x, y, side = mouth_squares(box, None)[0]
    # in the lower third of the box
    assert x == 20
    assert 20 + 40 * 2 / 3 < y < 60
    assert side == pytest.approx(12)
    marks = np.array([[[15, 30], [25, 30], [20, 40], [16, 50], [26, 52]]], dtype=float)
    assert mouth_squares(box, marks)[0] == pytest.approx([21, 51, 17])
