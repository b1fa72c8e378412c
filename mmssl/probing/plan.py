"""What a task is made of, where its heads can be stacked and trained together.

On features of one frame per clip, the usual probes compute

    x = sum_l a_l (f_l - mean_l) * scale_l        a = softmax(w), or 1 for one layer (or for layers side by side)
    scores = act(x W1' + b1) W2' + b2             act is the identity (SUPERB's head) or ReLU (EmoBox's)

with a loss that is a mean over clips. `plan_of` recognises them by the exact classes of their parts: a subclass may
compute something else, so it is left to the ordinary trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.downstream.heads import MLP, Linear
from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression
from mmssl.interfaces.base import Interface
from mmssl.interfaces.concat import Concat
from mmssl.interfaces.selection import LastLayer, SingleLayer
from mmssl.interfaces.standardized import Standardized
from mmssl.interfaces.weighted_sum import WeightedSum

HEAD_PARAMETERS = ("head.projector.weight", "head.projector.bias", "head.classifier.weight", "head.classifier.bias")


@dataclass(frozen=True)
class Plan:
    """A task that can be stacked.

    Attributes:
        layers: numbers of the layers that the head reads.
        joined: the layers are put side by side; otherwise they are summed (or there is only one).
        learned: the sum has learned weights.
        weights_name: of the layer weights in the state dict.
        relu: the activation is a ReLU.
        loss: "cross_entropy", "mse" or "ccc".
        input_size: width D of x.
        hidden_size: rows K of W1.
        num_outputs: rows C of W2.
    """

    layers: tuple[int, ...]
    joined: bool
    learned: bool
    weights_name: str
    relu: bool
    loss: str
    input_size: int
    hidden_size: int
    num_outputs: int

    @property
    def shape(self) -> tuple[bool, bool, str, int, int, int]:
        """What heads of one stack have in common."""
        return (self.joined, self.relu, self.loss, self.input_size, self.hidden_size, self.num_outputs)


def plan_of(task: nn.Module) -> Plan | None:
    """The plan of a task, or None where its heads cannot be stacked."""
    loss = _loss(task)
    if loss is None:
        return None
    interface, head = task.interface, task.head
    assert isinstance(interface, Interface)  # what the two task classes hold
    if type(head) not in (Linear, MLP) or any(p.requires_grad is False for p in task.parameters()):
        return None
    mixing = _mixing(interface)
    if mixing is None:
        return None
    layers, joined, learned, weights_name = mixing
    assert isinstance(head, Linear | MLP)
    return Plan(
        layers=layers,
        joined=joined,
        learned=learned,
        weights_name=weights_name,
        relu=type(head) is MLP,
        loss=loss,
        input_size=head.input_size,
        hidden_size=head.projector.out_features,
        num_outputs=head.num_outputs,
    )


def _loss(task: nn.Module) -> str | None:
    if type(task) is UtteranceClassification:
        return "cross_entropy"
    return task.loss_name if type(task) is UtteranceRegression else None


def _mixing(interface: Interface, prefix: str = "interface.") -> tuple[tuple[int, ...], bool, bool, str] | None:
    """Layers, joined, learned and the name of the weights; None for an interface that is not known to be a sum."""
    if type(interface) is Standardized:
        return _mixing(interface.inner, f"{prefix}inner.")
    if type(interface) in (SingleLayer, LastLayer):
        assert isinstance(interface, SingleLayer)
        return (interface.layer,), False, False, ""
    if type(interface) is Concat:
        return interface.layers, True, False, ""
    if type(interface) is WeightedSum and not interface.normalize and not interface.width.projections:
        return tuple(range(len(interface.hidden_sizes))), False, True, f"{prefix}weights"
    return None


def statistics_of(task: nn.Module, layer: int) -> tuple[Tensor, Tensor] | None:
    """Mean and scale (W_k,) with which a task standardises a layer; None where it does not."""
    interface = task.interface
    if type(interface) is not Standardized:
        return None
    return getattr(interface, f"mean_{layer}"), getattr(interface, f"scale_{layer}")


def flat_weights(task: nn.Module, plan: Plan, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A head's trained values as one row, and the fixed part of its layer weights.

    Args:
        task: with initial weights.
        plan: of the task.
        layers: the layers that the stack holds, among them the plan's.

    Returns:
        (L + K D + K + C K + C,) values: layer logits (zero where they are not learned), W1, b1, W2, b2; and (L,) fixed
        weights, one where the head reads that layer alone (NaN where they are learned).
    """
    state = task.state_dict()
    head = [state[name].detach().flatten() for name in HEAD_PARAMETERS]
    count = 1 if plan.joined else len(layers)
    fixed = head[0].new_zeros(count)
    if plan.learned:
        logits = state[plan.weights_name].detach()
        fixed.fill_(torch.nan)
    else:
        logits = head[0].new_zeros(count)
        fixed[0 if plan.joined else layers.index(plan.layers[0])] = 1.0
    return torch.cat([logits, *head]), fixed


def state_from(row: Tensor, task: nn.Module, plan: Plan, count: int) -> dict[str, Tensor]:
    """The inverse of `flat_weights`: a whole state dict of the task, on the CPU, from a head's row.

    Args:
        row: of the stack.
        task: whose buffers complete the state.
        plan: of the task.
        count: L, layer logits at the row's start.
    """
    state = {name: value.detach().cpu().clone() for name, value in task.state_dict().items()}
    values = row.detach().cpu()
    if plan.learned:
        state[plan.weights_name] = values[:count].clone()
    start = count
    for name in HEAD_PARAMETERS:
        size = state[name].numel()
        state[name] = values[start : start + size].reshape(state[name].shape).clone()
        start += size
    return state
