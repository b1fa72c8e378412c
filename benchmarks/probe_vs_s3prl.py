"""SUPERB's emotion protocol (HuBERT-base, 13 layers, learned sum, linear head): one training step, four ways.

The first way is S3PRL 0.4.18 itself, installed by this script into an environment of its own: its upstream
`hf_hubert_custom`, recomputed at every step, its Featurizer, its UtteranceLevel head with MeanPooling, Adam 1e-4,
gradient norm at most 1, as its runner puts them together. Its data loading is left out, in its favour. The upstream has
the same random weights on both sides. S3PRL's import needs two things that torchaudio took away: they are put back.

The others never run the upstream again: frames cached and padded, pooled features through Lightning
(`mmssl.training.fit`), and pooled features of all folds x learning rates x seeds at once (`mmssl.probing`). In each
round every way runs once, after a matrix product as a control.

    python benchmarks/probe_vs_s3prl.py                # clips as long as in an emotion corpus; some minutes
    python benchmarks/probe_vs_s3prl.py --steps 30000  # the number of steps for which the whole protocol is stated
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from types import ModuleType
from typing import Any

import torch
from common import interleave, median, print_table, timed
from extract_vs_transformers import RATE, draw_clips
from peers import enter
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


class S3prl(nn.Module):
    """S3PRL's emotion downstream on its HuBERT: what its runner does with a batch, from waveforms to the loss.

    Args:
        folder: of a transformers HuBERT.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        hub, interfaces, downstream = _import_s3prl()
        self.upstream = [hub.hf_hubert_custom(folder).eval()]  # not a submodule: it is frozen
        self.featurizer = interfaces.Featurizer(self.upstream[0], "hidden_states", upstream_device="cpu")
        self.projector = nn.Linear(self.featurizer.output_dim, 256)
        self.model = downstream.UtteranceLevel(256, CLASSES, pooling="MeanPooling")

    def forward(self, wavs: list[Tensor], labels: Tensor) -> Tensor:
        """Loss of a batch."""
        with torch.no_grad():
            features = self.upstream[0](wavs)
        frames = self.featurizer(wavs, features)
        lengths = torch.tensor([len(f) for f in frames])
        padded = nn.utils.rnn.pad_sequence(frames, batch_first=True)
        predicted, _ = self.model(self.projector(padded), lengths)
        return nn.functional.cross_entropy(predicted, labels)


def _import_s3prl() -> tuple[Any, Any, Any]:
    """S3PRL's hub, interfaces and downstream models, after putting back what torchaudio took away."""
    torchaudio: Any = importlib.import_module("torchaudio")
    torchaudio.set_audio_backend = lambda name: None
    effects: Any = ModuleType("torchaudio.sox_effects")
    effects.apply_effects_tensor = effects.apply_effects_file = None
    sys.modules["torchaudio.sox_effects"] = torchaudio.sox_effects = effects
    names = ("s3prl.hub", "s3prl.upstream.interfaces", "s3prl.downstream.model")
    hub, interfaces, downstream = (importlib.import_module(name) for name in names)
    return hub, interfaces, downstream


def save_hubert(folder: str) -> None:
    """A HuBERT of random weights as transformers keeps it."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    with isolated_rng(0):
        HubertModel(HubertConfig()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)


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
    with tempfile.TemporaryDirectory() as folder:
        save_hubert(folder)
        with isolated_rng(0):
            peer, framed, single = S3prl(folder), task(), task()
        ours = load_upstream("hf", path=folder)
    labels = torch.arange(args.batch) % CLASSES
    batches = [clips[k : k + args.batch] for k in range(0, len(clips) - args.batch + 1, args.batch)]
    features = [f["audio"] for clip in clips for f in forward_clips(ours, [clip])]
    cached = [collate_layers(features[k : k + args.batch]) for k in range(0, len(clips), args.batch)]
    cached = [c for c in cached if len(c.lengths[0]) == args.batch]
    whole = pooled_corpus(args.pooled_clips)
    every = grid(whole)
    settings: dict[str, Any] = {"batch_size": args.batch, "patience": None}
    recomputed = (peer(batch, labels) for batch in cycle(batches))
    losses = (framed(layers, labels).loss for layers in cycle(cached))
    steps, many = args.measured_steps, 4 * args.measured_steps
    slow, cheap = stepper(peer, recomputed, len(batches)), stepper(framed, losses, many)

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
        "S3PRL 0.4.18, upstream recomputed at every step": lambda: timed(slow) / len(batches),
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
    args = parser.parse_args()
    enter("s3prl", ["s3prl==0.4.18"])
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
    print_table(title, ["way", "ms", "times faster than S3PRL"], rows)
    heads = FOLDS * len(RATES) * SEEDS
    alone, together = heads * args.steps * peer, heads * args.steps * batched
    counted = together + CORPUS * extraction
    print_table(
        f"From these: {FOLDS} folds x {len(RATES)} learning rates x {SEEDS} seeds x {args.steps} steps, {CORPUS} clips",
        ["", "hours", "ratio"],
        [
            ["S3PRL", alone / 3600, ""],
            ["extraction and batched heads", counted / 3600, alone / counted],
            ["batched heads alone", together / 3600, alone / together],
        ],
    )
    print(f"\ncontrol: {median(found['control']):.0f} GFLOP/s")


if __name__ == "__main__":
    main()
