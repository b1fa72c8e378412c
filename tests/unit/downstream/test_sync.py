from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.downstream.sync import (
    Synchrony,
    detection_metrics,
    estimate_offset,
    manipulation_scores,
    shift_frames,
    shift_scores,
    sync_metrics,
)
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.aligned import AlignedStreams
from mmssl.types import Layers, Padded, StreamSpec, UpstreamSpec


def frames(lengths: list[int], size: int, seed: int, fill: float = 0.0) -> Padded:
    data = torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(seed))
    for row, n in zip(data, lengths, strict=True):
        row[n:] = fill
    return Padded(data, torch.tensor(lengths))


def slow_scores(audio: np.ndarray, video: np.ndarray, reach: int) -> list[float]:
    found = []
    for shift in range(-reach, reach + 1):
        pairs = [(audio[t + shift], video[t]) for t in range(len(video)) if 0 <= t + shift < len(audio)]
        cosines = [a @ v / np.linalg.norm(a) / np.linalg.norm(v) for a, v in pairs]
        found.append(float(np.mean(cosines)) if cosines else -np.inf)
    return found


def test_scores_are_means_over_the_frames_in_common_and_padding_is_not_seen() -> None:
    audio, video = frames([7, 3, 5], 4, 0, float("nan")), frames([5, 6, 5], 4, 1, float("nan"))
    scores = shift_scores(audio, video, 5)
    for clip in range(3):
        a, v = audio.unpad()[clip].numpy(), video.unpad()[clip].numpy()
        np.testing.assert_allclose(scores[clip].numpy(), slow_scores(a, v, 5), atol=1e-6)
    assert bool((shift_scores(audio, video, 5, least_frames=4)[1] == -torch.inf).all())


@pytest.mark.parametrize("offset", [-3, 0, 2])
def test_an_offset_is_found_where_it_was_made(offset: int) -> None:
    both = frames([12, 9], 6, 2)
    audio, video = shift_frames(both, both, torch.tensor([offset, offset]))
    assert audio.lengths.tolist() == [12 - abs(offset), 9 - abs(offset)]
    scores = shift_scores(audio, video, 4)
    found = estimate_offset(scores)
    assert found.offset.tolist() == [offset, offset]
    assert bool((found.confidence > 0.3).all())
    metrics = sync_metrics(scores, torch.tensor([offset, offset + 1]))
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy_within_1"] == 1
    assert metrics["mean_absolute_error"] == 0.5


def test_equal_scores_mean_no_offset() -> None:
    assert estimate_offset(torch.zeros(1, 7)).offset.tolist() == [0]
    assert estimate_offset(torch.tensor([[1.0, 0, 0, 1.0, 0]])).offset.tolist() == [1]


def test_clips_with_shifted_sound_are_detected() -> None:
    both = frames([20] * 6, 5, 3)
    changed = torch.tensor([0, 0, 0, 4, -3, 2])
    scores = manipulation_scores(shift_scores(*shift_frames(both, both, changed), 6))
    assert detection_metrics(scores, changed != 0) == {"auc": 1.0, "eer": 0.0}
    with pytest.raises(InputError, match="two frames"):
        manipulation_scores(torch.zeros(2, 3))


SPEC = UpstreamSpec(
    inputs=("waveforms", "video"),
    streams={"audio": StreamSpec((6, 6), (320, 320)), "video": StreamSpec((4,), (1,), tokens_per_frame=3)},
    sample_rate=16000,
    video_fps=25.0,
)


def test_both_streams_come_to_one_clock() -> None:
    aligned = AlignedStreams(SPEC)
    audio, video = frames([9, 7], 6, 0), frames([15, 9], 4, 1, float("nan"))
    found = aligned(
        {
            "audio": Layers((audio.data, audio.data), (audio.lengths,) * 2),
            "video": Layers((video.data,), (video.lengths,)),
        }
    )
    assert aligned.frame_shift == 0.04
    assert found["audio"].lengths.tolist() == found["video"].lengths.tolist() == [5, 3]
    for k in range(4):
        torch.testing.assert_close(found["audio"].data[0, k], audio.data[0, 2 * k : 2 * k + 2].mean(0))
    torch.testing.assert_close(found["audio"].data[0, 4], audio.data[0, 8])
    torch.testing.assert_close(found["video"].data[1, :3], video.data[1, :9].reshape(3, 3, 4).mean(1))
    assert not bool(torch.isnan(found["video"].data).any())


def test_odd_rates_come_to_one_clock() -> None:
    spec = UpstreamSpec(
        ("waveforms", "video"),
        {"audio": StreamSpec((2,), (160,)), "video": StreamSpec((2,), (1,))},
        sample_rate=16000,
        video_fps=30000 / 1001,
    )
    aligned = AlignedStreams(spec)
    assert aligned.frame_shift == pytest.approx(1001 / 30000)
    assert aligned.hops["video"] / aligned.hops["audio"] == pytest.approx(1001 / 300)
    with pytest.raises(ConfigError, match="streams audio and video"):
        AlignedStreams(UpstreamSpec(("waveforms",), {"audio": StreamSpec((2,), (160,))}, sample_rate=16000))


def test_the_task_learns_a_shift() -> None:
    torch.manual_seed(0)
    task = Synchrony(AlignedStreams(SPEC), embedding_size=8, hidden_size=16, max_shift=3)
    rotate = torch.randn(4, 6)

    def batch(seed: int, clips: int = 8) -> tuple[dict[str, Layers], torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        signal = Padded(torch.randn(clips, 14, 4, generator=draw), torch.full((clips,), 14))
        offsets = torch.randint(-3, 4, (clips,), generator=draw)
        audio, video = shift_frames(signal, signal, offsets)
        heard = (audio.data @ rotate).repeat_interleave(2, dim=1)
        seen = video.data.repeat_interleave(3, dim=1)
        return {
            "audio": Layers((heard, heard), (audio.lengths * 2,) * 2),
            "video": Layers((seen,), (video.lengths * 3,)),
        }, offsets

    optimizer = torch.optim.Adam(task.parameters(), 0.01)
    for step in range(60):
        optimizer.zero_grad()
        task(*batch(step)).loss.backward()
        optimizer.step()
    streams, offsets = batch(1000, 32)
    assert task.metrics(task.predict(streams), offsets)["accuracy_within_1"] > 0.9
    with pytest.raises(InputError, match="from -3 to 3"):
        task(streams, offsets + 7)
