"""Sizes and weights of masked autoencoders: presets, the layouts of the authors' files, and their licences.

The encoders here name their parts as the authors do, so that most of a layout is read as it is. What differs: wrappers
and prefixes, biases of query and value that stand apart, query, key and value as three matrices, stored positions, and
what belongs to pretraining or to a task (decoders, mask tokens, heads), which is left out.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.errors import CheckpointError, ConfigError, did_you_mean
from mmssl.nn.patch import Positions
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.renaming import count, load_renamed, settled, weights

_LOG = logging.getLogger(__name__)

_NON_COMMERCIAL = "The weights that the authors of {} released are licensed CC BY-NC 4.0: no commercial use."
LICENCES = {name: _NON_COMMERCIAL.format(name) for name in ("MAE", "AudioMAE", "VideoMAE")}
LICENCES["AudioMAE"] += " Its README says CC BY 4.0, its LICENSE file BY-NC."

# decoders, mask tokens, and heads of fine-tuned models
_NO_ENCODER = re.compile(
    r"(mask_token\w*|decoder\w*|encoder_to_decoder\w*|head\w*|fc_norm|fc_dropout|mlp_head|\w+_layer_weights)(\..*)?"
)


@dataclass(frozen=True)
class VitSizes:
    """Sizes of a vision transformer.

    Attributes:
        hidden_size: width of the tokens.
        num_layers: blocks.
        num_heads: attention heads.
        feed_forward_size: width inside the MLP.
        patch_size: height and width of a patch.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    feed_forward_size: int
    patch_size: int

    @property
    def of_blocks(self) -> tuple[int, int, int]:
        """Layers, heads and feed-forward width, as `PatchEncoder` takes them."""
        return self.num_layers, self.num_heads, self.feed_forward_size

    def columns(self, image_size: int) -> int:
        """Patches beside each other on a square picture.

        Raises:
            ConfigError: the patches do not fill it.
        """
        if image_size < self.patch_size or image_size % self.patch_size:
            raise ConfigError(f"image_size must be a multiple of the patch size {self.patch_size}, got {image_size}.")
        return image_size // self.patch_size


PRESETS = {
    "tiny": VitSizes(192, 12, 3, 768, 16),
    "small": VitSizes(384, 12, 6, 1536, 16),
    "base": VitSizes(768, 12, 12, 3072, 16),
    "large": VitSizes(1024, 24, 16, 4096, 16),
    "huge": VitSizes(1280, 32, 16, 5120, 14),
}


def read_mae(path: str, method: str) -> dict[str, Tensor]:
    """Read a file of one of the masked autoencoders and log its licence where the authors' excludes some use.

    Args:
        path: a state dict, bare or below "model", "module" or "state_dict"; names may begin with "module.".
        method: "MAE", "AudioMAE", "VideoMAE", "CAV-MAE" or "HiCMAE".

    Returns:
        The weights of encoders alone, with attention biases and projections joined.

    Raises:
        CheckpointError: the file cannot be read or holds no weights.
    """
    state = weights(read_checkpoint(path), path, "model", "module", "state_dict")
    named = {name.removeprefix("module."): v for name, v in state.items() if isinstance(v, Tensor)}
    if method in LICENCES:
        _LOG.warning("%s: %s", path, LICENCES[method])
    if "norm.weight" not in named:
        # fine-tuned on the mean of the tokens: the last norm stands after the mean
        named |= {f"norm.{part}": named[f"fc_norm.{part}"] for part in ("weight", "bias") if f"fc_norm.{part}" in named}
    return joined({name: v for name, v in named.items() if not _NO_ENCODER.fullmatch(name)})


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join what belongs to one matrix: q_bias and v_bias around a zero bias of the keys, and separate q, k and v."""
    found = dict(state)
    for name in state:
        if name.endswith("attn.q_bias"):
            stem = name.removesuffix("q_bias")
            query, value = found.pop(name), found.pop(f"{stem}v_bias", None)
            if value is None:
                raise CheckpointError(f"The checkpoint has {name!r} but no v_bias beside it.")
            if f"{stem}q.weight" in state:
                found[f"{stem}q.bias"], found[f"{stem}kv.bias"] = query, torch.cat([torch.zeros_like(value), value])
            else:
                found[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        elif match := re.fullmatch(r"(.*attn\.)q(_proj)?\.(weight|bias)", name):
            parts = [f"{match[1]}{part}{match[2] or ''}.{match[3]}" for part in "qkv"]
            if all(part in found for part in parts):
                found[f"{match[1]}qkv.{match[3]}"] = torch.cat([found.pop(part) for part in parts])
    return found


def vit_sizes(
    preset: str | VitSizes,
    state: Mapping[str, Tensor],
    source: str | None,
    *,
    prefix: str | None = None,
    blocks: str = "blocks",
    patch_embed: str = "patch_embed",
    **given: int | None,
) -> VitSizes:
    """Settle sizes: those that the weights show, else those given, else the preset's.

    Args:
        preset: its name, or the sizes themselves.
        state: weights of a checkpoint; empty without one.
        source: where they come from, for messages.
        prefix, blocks, patch_embed: names of the encoder's parts among the weights; prefix None for "encoder." where
            they have it, which those of the authors have not.
        **given: any fields of `VitSizes`; None for what is not asked for.

    Raises:
        ConfigError: there is no such preset.
        CheckpointError: a size was given and the weights have another, or the weights are not of this kind.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ConfigError(
            f"There is no preset {preset!r}.{did_you_mean(preset, PRESETS)} Presets: {', '.join(PRESETS)}."
        )
    default = PRESETS[preset] if isinstance(preset, str) else preset
    stated: dict[str, int | None] = {}
    if prefix is None:
        prefix = "encoder." if f"encoder.{patch_embed}.proj.weight" in state else ""
    if state:
        try:
            projection = state[f"{prefix}{patch_embed}.proj.weight"]
            inner = state[f"{prefix}{blocks}.0.mlp.fc1.weight"].shape[0]
        except KeyError as missing:
            raise CheckpointError(
                f"{source} is not a checkpoint of this model: it lacks {missing}; "
                f"it has {', '.join(list(state)[:5]) or 'nothing'}."
            ) from None
        size = projection.shape[0]
        layers = count(state, rf"{re.escape(prefix)}{blocks}\.(\d+)\..*")
        stated = {"hidden_size": size, "num_layers": layers, "feed_forward_size": inner}
        stated["patch_size"] = projection.shape[-1]
        # no weight shows it: all published models have heads of 64 features, and the huge ones 16 heads
        if given.get("num_heads") is None:
            given["num_heads"] = 16 if size == 1280 else max(1, size // 64)
    found = {}
    for name, value in vars(default).items():
        scaled = _inner_default(name, value, default, given)
        found[name] = settled(name, given.get(name), stated.get(name), scaled, source)
    return VitSizes(**found)


def _inner_default(name: str, value: int, default: VitSizes, given: Mapping[str, int | None]) -> int:
    """A width that was given brings an MLP of the same ratio, where none was given."""
    size = given.get("hidden_size")
    return value * size // default.hidden_size if name == "feed_forward_size" and size else value


def take_positions(
    state: dict[str, Tensor], name: str, positions: Positions, source: str, *, class_token: bool = False
) -> Tensor | None:
    """Move stored positions out of a state dict into a module.

    Args:
        state: weights; the entry `name`, (1, N, D), is removed.
        name: of the positions.
        positions: takes them.
        source: for messages.
        class_token: the first position is that of a class token.

    Returns:
        The position (D,) of the class token; None where nothing is stored.

    Raises:
        CheckpointError: the positions do not fit the tokens.
    """
    table = state.pop(name, None)
    if table is None:
        return None
    table = table.reshape(-1, table.shape[-1]).float()
    first, table = (table[0], table[1:]) if class_token else (None, table)
    if len(table) == 0 or len(table) % positions.columns or table.shape[1] != positions.hidden_size:
        raise CheckpointError(
            f"{source}: {name} has {len(table)} positions of {table.shape[1]} features; expected a multiple of "
            f"{positions.columns} (tokens of a row) of {positions.hidden_size}."
        )
    positions.set_table(table)
    return first


def square_side(state: Mapping[str, Tensor], name: str, patch_size: int) -> int | None:
    """Height and width of the pictures whose positions (1, N, D), a class token's or not among them, are stored."""
    return math.isqrt(state[name].shape[-2]) * patch_size if name in state else None


def load_encoder(
    module: nn.Module, state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]], source: str, ignore: str = ""
) -> None:
    """Load weights strictly: see `load_renamed`; float32 whatever the file has.

    Raises:
        CheckpointError: weights are missing, left over or of another shape.
    """
    floats = {name: v.float() if v.is_floating_point() else v for name, v in state.items()}
    load_renamed(module, floats, rules, source=source, ignore=ignore or None)
