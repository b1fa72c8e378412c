"""SUPERB's emotion protocol (HuBERT-base, 13 layers, learned sum, linear head): one training step, four ways.

The first way recomputes the frozen upstream at every step, as S3PRL does: padded batch, all hidden states of
transformers' HubertModel, the layers stacked and summed with learned softmax weights, linear, masked mean, linear,
Adam 1e-4, gradient norm at most 1. It is written out here instead of running S3PRL itself, which adds its own data
loading to the same work; where S3PRL stands (`--s3prl`), its Featurizer does the weighted sum.

The others never run the upstream again: frames cached and padded, pooled features through Lightning
(`mmssl.training.fit`), and pooled features of all folds x learning rates x seeds at once (`mmssl.probing`). In each
round every way runs once, after a matrix product as a control.

    python benchmarks/probe_vs_s3prl.py                # clips as long as in an emotion corpus; about three minutes
    python benchmarks/probe_vs_s3prl.py --steps 30000  # the number of steps for which the whole protocol is stated
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from common import interleave, median, print_table, timed
from extract_vs_transformers import RATE, draw_clips, padded_batches
from torch import Tensor, nn

from mmssl.data.collate import collate_layers
from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification
from mmssl.features.forward import forward_clips
from mmssl.features.pooled import pool_frames
from mmssl.interfaces.base import build_interface
from mmssl.probing.fit_many import Run, fit_many
from mmssl.random import isolated_rng
from mmssl.training.batches import TensorBatches
from mmssl.training.fit import fit
from mmssl.types import Layers, StreamSpec
from mmssl.upstreams.base import load_upstream

LAYERS, WIDTH, CLASSES = 13, 768, 4
FOLDS, RATES, SEEDS = 5, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), 3
CORPUS = 5531
"""Utterances of IEMOCAP's four classes, for which the whole protocol is stated."""


class Recompute(nn.Module):
    """The step as S3PRL does it: frozen upstream, stacked layers, weighted sum, linear, masked mean, linear.

    Args:
        upstream: transformers' model.
        featurizer: S3PRL's, or None for the same sum written here.
    """

    def __init__(self, upstream: nn.Module, featurizer: nn.Module | None = None) -> None:
        super().__init__()
        self.upstream = [upstream]  # not a submodule: it is frozen
        self.featurizer = featurizer
        self.weights = nn.Parameter(torch.zeros(LAYERS))
        self.projector, self.classifier = nn.Linear(WIDTH, 256), nn.Linear(256, CLASSES)

    def forward(self, data: Tensor, mask: Tensor) -> Tensor:
        """(B, C) logits."""
        with torch.no_grad():
            states = self.upstream[0](data, attention_mask=mask, output_hidden_states=True).hidden_states
        frames = self.upstream[0]._get_feat_extract_output_lengths(mask.sum(1))
        if self.featurizer is not None:
            summed, _ = self.featurizer(list(states), [frames] * len(states))
        else:
            stacked = torch.stack(states)
            flat = stacked.view(LAYERS, -1)
            summed = (self.weights.softmax(0)[:, None] * flat).sum(0).view(stacked.shape[1:])
        hidden = self.projector(summed)
        valid = (torch.arange(hidden.shape[1]) < frames[:, None])[..., None]
        return self.classifier((hidden * valid).sum(1) / frames[:, None])


def task() -> UtteranceClassification:
    """SUPERB's head on a learned sum of layers."""
    stream = StreamSpec((WIDTH,) * LAYERS, (320,) * LAYERS)
    return UtteranceClassification(build_interface("weighted_sum", stream), build_head("linear", WIDTH, CLASSES))


def stepper(module: nn.Module, losses: Iterator[Tensor], steps: int) -> Callable[[], None]:
    """Plain training steps: Adam 1e-4, gradient norm at most 1."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            next(losses).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    return run


def s3prl_featurizer() -> nn.Module | None:
    """S3PRL's weighted sum where it is installed; its import needs two functions that torchaudio took away."""
    try:
        importlib.metadata.version("s3prl")
    except importlib.metadata.PackageNotFoundError:
        return None
    torchaudio: Any = importlib.import_module("torchaudio")
    torchaudio.set_audio_backend = lambda name: None
    torchaudio.get_audio_backend = lambda: "soundfile"
    module: Any = importlib.import_module("s3prl.nn.upstream")

    class Sizes(nn.Module):
        num_layers, hidden_sizes, downsample_rates = LAYERS, [WIDTH] * LAYERS, [320] * LAYERS

    return module.Featurizer(Sizes())


def pooled_corpus(count: int) -> TensorBatches:
    """Random pooled features in the shape of a base model's."""
    generator = torch.Generator().manual_seed(0)
    rows = tuple(torch.randn(count, 1, WIDTH, generator=generator) for _ in range(LAYERS))
    ones = (torch.ones(count, dtype=torch.int64),) * LAYERS
    return TensorBatches(Layers(rows, ones), torch.arange(count) % CLASSES)


def grid(clips: TensorBatches) -> list[Run]:
    """5 folds x 3 seeds x 5 learning rates."""
    index = torch.arange(len(clips))
    folds = [(index[index % FOLDS != k], index[index % FOLDS == k][:64]) for k in range(FOLDS)]
    return [Run(task, *fold, rate, 0.0, seed) for fold in folds for seed in range(SEEDS) for rate in RATES]


def ways(args: argparse.Namespace, clips: list[Tensor]) -> dict[str, Callable[[], float]]:
    """Name -> seconds per training step of one head of `--batch` clips (extraction: per clip)."""
    from transformers import HubertConfig, HubertModel

    with isolated_rng(0):
        theirs = HubertModel(HubertConfig()).eval()
    ours = load_upstream("hubert")
    labels = torch.arange(args.batch) % CLASSES
    batches = [b for b in padded_batches(clips, args.batch) if len(b[0]) == args.batch]
    with isolated_rng(0):
        recompute = Recompute(theirs, s3prl_featurizer() if args.s3prl else None)
        framed, single = task(), task()
    features = [f["audio"] for clip in clips for f in forward_clips(ours, [clip])]
    cached = [collate_layers(features[k : k + args.batch]) for k in range(0, len(clips), args.batch)]
    cached = [c for c in cached if len(c.lengths[0]) == args.batch]
    whole = pooled_corpus(args.pooled_clips)
    every = grid(whole)
    settings: dict[str, Any] = {"batch_size": args.batch, "patience": None}
    logits = (nn.functional.cross_entropy(recompute(*batch), labels) for batch in cycle(batches))
    losses = (framed(layers, labels).loss for layers in cycle(cached))
    steps, many = args.measured_steps, 4 * args.measured_steps
    slow, cheap = stepper(recompute, logits, len(batches)), stepper(framed, losses, many)

    def lightning() -> None:
        quick = {"max_steps": many, "eval_every": many, **settings}
        fit(single, whole, whole, learning_rate=1e-4, **quick)

    def batched() -> None:
        for _ in fit_many(every, whole, max_steps=steps, eval_every=steps, **settings):
            pass

    def extraction() -> None:
        for clip in clips:
            for found in forward_clips(ours, [clip]):
                for frames in found["audio"].hidden_states:
                    pool_frames(frames, ("mean",))

    return {
        "upstream recomputed at every step": lambda: timed(slow) / len(batches),
        "frames cached, padded": lambda: timed(cheap) / many,
        "pooled, Lightning, one head": lambda: timed(lightning) / many,
        f"pooled, {len(every)} heads at once, per head": lambda: timed(batched) / steps / len(every),
        "extraction, per clip": lambda: timed(extraction) / len(clips),
    }


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measured-steps", type=int, default=20)
    parser.add_argument("--pooled-clips", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1000, help="per head, for the whole protocol")
    parser.add_argument("--s3prl", action="store_true", help="use S3PRL's Featurizer where it is installed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = draw_clips(args.clips)
    found = interleave(ways(args, clips), args.rounds)
    times = {way: median(values) for way, values in found.items() if way != "control"}
    peer, _, _, batched, extraction = times.values()
    rows = []
    for way, seconds in times.items():
        ratio = (
            ""
            if way == "extraction, per clip"
            else median([a / b for a, b in zip(found[next(iter(times))], found[way], strict=True)])
        )
        rows.append([way, 1000 * seconds, ratio])
    seconds = sum(map(len, clips)) / RATE / len(clips)
    title = f"One step of {args.batch} clips of {seconds:.1f} s on average, one thread"
    print_table(title, ["way", "ms", "times faster than recomputing"], rows)
    heads = FOLDS * len(RATES) * SEEDS
    alone, together = heads * args.steps * peer, heads * args.steps * batched
    counted = together + CORPUS * extraction
    print_table(
        f"From these: {FOLDS} folds x {len(RATES)} learning rates x {SEEDS} seeds x {args.steps} steps, {CORPUS} clips",
        ["", "hours", "ratio"],
        [
            ["recomputed", alone / 3600, ""],
            ["extraction and batched heads", counted / 3600, alone / counted],
            ["batched heads alone", together / 3600, alone / together],
        ],
    )
    print(f"\ncontrol: {median(found['control']):.0f} GFLOP/s")


if __name__ == "__main__":
    main()
