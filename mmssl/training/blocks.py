"""The blocks of an encoder: which there are, how deep each stands, and drop path on them.

Fine-tuning treats blocks by their depth: lower ones learn more slowly, higher ones are dropped more often. Depth is
counted from the input; blocks in which streams are joined ("fusion", "shared") stand above those of the streams.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmssl.errors import ConfigError
from mmssl.nn.packed import Packed

_STACKS = (re.compile(r"(.*\.)?(blocks(_\w+)?|shared)"), re.compile(r"(.*\.)?layers?"))
_JOINT = re.compile(r"(.*\.)?shared|(.*\.)?fusion\..*")


def block_stacks(encoder: nn.Module) -> dict[str, list[nn.Module]]:
    """Name -> blocks, of the lists of modules called "blocks", "blocks_..." or "shared" (else "layer" or "layers").

    Raises:
        ConfigError: there is no such list.
    """
    for pattern in _STACKS:
        found: dict[str, list[nn.Module]] = {}
        for name, module in encoder.named_modules():
            inside = any(name.startswith(stack + ".") for stack in found)
            if isinstance(module, nn.ModuleList) and len(module) and pattern.fullmatch(name) and not inside:
                found[name] = list(module)
        if found:
            return found
    raise ConfigError(
        f"layer_decay and drop_path need an encoder that is a stack of blocks; {type(encoder).__name__} has no list of "
        'modules called "blocks" or "layers". Set layer_decay=1 and drop_path=0.'
    )


def block_depths(encoder: nn.Module) -> dict[str, int]:
    """Name of each block -> its depth, from 1 on. The last blocks of unequal stacks stand at the same depth.

    Raises:
        ConfigError: there is no stack of blocks.
    """
    stacks = {name: len(blocks) for name, blocks in block_stacks(encoder).items()}
    lower = max((size for name, size in stacks.items() if not _JOINT.fullmatch(name)), default=0)
    upper = max((size for name, size in stacks.items() if _JOINT.fullmatch(name)), default=0)
    depths: dict[str, int] = {}
    for name, size in stacks.items():
        top = lower + upper if _JOINT.fullmatch(name) else lower
        depths |= {f"{name}.{k}": top - size + k + 1 for k in range(size)}
    return depths


def layer_factors(encoder: nn.Module, layer_decay: float) -> dict[str, float]:
    """Parameter name -> factor of its learning rate.

    Clark et al. 2020 (ELECTRA), Bao et al. 2022 (BEiT): with blocks of depths 1 to L, layer_decay ** (L + 1 - depth);
    what comes before the blocks has depth 0. What follows a stack in the same module, such as its last norm, has the
    depth of the stack's last block, or L + 1 where nothing stands above.

    Args:
        encoder: with a stack of blocks.
        layer_decay: in (0, 1].

    Raises:
        ConfigError: no stack of blocks.
    """
    depths = block_depths(encoder)
    top = max(depths.values()) + 1
    stacks = {name.rpartition(".")[0]: 0 for name in depths}
    for name, depth in depths.items():
        stacks[name.rpartition(".")[0]] = max(depth, stacks[name.rpartition(".")[0]])
    names = [name for name, _ in encoder.named_parameters()]
    found = {}
    for place, name in enumerate(names):
        block = next((b for b in depths if name.startswith(b + ".")), None)
        depth = depths[block] if block else _depth_beside(names, place, stacks, top)
        found[name] = layer_decay ** (top - depth)
    return found


def _depth_beside(names: list[str], place: int, stacks: dict[str, int], top: int) -> int:
    """Depth of a parameter that is in no block."""
    beside = 0
    for stack, depth in stacks.items():
        parent = stack.rpartition(".")[0]
        same = names[place].startswith(parent + "." if parent else "")
        if same and place > max(k for k, name in enumerate(names) if name.startswith(stack + ".")):
            beside = max(beside, top if depth == top - 1 else depth)
    return beside


def attach_drop_path(encoder: nn.Module, rate: float) -> list[RemovableHandle]:
    """In training, let blocks pass clips on unchanged: stochastic depth (Huang et al. 2016) per clip.

    The probability rises linearly from 0 at the lowest depth to `rate` at the highest. Of a pre-norm block, what it
    adds to a clip that it does change is divided by the probability of that, so that its expectation stays; a
    post-norm block, whose output is normed, is passed over whole without that. Draws come from the global generator.

    Args:
        encoder: with a stack of blocks.
        rate: in [0, 1).

    Returns:
        Handles, whose `remove()` takes it off again.

    Raises:
        ConfigError: a rate outside [0, 1), or no stack of blocks.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"drop_path must be in [0, 1), got {rate}.")
    if rate == 0:
        return []
    depths = block_depths(encoder)
    top = max(depths.values())
    handles = []
    for name, depth in depths.items():
        probability = rate * (depth - 1) / max(top - 1, 1)
        if probability:
            block = encoder.get_submodule(name)
            handles.append(block.register_forward_hook(_drop(probability, getattr(block, "layer_norm_first", True))))
    return handles


def _drop(probability: float, rescale: bool) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not block.training:
            return None
        if isinstance(output, tuple):
            return (_mixed(inputs[0], output[0], probability, rescale), *output[1:])
        return _mixed(inputs[0], output, probability, rescale)

    return hook


def _mixed(before: Any, after: Any, probability: float, rescale: bool) -> Any:
    """Each clip's output (B, ...) or packed, or its input."""
    if isinstance(after, Packed):
        kept = torch.rand(len(after.lengths)) >= probability
        rows = torch.repeat_interleave(kept, torch.tensor(after.lengths)).to(after.data.device)
        return after.replace(_chosen(before.data, after.data, rows, probability, rescale))
    kept = (torch.rand(len(after)) >= probability).to(after.device)
    return _chosen(before, after, kept, probability, rescale)


def _chosen(before: Tensor, after: Tensor, kept: Tensor, probability: float, rescale: bool) -> Tensor:
    mask = kept.reshape(-1, *(1,) * (after.dim() - 1))
    changed = before + (after - before) / (1 - probability) if rescale else after
    return torch.where(mask, changed, before)
