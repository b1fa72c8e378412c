"""How an objective composes its parts, on an encoder of one linear layer over two streams."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.health import effective_rank, spread, usage_entropy
from mmssl.objectives.losses.cosine import Cosine as CosineLoss
from mmssl.objectives.losses.feature_penalty import FeaturePenalty
from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.losses.regression import L1, MSE
from mmssl.objectives.maskers import Alteration, MaskEmbedding, NoiseMask
from mmssl.objectives.objective import Objective
from mmssl.objectives.schedule import Cosine, Exponential, Linear
from mmssl.objectives.targets.base import Target
from mmssl.objectives.targets.tap import Tap
from mmssl.objectives.term import Term
from mmssl.objectives.types import Encoded, Encoder, Examples, Hidden, Step, View
from mmssl.objectives.views import SpanMasked, Views
from mmssl.types import Inputs, Layers, Padded


class Toy(Encoder):
    """Frames of two values of the waveform; the stream "video" is a second linear layer on them."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.video = nn.Linear(2, 3), nn.Linear(2, 3)
        self.calls = 0

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        return {"audio": inputs.waveforms.lengths // 2}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        self.calls += 1
        padded = view.inputs.waveforms
        lengths = padded.lengths // 2
        frames = padded.data.unflatten(1, (-1, 2))
        hidden = view.hidden.get("audio")
        masked = frames
        if hidden is not None:
            masked = torch.stack([hidden.masker(f, m, 0) for f, m in zip(frames, hidden.mask, strict=True)])
        streams = {}
        for name, layer in (("audio", self.audio), ("video", self.video)):
            first, last = Padded(masked, lengths), Padded(layer(masked), lengths)
            layers = Layers((first.data, last.data), (lengths, lengths))
            mask = None if hidden is None else hidden.mask
            streams[name] = Encoded(last, layers, mask, None, {"input": Padded(frames, lengths)})
        return streams


class Scaled(Views):
    """Views scaled by 1, 2, 3 ...; the first is masked."""

    def __init__(self, count: int, masker: MaskEmbedding | None = None) -> None:
        super().__init__()
        self.count, self.masker = count, masker

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        waveforms = examples.inputs.waveforms
        views = []
        for k in range(self.count):
            hidden = {}
            if k == 0 and self.masker is not None:
                mask = torch.zeros(len(waveforms.data), waveforms.data.shape[1] // 2, dtype=torch.bool)
                mask[:, 1:3] = True
                hidden = {"audio": Hidden(mask, self.masker)}
            scaled = Padded(waveforms.data * (k + 1), waveforms.lengths)
            views.append(View(Inputs(waveforms=scaled), hidden, examples.ids, examples.labels))
        return views


class Peer(Target):
    """The mean over a clip of a view's other stream."""

    reads_student = True

    def forward(self, step: Step, view: int) -> Tensor:
        return step.stream(view, "video").output.data.mean(1)


class Fixed(Target):
    """A constant for each view."""

    def forward(self, step: Step, view: int) -> Tensor:
        frames = step.stream(0, "audio").output.data
        step.records[view, "made"] = frames * 2
        return torch.full_like(frames, float(view))


def batch(size: int = 3) -> Examples:
    torch.manual_seed(0)
    return Examples(Inputs(waveforms=Padded(torch.randn(size, 12), torch.full((size,), 12))))


def test_pairs_choose_the_views_and_only_those_are_encoded() -> None:
    encoder = Toy()
    objective = Objective(encoder, Scaled(4), [Term("a", L1(), Fixed(), where="all", pairs=((0, 2), (0, 3), (1, 2)))])
    output = objective(batch(), 0)
    assert encoder.calls == 2  # views 0 and 1: the target reads no encoding of 2 and 3
    frames = batch().inputs.waveforms.data.unflatten(1, (-1, 2))
    parts = [(encoder.audio(frames * (a + 1)) - b).abs().mean() for a, b in ((0, 2), (0, 3), (1, 2))]
    assert torch.allclose(output.loss, sum(parts) / 3)
    assert output.count == 3 * 18


def test_terms_are_weighted_by_their_schedules_and_summed() -> None:
    encoder = Toy()
    terms = [
        Term("a", L1(), Fixed(), where="all", weight=Linear(0.0, 2.0, 10)),
        Term("b", FeaturePenalty(), where="all", source="made", weight=0.5),
    ]
    objective = Objective(encoder, Scaled(1), terms)
    out = objective(batch(), 5).loss
    frames = encoder.audio(batch().inputs.waveforms.data.unflatten(1, (-1, 2)))
    assert torch.allclose(out, frames.abs().mean() * 1.0 + 0.5 * (2 * frames).square().mean())
    logs = objective(batch(), 5).logs
    assert float(logs["a/weight"]) == 1.0
    assert {"loss", "a/loss", "b/loss", "a/target_spread"} <= set(objective(batch(), 50).logs)


def test_where_selects_hidden_visible_or_all_frames_of_a_layer() -> None:
    losses = {}
    for place in ("hidden", "visible", "all"):
        objective = Objective(
            Toy(), Scaled(1, MaskEmbedding(2)), [Term("a", MSE(), Tap("input"), where=place, source=0)]
        )
        losses[place] = objective(batch(), 0)
    assert float(losses["visible"].loss.detach()) == 0.0  # layer 0 is the input, changed in hidden frames only
    assert float(losses["hidden"].loss.detach()) > 0
    assert torch.allclose(losses["all"].loss, losses["hidden"].loss / 3)
    assert [losses[p].count for p in ("hidden", "visible", "all")] == [6, 12, 18]


def test_streams_can_be_contrasted_clip_by_clip() -> None:
    encoder = Toy()
    term = Term("cross", InfoNCE(0.5), Peer(), where="all", stream="audio", pool=True)
    output = Objective(encoder, Scaled(1), [term])(batch(4), 0)
    frames = batch(4).inputs.waveforms.data.unflatten(1, (-1, 2))
    expected = InfoNCE(0.5)(encoder.audio(frames).mean(1), encoder.video(frames).mean(1))
    assert torch.allclose(output.loss, expected.loss)
    assert output.count == 4
    assert float(output.logs["cross/ln_n"]) == pytest.approx(math.log(4))
    with pytest.raises(InputError, match="at least 2"):
        Objective(encoder, Scaled(1), [term])(batch(1), 0)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="hidden, visible, all"):
        Term("a", L1(), Fixed(), where="masked")
    with pytest.raises(ConfigError, match="needs a target"):
        Term("a", L1())
    with pytest.raises(ConfigError, match="penalty"):
        Term("a", FeaturePenalty(), Fixed())
    with pytest.raises(ConfigError, match="pair"):
        Term("a", L1(), Fixed(), pairs=())
    fine = Term("a", L1(), Fixed(), where="all")
    for terms in ([], [fine, Term("a", L1(), Fixed())]):
        with pytest.raises(ConfigError, match="at least one term"):
            Objective(Toy(), Scaled(1), terms)
    for term, message in (
        (Term("a", L1(), Fixed()), "hides none"),
        (Term("a", L1(), Fixed(), where="all", pairs=((3, 0),)), "view 3"),
        (Term("a", L1(), Fixed(), where="all", stream="vido"), "Did you mean 'video'"),
        (Term("a", L1(), Fixed(), where="all", source=5), "layer 5 of 2"),
        (Term("a", FeaturePenalty(), where="all", source="inputt"), "Did you mean 'input'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Objective(Toy(), Scaled(2), [term])(batch(), 0)
    views = SpanMasked(MaskEmbedding(2), 0.5, 2, stream="fusion")
    with pytest.raises(ConfigError, match="fusion"):
        Objective(Toy(), views, [fine])(batch(), 0)


def test_a_shared_target_is_attached_and_updated_once() -> None:
    events = []

    class Counting(Fixed):
        def attach(self, encoder: Encoder) -> None:
            events.append("attach")

        def after_step(self, index: int, encoder: Encoder) -> None:
            events.append(index)

        def before_epoch(self, epoch: int, encoder: Encoder) -> None:
            events.append(f"epoch {epoch}")

    target = Counting()
    terms = [Term("a", L1(), target, where="all"), Term("b", CosineLoss(), target, where="all")]
    objective = Objective(Toy(), Scaled(1), terms)
    objective.before_epoch(2)
    objective.after_step(7)
    assert events == ["attach", "epoch 2", 7]


def test_schedules() -> None:
    assert [Linear(2.0, 4.0, 4)(k) for k in (0, 1, 4, 9)] == [2.0, 2.5, 4.0, 4.0]
    assert [Cosine(1.0, 0.0, 10)(k) for k in (0, 5, 10, 20)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert [Exponential(2.0, 0.5, 0.5)(k) for k in range(4)] == [2.0, 1.0, 0.5, 0.5]
    for build in (lambda: Linear(0, 1, 0), lambda: Cosine(0, 1, 0), lambda: Exponential(1.0, 2.0, 0.9)):
        with pytest.raises(ConfigError):
            build()


def test_health_tells_collapse_from_spread() -> None:
    torch.manual_seed(0)
    isotropic = torch.randn(4000, 6)
    assert float(effective_rank(isotropic)) == pytest.approx(6.0, abs=0.05)
    assert float(effective_rank(isotropic[:, :1] @ torch.randn(1, 6) + 5)) == pytest.approx(1.0, abs=0.02)
    assert float(effective_rank(torch.full((50, 6), 3.3))) == 0.0
    assert float(spread(isotropic)) == pytest.approx(1.0, abs=0.03)
    assert float(spread(torch.full((50, 6), 3.25))) == 0.0
    assert float(usage_entropy(torch.arange(8).repeat(5))) == pytest.approx(math.log(8))
    assert float(usage_entropy(torch.zeros(9, 2, dtype=torch.int64))) == 0.0


def test_maskers_touch_what_they_should() -> None:
    frames = torch.randn(50, 12) + 10
    mask = torch.zeros(50, dtype=torch.bool)
    mask[5:12] = True
    embedded = MaskEmbedding(12)(frames, mask, 0)
    assert torch.equal(embedded[~mask], frames[~mask])
    assert (embedded[mask] == embedded[5]).all()
    noise = NoiseMask(0.1)(frames, mask, 1)
    assert torch.equal(noise[~mask], frames[~mask])
    assert float(noise[mask].std()) == pytest.approx(0.1, rel=0.3)
    assert torch.equal(noise, NoiseMask(0.1)(frames, mask, 1))
    for build in (lambda: NoiseMask(0.0), lambda: Alteration(-1), lambda: Alteration(12)(frames, mask, 0)):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(InputError, match="3 values"):
        MaskEmbedding(3)(frames, mask, 0)


def test_alterations_have_their_probabilities() -> None:
    frames = torch.randn(40, 12) + 10
    mask = torch.zeros(40, dtype=torch.bool)
    mask[5:12] = True
    zeroed = swapped = kept = 0
    widths = []
    for seed in range(600):
        time_only = Alteration(0, 0.0)(frames, mask, seed)
        assert torch.equal(time_only[~mask], frames[~mask])
        zeroed += bool((time_only[mask] == 0).all())
        kept += torch.equal(time_only, frames)
        swapped += bool((time_only[mask] != 0).all()) and not torch.equal(time_only, frames)
        both = Alteration(4, 0.0)(frames, torch.zeros_like(mask), seed)
        dead = (both == 0).all(0)
        widths.append(int(dead.sum()))
        assert torch.equal(both[:, ~dead], frames[:, ~dead])
    assert [zeroed / 600, swapped / 600, kept / 600] == pytest.approx([0.8, 0.1, 0.1], abs=0.05)
    assert set(widths) == {0, 1, 2, 3, 4}
    noisy = sum(not torch.equal(Alteration(0, 0.15)(frames, torch.zeros_like(mask), s), frames) for s in range(600))
    assert noisy / 600 == pytest.approx(0.15, abs=0.05)
