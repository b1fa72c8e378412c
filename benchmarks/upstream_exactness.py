"""How far a clip's features move when it is padded: plain transformers with and without a mask, and mmssl.

    python benchmarks/upstream_exactness.py            # every wrapped speech model type, tiny random models
    python benchmarks/upstream_exactness.py --base     # the same with transformers' default sizes (minutes, 6 GB)
    python benchmarks/upstream_exactness.py hubert     # some model types only
    python benchmarks/upstream_exactness.py --markdown

One batch of clips of unequal length goes through the same weights three ways, and so does each clip alone. Printed is
the largest difference, in parts of the layer's scale (root mean square of the clip's features alone), for the last
layer and for the worst. Norms are moved away from the identity, since a fresh group norm hides what it does. Both
sides prepare their input as the model's own feature extractor does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import runpy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl import load_upstream
from mmssl.random import isolated_rng
from mmssl.upstreams.hf import HFUpstream
from mmssl.upstreams.hf_speech import FAMILIES

ROOT = Path(__file__).parents[1]
LENGTHS = (8000, 32000, 20001, 12345)
SEED = 0
# fields of a tiny row that choose a variant of the model and not its size
VARIANT = ("model_type", "feat_extract_norm", "do_stable_layer_norm")
HEADER = ("model", "plain, mask", "worst layer", "plain, no mask", "worst layer", "mmssl", "worst layer")

Features = list[list[Tensor]]
"""For each clip, each layer's frames (T, D)."""


@dataclass(frozen=True)
class Difference:
    """Largest differences between clips alone and in a batch, in parts of the layer's scale."""

    last: float
    worst: float


@dataclass(frozen=True)
class Row:
    """What was measured of one model; `single` is the largest difference of one clip to plain transformers, `worst`."""

    name: str
    masked: Difference
    unmasked: Difference
    ours: Difference
    single: float

    def cells(self) -> list[str]:
        values = (v for d in (self.masked, self.unmasked, self.ours) for v in (d.last, d.worst))
        return [self.name, *(f"{value:.1e}" for value in values)]


def configurations(base: bool) -> dict[str, dict[str, Any]]:
    """Name -> configuration of every wrapped speech model type, as the contract suite lists them."""
    rows = runpy.run_path(str(ROOT / "tests" / "contract" / "tiny.py"))["TINY"]["hf"]
    named = {}
    for row in rows:
        if row["config"]["model_type"] not in FAMILIES:
            continue  # pictures are all of one size
        config = {k: v for k, v in row["config"].items() if not base or k in VARIANT}
        named[config["model_type"] + (" (stable layer norm)" if config.get("do_stable_layer_norm") else "")] = config
    return named


def build(config: dict[str, Any]) -> tuple[HFUpstream, Any]:
    """Our upstream, and the plain model with the same weights."""
    from transformers import AutoConfig, AutoModel, SpeechT5ForSpeechToText

    upstream = load_upstream("hf", config=config, seed=SEED)
    assert isinstance(upstream, HFUpstream)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in upstream.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    with isolated_rng(SEED):
        values: Any = AutoConfig.for_model(**config)
        speecht5 = config["model_type"] == "speecht5"
        plain: Any = SpeechT5ForSpeechToText(values).speecht5 if speecht5 else AutoModel.from_config(values)
    plain = plain.encoder if config["model_type"] in ("whisper", "moonshine", "speecht5") else plain
    plain.load_state_dict(upstream.model.state_dict())
    return upstream, plain.eval().requires_grad_(False)


def extractor(upstream: HFUpstream, config: dict[str, Any]) -> Any:
    """The feature extractor that belongs to the model."""
    import transformers

    model_type = config["model_type"]
    if model_type == "whisper":
        family: Any = upstream.family
        return transformers.WhisperFeatureExtractor(
            feature_size=family.bank.shape[1], chunk_length=family.window // 16000
        )
    if model_type == "wav2vec2-bert":
        return transformers.SeamlessM4TFeatureExtractor()
    return transformers.Wav2Vec2FeatureExtractor(
        do_normalize=getattr(upstream.family, "do_normalize", False), return_attention_mask=True
    )


def plain_features(upstream: HFUpstream, plain: Any, prepare: Any, clips: Sequence[Tensor], mask: bool) -> Features:
    """All layers by transformers alone, cut to each clip's own frames."""
    padding = {} if type(prepare).__name__ == "WhisperFeatureExtractor" else {"padding": True}
    given = prepare(
        [clip.numpy() for clip in clips],
        sampling_rate=16000,
        return_tensors="pt",
        return_attention_mask=True,
        **padding,
    )
    attention = {"attention_mask": given["attention_mask"]} if mask else {}
    name = plain.main_input_name if plain.main_input_name in given else "input_values"
    with torch.no_grad():
        hidden = plain(given[name], **attention, output_hidden_states=True).hidden_states
    frames = upstream.output_lengths(torch.tensor([len(clip) for clip in clips])).tolist()
    return [[layer[row, :n] for layer in hidden] for row, n in enumerate(frames)]


def our_features(upstream: HFUpstream, clips: Sequence[Tensor]) -> Features:
    """All layers by mmssl."""
    batch = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    layers = upstream(batch, torch.tensor([len(clip) for clip in clips]))["audio"]
    return [
        [h[row, : int(n[row])] for h, n in zip(layers.hidden_states, layers.lengths, strict=True)]
        for row in range(len(clips))
    ]


def compare(expected: Features, found: Features) -> Difference:
    """Largest difference in the last and in the worst layer, in parts of each clip's root mean square there."""
    differences = torch.tensor(
        [
            [float((a - b).abs().max() / a.pow(2).mean().sqrt()) for a, b in zip(alone, other, strict=True)]
            for alone, other in zip(expected, found, strict=True)
        ]
    )
    return Difference(float(differences[:, -1].max()), float(differences.max()))


def measure(name: str, config: dict[str, Any]) -> Row:
    """One row of the table."""
    upstream, plain = build(config)
    prepare = extractor(upstream, config)
    generator = torch.Generator().manual_seed(SEED)
    longest = upstream.spec.max_length or max(LENGTHS)
    clips = [0.1 * torch.randn(min(n, longest), generator=generator) + 0.03 for n in LENGTHS]

    def alone(run: Callable[[Sequence[Tensor]], Features]) -> Features:
        return [run([clip])[0] for clip in clips]

    by_us = alone(lambda c: our_features(upstream, c))
    differences = {}
    for mask in (True, False):
        # alone with a mask, too: an extractor may pad a single clip by a frame
        by_plain = alone(lambda c, mask=mask: plain_features(upstream, plain, prepare, c, mask))  # type: ignore[misc]
        differences[mask] = compare(by_plain, plain_features(upstream, plain, prepare, clips, mask))
        if mask:
            single = compare(by_plain, by_us).worst
    ours = compare(by_us, our_features(upstream, clips))
    return Row(name, masked=differences[True], unmasked=differences[False], ours=ours, single=single)


def machine() -> str:
    """Processor, cores and versions, for the line above a table."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "mmssl"))
    return f"{processor}, {os.cpu_count()} cores, float32; {versions}"


def table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Header and rows as aligned text or as a markdown table."""
    if markdown:
        lines = [HEADER, ("---",) + ("---:",) * (len(HEADER) - 1), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[k]) for line in [HEADER, *rows]) for k in range(len(HEADER))]
    return "\n".join("  ".join(f"{c:{w}s}" for c, w in zip(line, widths, strict=True)) for line in [HEADER, *rows])


def report(chosen: dict[str, dict[str, Any]], base: bool, markdown: bool) -> str:
    """Measure the chosen models; a line on the machine and the table."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
        rows = [measure(name, config).cells() for name, config in chosen.items()]
    return f"{'Base' if base else 'Tiny'} random models, seed {SEED}. {machine()}.\n\n{table(rows, markdown)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="model types; all where none is named")
    parser.add_argument("--base", action="store_true", help="transformers' default sizes instead of tiny ones")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    args = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    known = configurations(args.base)
    unknown = [m for m in args.models if m not in {c["model_type"] for c in known.values()}]
    if unknown:
        parser.error(f"unknown model types {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = {n: c for n, c in known.items() if not args.models or c["model_type"] in args.models}
    print(report(chosen, args.base, args.markdown))


if __name__ == "__main__":
    main()
