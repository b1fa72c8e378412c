"""Heads of one shape as stacked tensors: scores, gradients and Adam for all of them in one go.

Heads stand on a grid of G groups by R heads. The heads of a group see the same clips in the same order, so that
gathering and standardising a batch is done once per group, and the layer-weighted sums are one product per group.
A head's values are one row of a matrix (G R, P), its gradient a row of another: norms, clipping, the optimizer and the
copy of the best weights then are row operations.

The head without activation is computed through M = W2 W1, since (x W1' + b1) W2' + b2 = x M' + (b1 W2' + b2): with C
outputs, C instead of B rows meet the large matrix, in the forward and in the backward pass (chain rule: dW1 = W2' dM,
dW2 = dM W1' + (sum ds) b1'). The function and its gradients are those of the two maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.downstream.tasks import CCC_EPS

ROW_MULTIPLE = 16


@dataclass(frozen=True)
class Shape:
    """Sizes of the heads of a stack.

    Attributes:
        layers: L, layers that are mixed.
        input_size: D.
        hidden_size: K.
        num_outputs: C.
        relu: whether a ReLU stands between the two maps.
        loss: "cross_entropy", "mse" or "ccc".
    """

    layers: int
    input_size: int
    hidden_size: int
    num_outputs: int
    relu: bool
    loss: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of values of: layer logits, W1, b1, W2, b2."""
        d, k, c = self.input_size, self.hidden_size, self.num_outputs
        return self.layers, k * d, k, c * k, c

    @property
    def row(self) -> int:
        """Values of a head's row, rounded up so that rows start at aligned addresses."""
        return -(-sum(self.sizes) // ROW_MULTIPLE) * ROW_MULTIPLE


class Stack:
    """G x R heads.

    Args:
        shape: of every head.
        values: (G R, P) initial rows, group by group.
        fixed: (G R, L) layer weights of heads whose weights are not learned, NaN for those that learn them.
        class_weights: (G, C) weights of the classes; None for a regression.
    """

    def __init__(self, shape: Shape, values: Tensor, fixed: Tensor, class_weights: Tensor | None) -> None:
        self.shape = shape
        self.values = values
        self.grad = torch.zeros_like(values)
        self.learned = fixed.isnan().any(1)
        # asked once, since asking makes an accelerator wait
        self._any_learned = bool(self.learned.any())
        self.fixed = fixed
        self.class_weights = class_weights

    def __len__(self) -> int:
        return len(self.values)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Views of rows (H, P): logits (H, L), W1 (H, K, D), b1 (H, 1, K), W2 (H, C, K), b2 (H, 1, C)."""
        shape = self.shape
        parts = rows[:, : sum(shape.sizes)].split(shape.sizes, dim=1)
        logits, w1, b1, w2, b2 = parts
        heads = len(rows)
        return (
            logits,
            w1.view(heads, shape.hidden_size, shape.input_size),
            b1.view(heads, 1, shape.hidden_size),
            w2.view(heads, shape.num_outputs, shape.hidden_size),
            b2.view(heads, 1, shape.num_outputs),
        )

    def layer_weights(self) -> Tensor:
        """(H, L) weights of the layers."""
        logits = self.values[:, : self.shape.layers]
        return torch.where(self.learned[:, None], logits.softmax(1), self.fixed)

    def mix(self, clips: Tensor) -> Tensor:
        """Weighted sums of layers: clips (G, L, B, D) -> (H, B, D)."""
        groups, layers, batch, width = clips.shape
        weights = self.layer_weights().view(groups, -1, layers)
        mixed = torch.bmm(weights, clips.reshape(groups, layers, batch * width))
        return mixed.view(len(self), batch, width)

    def scores(self, clips: Tensor) -> Tensor:
        """Scores (H, B, C) of clips (G, L, B, D), without gradients."""
        _, w1, b1, w2, b2 = self.split(self.values)
        mixed = self.mix(clips)
        if self._collapses(clips.shape[2]):
            return torch.baddbmm(torch.baddbmm(b2, b1, w2.mT), mixed, torch.bmm(w2, w1).mT)
        hidden = torch.baddbmm(b1, mixed, w1.mT)
        return torch.baddbmm(b2, hidden.relu_() if self.shape.relu else hidden, w2.mT)

    def step(self, clips: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Losses of a batch, with the gradients left in `grad`.

        Args:
            clips: (G, L, B, D).
            targets: (G, B) class indices, or (G, B, C) values.
            present: (G, B) 1 for a clip, 0 for filling.

        Returns:
            (H,) losses, each the mean over its group's clips.
        """
        mixed = self.mix(clips)
        _, w1, b1, w2, b2 = self.split(self.values)
        d_logits, d_w1, d_b1, d_w2, d_b2 = self.split(self.grad)
        if self._collapses(clips.shape[2]):
            whole = torch.bmm(w2, w1)
            scores = torch.baddbmm(torch.baddbmm(b2, b1, w2.mT), mixed, whole.mT)
            losses, d_scores = self._loss_and_grad(scores, targets, present)
            d_whole = torch.bmm(d_scores.mT, mixed)
            d_sum = d_scores.sum(1, keepdim=True)
            # in place: a product of its own would be written and read once more
            d_w1.baddbmm_(w2.mT, d_whole, beta=0)
            d_b1.copy_(torch.bmm(d_sum, w2))
            d_w2.copy_(torch.baddbmm(torch.bmm(d_sum.mT, b1), d_whole, w1.mT))
            back, through = d_scores, whole
        else:
            before = torch.baddbmm(b1, mixed, w1.mT)
            hidden = before.relu() if self.shape.relu else before
            losses, d_scores = self._loss_and_grad(torch.baddbmm(b2, hidden, w2.mT), targets, present)
            back, through = torch.bmm(d_scores, w2), w1
            if self.shape.relu:
                back = back * (before > 0)
            d_w1.baddbmm_(back.mT, mixed, beta=0)
            d_b1.copy_(back.sum(1, keepdim=True))
            d_w2.copy_(torch.bmm(d_scores.mT, hidden))
        d_b2.copy_(d_scores.sum(1, keepdim=True))
        if self._any_learned:
            d_logits.copy_(self._layer_gradient(clips, torch.bmm(back, through)))
        return losses

    def clip_gradients(self, largest: float) -> None:
        """Scale every head's gradient down to a norm of at most `largest`, as torch's clip_grad_norm_ does."""
        norms = torch.linalg.vector_norm(self.grad, dim=1, keepdim=True)
        self.grad.mul_((largest / (norms + 1e-6)).clamp(max=1.0))

    def _collapses(self, batch: int) -> bool:
        return not self.shape.relu and self.shape.num_outputs < batch

    def _layer_gradient(self, clips: Tensor, d_mixed: Tensor) -> Tensor:
        """Gradient (H, L) of the layer logits, through the softmax; zero for heads that do not learn them."""
        groups, layers, batch, width = clips.shape
        flat = clips.reshape(groups, layers, batch * width)
        d_weights = torch.bmm(d_mixed.view(groups, -1, batch * width), flat.mT).view(len(self), layers)
        weights = self.layer_weights()
        gradient = weights * (d_weights - (weights * d_weights).sum(1, keepdim=True))
        return gradient.masked_fill(~self.learned[:, None], 0.0)

    def _loss_and_grad(self, scores: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        leaf = scores.requires_grad_()
        with torch.enable_grad():
            losses = self.losses(leaf, targets, present)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient

    def losses(self, scores: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """(H,) losses of scores (H, B, C), as `mmssl.downstream.tasks` defines them. Arguments as `step`."""
        per_group = len(self) // len(present)
        there = present.repeat_interleave(per_group, 0)
        count = there.sum(1)
        wanted = targets.repeat_interleave(per_group, 0)
        if self.shape.loss == "cross_entropy":
            each = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
            if self.class_weights is not None:
                each = each * self.class_weights.repeat_interleave(per_group, 0).gather(1, wanted)
            return (each * there).sum(1) / count
        weight, count = there[..., None], count[:, None]
        if self.shape.loss == "mse":
            return ((scores - wanted).square() * weight).sum(1).div(count).mean(1)
        return _ccc_losses(scores, wanted, weight, count)


def _ccc_losses(scores: Tensor, targets: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """1 - CCC of each head: mean over the columns of (H, B, C), over the clips whose weight (H, B, 1) is 1."""
    mean_s, mean_t = (scores * weight).sum(1) / count, (targets * weight).sum(1) / count
    centred_s, centred_t = (scores - mean_s[:, None]) * weight, (targets - mean_t[:, None]) * weight
    covariance = (centred_s * centred_t).sum(1) / count
    spread = (centred_s.square().sum(1) + centred_t.square().sum(1)) / count + (mean_s - mean_t).square()
    return (1 - 2 * covariance / (spread + CCC_EPS)).mean(1)


class RowOptimizer:
    """torch's Adam or AdamW on the rows of a stack, each row with its own learning rate and weight decay.

    Every row is a tensor of its own to the optimizer, so that the numbers are exactly torch's; rows of one learning
    rate and weight decay form a parameter group.

    Args:
        stack: whose values and gradients are used.
        learning_rates: one per row.
        weight_decays: one per row.
        kind: "adam" or "adamw".
    """

    def __init__(
        self, stack: Stack, learning_rates: Sequence[float], weight_decays: Sequence[float], kind: str
    ) -> None:
        self._kind = kind
        self._rates = list(zip(learning_rates, weight_decays, strict=True))
        self._build(stack)

    def step(self) -> None:
        """Update all rows."""
        self._optimizer.step()

    def keep(self, stack: Stack, rows: Sequence[int]) -> None:
        """Go on with `stack`, whose rows were these rows before; every row keeps its moments."""
        states = [self._optimizer.state[self._leaves[row]] for row in rows]
        self._rates = [self._rates[row] for row in rows]
        self._build(stack)
        for leaf, state in zip(self._leaves, states, strict=True):
            # a row that fills the grid twice must not share its moments
            self._optimizer.state[leaf] = {name: value.clone() for name, value in state.items()}

    def _build(self, stack: Stack) -> None:
        self._leaves = [row.detach().requires_grad_() for row in stack.values]
        for leaf, gradient in zip(self._leaves, stack.grad, strict=True):
            leaf.grad = gradient
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for leaf, rates in zip(self._leaves, self._rates, strict=True):
            groups.setdefault(rates, []).append(leaf)
        listed = [{"params": leaves, "lr": rate, "weight_decay": decay} for (rate, decay), leaves in groups.items()]
        build = torch.optim.Adam if self._kind == "adam" else torch.optim.AdamW
        # torch's own fused kernel: the one that the ordinary trainer runs
        self._optimizer: torch.optim.Optimizer = build(listed, fused=True)
