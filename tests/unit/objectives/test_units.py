"""Units of crops: each frame has the label of its own time in the whole clip."""

from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.objectives.targets.units import Units
from mmssl.objectives.types import Encoded, Step, View
from mmssl.types import Inputs, Layers, Padded, StreamSpec, UpstreamSpec

SPEC = UpstreamSpec(
    inputs=("waveforms", "video"),
    streams={"fusion": StreamSpec((4,), (640,)), "video": StreamSpec((4,), (1,))},
    sample_rate=16000,
    video_fps=25.0,
)


class Model:
    """Stands for an encoder, of which a target asks the rates alone."""

    def __init__(self) -> None:
        self.upstream = self
        self.spec = SPEC


def step_of(starts: tuple[int, ...], frames: tuple[int, ...]) -> Step:
    output = Padded(torch.zeros(len(frames), max(frames), 4), torch.tensor(frames))
    encoded = Encoded(output, Layers((output.data,), (output.lengths,)))
    view = View(Inputs(), ids=tuple(f"c{k}" for k in range(len(frames))), starts=starts)
    return Step(0, [view], {0: {"fusion": encoded}}, Model(), torch.Generator())  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [25.0, 50.0, 100.0])
def test_labels_of_a_crop_of_sound_and_video_are_those_of_its_time(rate: float) -> None:
    # the label of a time is its number
    units = {f"c{k}": torch.arange(int(40 * rate / 25)) for k in range(2)}
    target = Units(units, rate, stream="fusion")
    found = target(step_of((7 * 640, 0), (10, 12)), 0)
    step = int(rate / 25)
    assert found[0].tolist() == [step * frame for frame in range(7, 17)] + [0, 0]
    assert found[1].tolist() == [step * frame for frame in range(12)]
    with pytest.raises(ConfigError, match="multiple of the hop of 640 samples, got 650"):
        target(step_of((650, 0), (10, 12)), 0)
