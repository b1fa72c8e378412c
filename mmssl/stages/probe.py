"""What a probe of this experiment is made of: what it sees of a clip, its interface, its head, its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmssl.errors import ConfigError
from mmssl.types import StreamSpec

ENCODERS = ("xvector", "ecapa_tdnn")
"""Methods of speaker verification that are trained on frames."""
STANDARDIZED = "mmssl.interfaces.standardized.Standardized"


def part(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config node as model.yaml writes a part: name (or dotted path) and kwargs."""
    return {"name": node["_target_"], "kwargs": {k: v for k, v in node.items() if not k.startswith("_")}}


def view(config: Mapping[str, Any], hidden_sizes: Sequence[int], hop_lengths: Sequence[int]) -> tuple[str, bool]:
    """What the probe is computed on.

    Args:
        config: the experiment's configuration.
        hidden_sizes: of the upstream's layers.
        hop_lengths: of the upstream's layers.

    Returns:
        The statistics ("frames", "mean" or "mean_std"), and whether stored statistics of clips are enough for an exact
        result, so that no frames need to be kept.
    """
    from mmssl.downstream.heads import build_head
    from mmssl.interfaces.base import build_interface
    from mmssl.stages.bench_suite import keeps_frames, read_heads

    kind = config["task"]["kind"]
    if kind == "sequence":
        return "frames", False
    if kind == "verification":
        return "frames", not {*ENCODERS} & {*config["verification"]["methods"]}
    interface, head = part(config["interface"]), part(config["head"])
    built = build_interface(
        interface["name"], StreamSpec(tuple(hidden_sizes), tuple(hop_lengths)), **interface["kwargs"]
    )
    affine = built.affine and build_head(head["name"], built.output_size, 2, **head["kwargs"]).affine_before_pooling
    statistics = config["features"]["statistics"]
    if statistics == "auto":
        statistics = "mean_std" if affine else "frames"
    # a benchmark may have heads that need frames beside the protocols on statistics
    if keeps_frames(read_heads((config.get("bench") or {}).get("heads"), "bench")):
        return statistics, False
    return statistics, statistics != "frames" or affine


def describe(
    config: Mapping[str, Any],
    target: str,
    kwargs: Mapping[str, Any],
    features: Mapping[str, Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """The fields of model.yaml for one system.

    Args:
        config: the experiment's configuration.
        target: of the upstream.
        kwargs: of the upstream.
        features: what the extract stage recorded of the system.
        classes: class names in the order of the outputs; empty for regression.
    """
    interface = part(config["interface"])
    if features["statistics"] != "frames" or config["features"]["standardize"]:
        arguments = {
            "interface": interface["name"],
            "statistics": features["statistics"],
            "arguments": interface["kwargs"],
        }
        interface = {"name": STANDARDIZED, "kwargs": arguments}
    return {
        "upstream": {"_target_": target, **kwargs},
        "upstream_seed": config["features"]["seed"],
        "stream": config["features"]["stream"],
        "sample_rate": features["sample_rate"],
        "interface": interface,
        "hidden_sizes": list(features["hidden_sizes"]),
        "hop_lengths": list(features["hop_lengths"]),
        "head": part(config["head"]),
        "task": config["task"]["kind"],
        "classes": list(classes),
        "label": config["label"],
    }


def stream_of(streams: Mapping[str, Any], wanted: str, system: str) -> Any:
    """A stream of an upstream.

    Raises:
        ConfigError: the upstream has no such stream.
    """
    if wanted not in streams:
        raise ConfigError(f"features.stream={wanted}: {system} has {', '.join(streams)} only.")
    return streams[wanted]
