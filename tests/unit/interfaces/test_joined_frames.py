"""Streams on one clock, against means that are taken one frame at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.joined_frames import JoinedFrames
from mmssl.types import Layers, StreamSpec, UpstreamSpec

RATE, FPS = 16_000, 25.0
STREAMS = {
    # the first layer has another rate, and is left out
    "audio": StreamSpec((5, 3), (160, 320)),
    "video": StreamSpec((2,), (1,), tokens_per_frame=2),
    "fusion": StreamSpec((4,), (0,)),
}
SPEC = UpstreamSpec(("waveforms", "video"), STREAMS, RATE, FPS)


def batch(lengths: dict[str, list[int]], seed: int = 0) -> dict[str, Layers]:
    """Frames of each stream's last layer, NaN past each length."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, counts in lengths.items():
        rows, states = torch.tensor(counts), []
        for size, hop in zip(STREAMS[name].hidden_sizes, STREAMS[name].hop_lengths, strict=True):
            times = 2 if hop == 160 else 1
            data = torch.randn(len(counts), times * max(counts), size, generator=generator)
            past = torch.arange(times * max(counts)) >= times * rows[:, None]
            states.append((data.masked_fill(past[..., None], torch.nan), times * rows))
        found[name] = Layers(*(tuple(part) for part in zip(*states, strict=True)))
    return found


def slow(streams: dict[str, Layers], clip: int, rate: str) -> np.ndarray:
    """Frame j of a stream: the mean over its frames, each by the share of [j, j + 1) that it covers."""
    shifts = {"audio": 320 / RATE, "video": 1 / FPS}
    new = max(shifts.values()) if rate == "slowest" else min(shifts.values())
    parts = []
    for name, shift in shifts.items():
        layer = streams[name][len(STREAMS[name].hidden_sizes) - 1]
        frames = layer.data[clip, : int(layer.lengths[clip])].numpy()
        if name == "video":
            frames = frames.reshape(-1, 2, frames.shape[-1]).mean(1)
        rows = []
        for j in range(round(np.ceil(len(frames) * shift / new - 1e-9))):
            weights = [
                max(0.0, min((i + 1) * shift, (j + 1) * new) - max(i * shift, j * new)) for i in range(len(frames))
            ]
            rows.append(np.average(frames, axis=0, weights=weights))
        parts.append(np.asarray(rows))
    count = min(map(len, parts))
    return np.concatenate([part[:count] for part in parts], 1)


@pytest.mark.parametrize("rate", ["fastest", "slowest"])
def test_frames_meet_in_time(rate: str) -> None:
    joined = JoinedFrames(SPEC, "last_layer", rate)
    assert (joined.output_size, joined.kept) == (5, {"audio": [1], "video": [0]})
    assert joined.frame_shift == pytest.approx(0.02 if rate == "fastest" else 0.04)
    streams = batch({"audio": [9, 4, 3], "video": [8, 4, 6]})
    found = joined(streams)
    for clip in range(3):
        wanted = slow(streams, clip, rate)
        assert int(found.lengths[clip]) == len(wanted)
        np.testing.assert_allclose(found.data[clip, : len(wanted)].numpy(), wanted, rtol=1e-5, atol=1e-6)
        assert not found.data[clip, len(wanted) :].any()


def test_one_stream_is_as_its_interface_gives_it() -> None:
    spec = UpstreamSpec(("waveforms",), {"audio": STREAMS["audio"]}, RATE)
    streams = batch({"audio": [4, 2]})
    found = JoinedFrames(spec, "last_layer")(streams)
    torch.testing.assert_close(found.data[0], streams["audio"].hidden_states[1][0])
    assert found.lengths.tolist() == [4, 2]
    assert set(JoinedFrames(SPEC).layer_weights()) == {"audio", "video"}


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="no frames"):
        JoinedFrames(UpstreamSpec(("waveforms",), {"fusion": STREAMS["fusion"]}, RATE))
    with pytest.raises(ConfigError, match="rate is"):
        JoinedFrames(SPEC, rate="mean")
    joined = JoinedFrames(SPEC)
    with pytest.raises(InputError, match="lacks the stream video"):
        joined(batch({"audio": [4]}))
    with pytest.raises(InputError, match="no frame of some stream"):
        joined(batch({"audio": [4, 4], "video": [0, 2]}))
