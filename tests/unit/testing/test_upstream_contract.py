"""Every check passes on upstreams that keep the contract, and fails on one that breaks its rule."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.random import isolated_rng
from mmssl.testing import assert_upstream_contract, check_upstream
from mmssl.testing.dummies import DummyAudio, DummyAudioVisual, DummyImage, DummyVideo
from mmssl.testing.upstream_checks import CHECKS
from mmssl.types import Inputs, Layers, Representation, StreamSpec
from mmssl.upstreams.base import Upstream


def loaded(cls: Callable[[], Upstream]) -> Callable[[], Upstream]:
    def build() -> Upstream:
        with isolated_rng(0):
            return cls().eval().requires_grad_(False)

    return build


@pytest.mark.parametrize("cls", [DummyAudio, DummyVideo, DummyImage, DummyAudioVisual])
def test_good_upstreams_of_every_kind_pass(cls: Callable[[], Upstream]) -> None:
    results = check_upstream(loaded(cls), longest=1.0)
    assert [r.name for r in results] == list(CHECKS)
    assert [str(r) for r in results if not r.passed] == []
    assert_upstream_contract(loaded(cls)(), longest=1.0)


def test_an_audio_visual_upstream_is_run_on_each_of_its_inputs() -> None:
    spec = next(r for r in check_upstream(loaded(DummyAudioVisual), longest=1.0) if r.name == "spec")
    assert "waveforms+video / waveforms / video" in spec.detail


def map_layers(found: Representation, change: Callable[[torch.Tensor], torch.Tensor]) -> Representation:
    return {s: Layers(tuple(change(h) for h in layers.hidden_states), layers.lengths) for s, layers in found.items()}


class TouchesRngWhenLoaded(DummyAudio):
    def __init__(self) -> None:
        super().__init__()
        random.seed(random.random())


class DeclaresUnknownStream(DummyAudio):
    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, streams={"sound": self.spec.streams["audio"]})


class StaysInTraining(DummyAudio):
    def eval(self) -> Any:
        return self


class KeepsGradients(DummyAudio):
    def requires_grad_(self, requires_grad: bool = True) -> Any:
        return self


class DrawsWhenRun(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        np.random.rand()
        return super().extract(inputs)


class CountsCalls(DummyAudio):
    calls = 0

    def extract(self, inputs: Inputs) -> Representation:
        self.calls += 1
        return map_layers(super().extract(inputs), lambda h: h + self.calls)


class WritesIntoItsInput(DummyAudio):
    def forward(self, waveforms: Any = None, lengths: Any = None, **other: Any) -> Representation:
        with torch.no_grad():
            waveforms.mul_(0.5)
        return super().forward(waveforms, lengths, **other)


class DependsOnTheBuild(DummyAudio):
    built = 0

    def __init__(self) -> None:
        super().__init__()
        DependsOnTheBuild.built += 1
        with torch.no_grad():
            self.conv.weight.mul_(1 + 0.1 * self.built)


class DeclaresAnotherWidth(DummyAudio):
    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, streams={"audio": StreamSpec((8, 8, 9), (320,) * 3)})


class DropsALayerForShortClips(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        layers = super().extract(inputs)["audio"]
        if inputs.waveforms.data.shape[1] > 1000:
            return {"audio": layers}
        return {"audio": Layers(layers.hidden_states[:-1], layers.lengths[:-1])}


class RepeatsTheLastFrame(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        layers = super().extract(inputs)["audio"]
        longer = tuple(torch.cat([h, h[:, -1:]], dim=1) for h in layers.hidden_states)
        return {"audio": Layers(longer, tuple(n + 1 for n in layers.lengths))}


class DeclaresAnotherHop(DummyAudio):
    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, streams={"audio": StreamSpec((8,) * 3, (160,) * 3)})


class NormalisesOverPadding(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        return map_layers(super().extract(inputs), lambda h: h - h.mean(dim=1, keepdim=True))


class NormalisesOverTheBatch(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        return map_layers(super().extract(inputs), lambda h: h + 1e-3 * h.mean())


class LooksAtTheRawInput(DummyAudio):
    def forward(self, waveforms: Any = None, lengths: Any = None, **other: Any) -> Representation:
        extra = waveforms[:, -1:, None].nan_to_num(1.0)
        found = super().forward(waveforms, lengths, **other)["audio"]
        kept = tuple(
            h + extra * torch.arange(h.shape[1])[None, :, None].lt(found.lengths[0][:, None, None])
            for h in found.hidden_states
        )
        return {"audio": Layers(kept, found.lengths)}


class TakesTooShortInput(DummyAudio):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 8, 100, 320)

    def _check_range(self, name: str, shortest: int, longest: int) -> None:
        return


class RaisesPlainErrorWhenTooShort(DummyAudio):
    def _check_range(self, name: str, shortest: int, longest: int) -> None:
        if shortest < self.spec.min_length:
            raise ValueError(f"at least {self.spec.min_length}")


class CancelsInHalf(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        return map_layers(super().extract(inputs), lambda h: (h + 1000.0) - 1000.0)


class AlwaysFloat32(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        return map_layers(super().extract(inputs), lambda h: h.float())


class StopsGradients(DummyAudio):
    @torch.no_grad()
    def extract(self, inputs: Inputs) -> Representation:
        return super().extract(inputs)


class GivesNan(DummyAudio):
    def extract(self, inputs: Inputs) -> Representation:
        return map_layers(super().extract(inputs), lambda h: h / 0 if h.shape[1] == 1 else h)


class PacksWithTheMeanOfAll(DummyAudio):
    def extract_packed(self, waveforms: list[torch.Tensor]) -> list[Representation]:
        mean = torch.cat(list(waveforms)).mean()
        found = [self((clip - mean)[None])["audio"] for clip in waveforms]
        return [{"audio": Layers(tuple(h[0] for h in f.hidden_states), tuple(n[0] for n in f.lengths))} for f in found]


class DeclaresTooLittleContext(DummyAudio):
    def frame_context(self) -> int:
        return 0

    def extract(self, inputs: Inputs) -> Representation:
        audio = super().extract(inputs)["audio"]
        before = tuple(h + h.roll(1, dims=1) for h in audio.hidden_states)
        return {"audio": Layers(before, audio.lengths)}


BROKEN = [
    (TouchesRngWhenLoaded, "loads"),
    (DeclaresUnknownStream, "spec"),
    (StaysInTraining, "eval mode, no gradient kept"),
    (KeepsGradients, "eval mode, no gradient kept"),
    (DrawsWhenRun, "random states untouched"),
    (CountsCalls, "repeated calls equal"),
    (WritesIntoItsInput, "repeated calls equal"),
    (DependsOnTheBuild, "two builds equal"),
    (DeclaresAnotherWidth, "declared streams, layers and widths"),
    (DropsALayerForShortClips, "declared streams, layers and widths"),
    (RepeatsTheLastFrame, "exact lengths"),
    (GivesNan, "exact lengths"),
    (DeclaresAnotherHop, "declared hops"),
    (NormalisesOverPadding, "alone = padded = shuffled"),
    (NormalisesOverTheBatch, "alone = padded = shuffled"),
    (LooksAtTheRawInput, "garbage in the padding"),
    (PacksWithTheMeanOfAll, "packed = alone"),
    (DeclaresTooLittleContext, "declared context"),
    (TakesTooShortInput, "too short input"),
    (RaisesPlainErrorWhenTooShort, "too short input"),
    (CancelsInHalf, "float16 and bfloat16"),
    (AlwaysFloat32, "float16 and bfloat16"),
    (StopsGradients, "gradients"),
]


@pytest.mark.parametrize(("cls", "name"), BROKEN, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_broken_upstream_fails_its_check(cls: type[DummyAudio], name: str) -> None:
    build = cls if cls is TouchesRngWhenLoaded else loaded(cls)
    results = {r.name: r for r in check_upstream(build, longest=1.0)}
    assert not results[name].passed, results[name]
    assert results[name].detail
    with pytest.raises(AssertionError, match="breaks its contract"):
        assert_upstream_contract(build, longest=1.0)


def test_every_check_but_the_accelerators_is_shown_to_fail() -> None:
    assert {name for _, name in BROKEN} == set(CHECKS) - {"device"}


def test_what_is_no_upstream_is_said_to_be_none() -> None:
    (result,) = check_upstream(lambda: nn.Linear(2, 2), longest=1.0)  # type: ignore[arg-type, return-value]
    assert not result.passed
    assert "Linear" in result.detail
    (result,) = check_upstream("no_such_upstream")
    assert "no_such_upstream" in result.detail
