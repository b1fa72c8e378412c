"""The blocks of an encoder: which there are, how deep each stands, and drop path on them.

Pretraining and fine-tuning treat blocks by their depth: lower ones learn more slowly, higher ones are dropped more
often. Depth is counted from the input; blocks in which streams are joined ("fusion", "shared") stand above those of the
streams.
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


def block_stacks(encoder: nn.Module) -> dict[str, int]:
    """Name -> size of the lists of modules called "blocks", "blocks_..." or "shared" (else "layer" or "layers")."""
    for pattern in _STACKS:
        found: dict[str, int] = {}
        for name, module in encoder.named_modules():
            inside = any(name.startswith(stack + ".") for stack in found)
            if isinstance(module, nn.ModuleList) and len(module) and pattern.fullmatch(name) and not inside:
                found[name] = len(module)
        if found:
            return found
    return {}


def block_depths(encoder: nn.Module) -> dict[str, int]:
    """Name of each block -> its depth, from 1 on; empty where there is no stack of blocks.

    Stacks of streams stand side by side, joint ones above them. The last blocks of unequal stacks stand at the same
    depth.
    """
    stacks = block_stacks(encoder)
    lower = max((size for name, size in stacks.items() if not _JOINT.fullmatch(name)), default=0)
    upper = max((size for name, size in stacks.items() if _JOINT.fullmatch(name)), default=0)
    depths: dict[str, int] = {}
    for name, size in stacks.items():
        top = lower + upper if _JOINT.fullmatch(name) else lower
        depths |= {f"{name}.{k}": top - size + k + 1 for k in range(size)}
    return depths


def parameter_depths(encoder: nn.Module) -> tuple[dict[str, int], int]:
    """How deep each parameter of an encoder lies.

    Returns:
        Name of each parameter -> its depth l, and the depth L of the last block; 0 where there is no stack of blocks.
        The parameters of a block have its depth. What follows a stack in the same module, such as its last norm, has
        the depth of the stack's last block, or L + 1 where nothing stands above; all else lies before the blocks:
        l = 0.
    """
    blocks = block_depths(encoder)
    last = max(blocks.values(), default=0)
    names = [name for name, _ in encoder.named_parameters()]
    depths = dict.fromkeys(names, 0)
    for stack, size in block_stacks(encoder).items():
        parent, top = stack.rpartition(".")[0], blocks[f"{stack}.{size - 1}"]
        beside = last + 1 if top == last else top
        for name in _after(encoder, names, stack, f"{parent}." if parent else ""):
            depths[name] = max(depths[name], beside)
    for name in names:
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        depths[name] = depths[name] if block is None else blocks[block]
    return depths, last


def _after(encoder: nn.Module, names: list[str], stack: str, parent: str) -> list[str]:
    """Parameters of the module that owns a stack which are used after it."""
    end = max((place for place, name in enumerate(names) if name.startswith(f"{stack}.")), default=len(names))
    found = [name for name in names[end + 1 :] if name.startswith(parent)]
    if getattr(encoder.get_submodule(parent.rstrip(".")), "layer_norm_first", False):
        # the speech transformers have one norm for either place: before the blocks, or after them in pre-norm models
        found += [name for name in names[:end] if name.startswith(f"{parent}layer_norm.")]
    return found


def layer_factors(encoder: nn.Module, layer_decay: float) -> dict[str, float]:
    """Parameter name -> factor of its learning rate: layer_decay ** (L + 1 - l), see `parameter_depths`.

    Source: Clark et al. 2020 (ELECTRA), Bao et al. 2022 (BEiT).

    Args:
        encoder: with a stack of blocks.
        layer_decay: in (0, 1].

    Raises:
        ConfigError: no stack of blocks.
    """
    depths, last = parameter_depths(encoder)
    _require_blocks(encoder, last)
    return {name: layer_decay ** (last + 1 - depth) for name, depth in depths.items()}


def _require_blocks(encoder: nn.Module, last: int) -> None:
    if not last:
        raise ConfigError(
            f"layer_decay and drop_path need an encoder that is a stack of blocks; {type(encoder).__name__} has no "
            'list of modules called "blocks" or "layers". Set layer_decay=1 and drop_path=0.'
        )


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
    top = max(depths.values(), default=0)
    _require_blocks(encoder, top)
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
