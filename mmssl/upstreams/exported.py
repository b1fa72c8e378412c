"""Folders of encoders that were pretrained here: written after training, read wherever an upstream is asked for.

A folder holds `upstream.json`, which names the upstream and its arguments, and the weights. Where transformers has the
model, they are in its layout and `transformers.AutoModel.from_pretrained(folder)` reads them too; otherwise
`model.safetensors` holds the upstream's own state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from mmssl.errors import CheckpointError
from mmssl.random import isolated_rng
from mmssl.registry import UPSTREAMS
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.checkpoints import read_checkpoint, read_json, write_file
from mmssl.upstreams.renaming import load_renamed
from mmssl.upstreams.speech_transformer import SpeechTransformer

DESCRIPTION, WEIGHTS = "upstream.json", "model.safetensors"
LAYOUTS = ("transformers", "native")


def is_exported(path: str | Path) -> bool:
    """Whether a folder was written by `export_upstream`."""
    return (Path(path) / DESCRIPTION).is_file()


def export_upstream(upstream: Upstream, folder: str | Path, target: str, arguments: Mapping[str, Any]) -> str:
    """Write an upstream so that `load_exported` builds it again with equal weights.

    Args:
        upstream: what is written.
        folder: made where it does not exist; each file is written whole or not at all, the description last.
        target: registry name or dotted path that builds the upstream.
        arguments: of that.

    Returns:
        The layout: "transformers" where transformers reads the folder too, else "native".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    layout = "native"
    if isinstance(upstream, SpeechTransformer) and upstream.heads is None and not upstream.config.mel_bins:
        layout = "transformers"
        upstream.save_transformers(folder)
        # sizes are in config.json; what the checkpoint cannot state is kept
        arguments = {}
    else:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in upstream.state_dict().items()}
        write_file(folder / WEIGHTS, save(state, {"format": "pt"}))
    described = {"schema": 1, "upstream": target, "arguments": dict(arguments), "layout": layout}
    write_file(folder / DESCRIPTION, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
    return layout


def load_exported(path: str) -> Upstream:
    """Build the upstream of a folder that `export_upstream` wrote.

    Args:
        path: the folder.

    Raises:
        CheckpointError: the folder is incomplete, or the weights are not those of the upstream it names.
    """
    folder = Path(path)
    described = read_json(folder / DESCRIPTION)
    try:
        target, arguments, layout = described["upstream"], dict(described["arguments"]), described["layout"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION} lacks {error}: export the encoder again.") from error
    if layout == "transformers":
        return UPSTREAMS.build(target, checkpoint=str(folder), **arguments)
    # weights that are drawn and replaced at once must not move the caller's generator
    with isolated_rng(0):
        upstream = UPSTREAMS.build(target, **arguments)
    state = read_checkpoint(folder / WEIGHTS)
    try:
        load_renamed(upstream, state, source=str(folder / WEIGHTS))
    except CheckpointError as error:
        raise CheckpointError(f"{error} Export the encoder again, with the version of mmssl that loads it.") from error
    return upstream
