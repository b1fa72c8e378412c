from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.losses.barlow_twins import BarlowTwins
from mmssl.objectives.losses.base import Loss
from mmssl.objectives.losses.cosine import Cosine
from mmssl.objectives.losses.cross_entropy import MaskedCrossEntropy
from mmssl.objectives.losses.diversity import Diversity
from mmssl.objectives.losses.feature_penalty import FeaturePenalty
from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.losses.match import MatchCrossEntropy
from mmssl.objectives.losses.nt_xent import NTXent
from mmssl.objectives.losses.regression import L1, MSE, SmoothL1
from mmssl.objectives.losses.soft_cross_entropy import SoftCrossEntropy
from mmssl.objectives.losses.utterance_info_nce import UtteranceInfoNCE, draw_negatives
from mmssl.objectives.losses.vicreg import VICReg

FRAME_LOSSES = [L1(), MSE(), SmoothL1(), Cosine(), FeaturePenalty(), InfoNCE(), NTXent(), BarlowTwins(), VICReg()]


@pytest.mark.parametrize("loss", [*FRAME_LOSSES, SoftCrossEntropy(4)], ids=lambda x: type(x).__name__)
def test_an_empty_mask_is_refused_and_rows_outside_do_not_count(loss: Loss) -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    with pytest.raises(InputError, match="mask"):
        loss(prediction, target, torch.zeros(2, 5, dtype=torch.bool))
    where = torch.rand(2, 5) > 0.4
    before = loss(prediction, target, where)
    prediction[~where], target[~where] = 99.0, -99.0
    after = loss(prediction, target, where)
    assert torch.equal(before.loss, after.loss)
    with pytest.raises(InputError):
        loss(prediction, target, where[:, :4])


@pytest.mark.parametrize("loss", FRAME_LOSSES, ids=lambda x: type(x).__name__)
def test_gradients_flow_and_are_right(loss: Loss) -> None:
    torch.manual_seed(1)
    prediction = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 3, dtype=torch.float64)
    loss(prediction, target).loss.backward()
    direction = torch.randn_like(target)
    step = 1e-2
    with torch.no_grad():
        up = loss(prediction + step * direction, target).loss
        down = loss(prediction - step * direction, target).loss
    slope = float((prediction.grad * direction).sum())
    assert float((up - down) / (2 * step)) == pytest.approx(slope, rel=0.05, abs=2e-3)


@pytest.mark.parametrize("loss", [InfoNCE(), NTXent(), BarlowTwins(), VICReg()], ids=lambda x: type(x).__name__)
def test_a_batch_of_one_is_refused(loss: Loss) -> None:
    with pytest.raises(InputError, match="at least 2"):
        loss(torch.randn(1, 4), torch.randn(1, 4))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one negative"):
        UtteranceInfoNCE(0)
    with pytest.raises(ConfigError, match="symmetric=False"):
        InfoNCE(queue_size=8)
    for build in (lambda: InfoNCE(0.0), lambda: NTXent(-1.0), lambda: SoftCrossEntropy(4, teacher_temperature=0.0)):
        with pytest.raises(ConfigError, match="greater than 0"):
            build()
    with pytest.raises(ConfigError):
        Cosine("other")
    with pytest.raises(ConfigError):
        SmoothL1(0.0)
    with pytest.raises(ConfigError):
        MaskedCrossEntropy(1.0)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        L1()(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(InputError, match="integers"):
        MaskedCrossEntropy()(torch.randn(2, 3, 5), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"0 \.\.\. 4"):
        MaskedCrossEntropy()(torch.randn(2, 3, 5), torch.full((2, 3), 5))
    with pytest.raises(InputError, match="must be 0 or 1"):
        MatchCrossEntropy()(torch.randn(3), torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="G, V"):
        Diversity()(torch.rand(4, 5))


def test_negatives_are_other_rows_of_the_clip_and_uniform() -> None:
    counts = torch.tensor([2, 0, 5])
    generator = torch.Generator().manual_seed(0)
    negatives = draw_negatives(counts, 4000, generator)
    assert negatives.shape == (3, 5, 4000)
    assert (negatives[0, 0] == 1).all()
    assert (negatives[0, 1] == 0).all()
    for row in range(5):
        histogram = torch.bincount(negatives[2, row], minlength=5).float() / 4000
        assert histogram[row] == 0
        others = torch.cat([histogram[:row], histogram[row + 1 :]])
        assert (others - 0.25).abs().max() < 0.03
    with pytest.raises(InputError, match=r"Clip 1 .* single hidden frame"):
        draw_negatives(torch.tensor([3, 1]), 5)


def test_drawing_leaves_the_global_generator_alone_and_follows_its_own() -> None:
    prediction, target = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    state = torch.get_rng_state()
    first = UtteranceInfoNCE(5)(prediction, target, generator=torch.Generator().manual_seed(1)).loss
    again = UtteranceInfoNCE(5)(prediction, target, generator=torch.Generator().manual_seed(1)).loss
    other = UtteranceInfoNCE(5)(prediction, target, generator=torch.Generator().manual_seed(2)).loss
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_contrastive_losses_are_ln_n_for_a_prediction_that_tells_nothing() -> None:
    same = torch.ones(2, 7, 4)
    varied = torch.randn(2, 7, 4)
    for loss, prediction, target in (
        (UtteranceInfoNCE(20, exclude_equal=False), same, varied * 0 + 1),
        (InfoNCE(), same[:, 0], same[:, 0]),
        (NTXent(), same[:, 0], same[:, 0]),
    ):
        out = loss(prediction, target)
        assert float(out.loss) == pytest.approx(float(out.logs["ln_n"]), abs=1e-5)
    # a constant prediction must not look like success
    assert float(UtteranceInfoNCE(20, exclude_equal=False)(same, same).logs["accuracy"]) == 0.0


def test_collapse_is_seen_in_the_logs() -> None:
    logs = L1()(torch.ones(8, 4), torch.ones(8, 4)).logs
    assert float(logs["baseline"]) == 0.0  # a constant target is predicted by a constant
    uniform = torch.full((6, 2, 8), 1 / 8)
    assert float(Diversity()(uniform).loss) == pytest.approx(0.0, abs=1e-6)
    single = torch.zeros(6, 2, 8)
    single[..., 3] = 1.0
    out = Diversity()(single)
    assert float(out.loss) == pytest.approx((16 - 2) / 16)
    assert float(out.logs["perplexity"]) == pytest.approx(2.0)
    # a code that is never chosen must not make the gradient infinite
    logits = torch.tensor([[[200.0, 0.0, 0.0]]] * 4, requires_grad=True)
    Diversity()(logits.softmax(-1)).loss.backward()
    assert logits.grad.isfinite().all()


def test_the_queue_holds_the_newest_targets_and_serves_as_negatives() -> None:
    loss = InfoNCE(temperature=0.2, symmetric=False, queue_size=5)
    batches = [torch.randn(3, 4) for _ in range(3)]
    for step, batch in enumerate(batches):
        out = loss(batch.requires_grad_(), batch.detach())
        assert float(out.logs["negatives"]) == 2 + min(3 * step, 5)
        loss.after_step()
    unit = [torch.nn.functional.normalize(b.detach(), dim=1) for b in batches]
    assert torch.equal(loss.queue, torch.cat([unit[2], unit[1]])[:5])
    other = InfoNCE(temperature=0.2, symmetric=False, queue_size=5)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.queue, loss.queue)
    assert loss(batches[0][:1], batches[0][:1]).count == 1  # one clip has negatives in the queue
    with pytest.raises(InputError, match="width 4"):
        loss(torch.randn(3, 6), torch.randn(3, 6))


def test_the_centre_moves_once_a_step_by_the_mean_over_all_views() -> None:
    loss = SoftCrossEntropy(3, center_momentum=0.9, warmup_temperature=0.02, teacher_temperature=0.06, warmup_steps=4)
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    assert loss.teacher_temperature == pytest.approx(0.02)
    for teacher in (a, b):
        loss(torch.randn(4, 3, requires_grad=True), teacher)
        assert torch.equal(loss.center, torch.zeros(3))
    loss.after_step()
    assert torch.allclose(loss.center, 0.1 * torch.cat([a, b]).mean(0), atol=1e-6)
    assert loss.teacher_temperature == pytest.approx(0.03)
    with torch.no_grad():
        loss(torch.randn(4, 3), a)  # validation does not move it
    before = loss.center.clone()
    loss.after_step()
    assert torch.equal(before, loss.center)


WORKER = """
import sys
import torch
from torch import distributed as dist
from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.losses.nt_xent import NTXent
from mmssl.objectives.losses.barlow_twins import BarlowTwins
from mmssl.objectives.losses.vicreg import VICReg
from mmssl.objectives.losses.soft_cross_entropy import SoftCrossEntropy
from mmssl.objectives.joint import joint_weight
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
x, y, weight = torch.randn(7, 5), torch.randn(7, 5), torch.randn(5, 4)

def one_way(gather=False):
    return InfoNCE(symmetric=False, gather=gather, queue_size=9)

for build in (InfoNCE, one_way, NTXent, BarlowTwins, VICReg):
    # equal shares of six rows, then unequal ones of seven: a single row has no negative in its own process
    for first, count in ((3, 6), (1, 7), (5, 7)):
        joint = weight.clone().requires_grad_()
        whole = build()
        expected = whole(x[:count] @ joint, y[:count] @ joint)
        expected.loss.backward()
        mine = weight.clone().requires_grad_()
        rows = slice(0, first) if rank == 0 else slice(first, count)
        loss = build(gather=True)
        out = loss(x[rows] @ mine, y[rows] @ mine)
        factor, finite = joint_weight(out.loss.detach(), out.count)
        (out.loss * factor).backward()
        total = out.loss.detach() * factor
        dist.all_reduce(total)
        dist.all_reduce(mine.grad)
        assert torch.allclose(total / 2, expected.loss, atol=1e-5), (build, first)
        assert torch.allclose(mine.grad / 2, joint.grad, atol=1e-5), (build, first)
        if "negatives" in out.logs:
            assert float(out.logs["negatives"]) == float(expected.logs["negatives"])
        if build is one_way:
            whole.after_step(), loss.after_step()
            assert torch.allclose(loss.queue, whole.queue, atol=1e-6)
rows = slice(0, 2) if rank == 0 else slice(2, 7)
dino = SoftCrossEntropy(5)
dino(x[rows].requires_grad_(), y[rows])
dino.after_step()
assert torch.allclose(dino.center, 0.1 * y.mean(0), atol=1e-6)
dist.destroy_process_group()
"""


def test_two_ranks_give_the_gradients_of_one_with_the_joint_batch(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "worker.py")]
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)


def test_match_reads_one_logit_and_two_alike() -> None:
    labels = torch.tensor([1, 0, 1])
    one = torch.tensor([2.0, -1.0, -0.5])
    two = torch.stack([torch.zeros(3), one], 1)
    a, b = MatchCrossEntropy()(one, labels), MatchCrossEntropy()(two, labels)
    assert torch.allclose(a.loss, b.loss)
    assert torch.allclose(b.loss, torch.nn.functional.cross_entropy(two, labels))
    assert float(a.logs["accuracy"]) == pytest.approx(2 / 3)
    assert float(a.logs["ln_n"]) == pytest.approx(math.log(2))
