"""Features of all layers of HuBERT-base on clips of mixed lengths: transformers, and this toolkit's packed engine.

Both have the same (random) weights and the same clips, and keep all hidden states in float32. In each round every way
runs once, after a matrix product as a control; the table gives medians and ratios within the rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from common import interleave, median, print_table, timed

from mmssl.features.forward import forward_clips
from mmssl.features.memory import keep_freed_memory
from mmssl.features.plan import Item, make_buckets
from mmssl.features.precision import compare, with_precision
from mmssl.types import Clip
from mmssl.upstreams.base import load_upstream

RATE = 16000


def draw_clips(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Noise with the lengths of an emotion corpus: log-normal, mean 4.5 s, 1 to 15 s."""
    rng = np.random.default_rng(seed)
    seconds = np.clip(rng.lognormal(np.log(4.5) - 0.55**2 / 2, 0.55, count), 1, 15)
    return [torch.from_numpy(0.1 * rng.standard_normal(int(RATE * s)).astype(np.float32)) for s in seconds]


def buckets_of(clips: Sequence[torch.Tensor], budget: float) -> list[list[torch.Tensor]]:
    """The engine's batches."""
    items = [Item(Clip(str(i)), len(clip) / RATE) for i, clip in enumerate(clips)]
    return [[clips[int(item.clip.id)] for item in bucket] for bucket in make_buckets(items, budget)]


def work(pipe: Connection, folder: str, buckets: Sequence[Sequence[torch.Tensor]], int8: bool, tuned: bool) -> None:
    """A worker process: computes its buckets each time it is asked to."""
    torch.set_num_threads(1)
    if tuned:
        keep_freed_memory()
    upstream = with_precision(load_upstream("hubert", checkpoint=folder), int8=int8)
    pipe.send("ready")
    while pipe.recv():
        for bucket in buckets:
            forward_clips(upstream, bucket)
        pipe.send("done")


class Workers:
    """Processes of one thread each, as `extract(jobs=...)` starts them."""

    def __init__(self, jobs: int, folder: str, buckets: Sequence[Sequence[torch.Tensor]], int8: bool, tuned: bool):
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for job in range(jobs):
            ours, theirs = context.Pipe()
            arguments = (theirs, folder, [[c.numpy() for c in b] for b in buckets[job::jobs]], int8, tuned)
            process = context.Process(target=_start, args=arguments, daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def run(self) -> None:
        """Compute everything once."""
        for pipe in self.pipes:
            pipe.send(True)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(False)
            process.join()


def _start(pipe: Connection, folder: str, arrays: Sequence[Sequence[np.ndarray]], int8: bool, tuned: bool) -> None:
    work(pipe, folder, [[torch.from_numpy(a) for a in bucket] for bucket in arrays], int8, tuned)


def padded_batches(clips: Sequence[torch.Tensor], size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Zero-padded batches in corpus order, with attention masks."""
    batches = []
    for start in range(0, len(clips), size):
        part = clips[start : start + size]
        data = torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True)
        mask = torch.arange(data.shape[1])[None] < torch.tensor([len(c) for c in part])[:, None]
        batches.append((data, mask.long()))
    return batches


@torch.no_grad()
def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-seconds", type=float, default=32.0)
    parser.add_argument("--jobs", type=int, default=2, help="processes of the last rows; 2 on two cores")
    args = parser.parse_args()
    from transformers import HubertConfig, HubertModel

    clips = draw_clips(args.clips)
    seconds = sum(map(len, clips)) / RATE
    buckets, padded = buckets_of(clips, args.batch_seconds), padded_batches(clips, 8)
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name) / "hubert")
        torch.manual_seed(0)
        theirs = HubertModel(HubertConfig()).eval()
        theirs.save_pretrained(folder)
        ours = load_upstream("hubert", checkpoint=folder)
        pools = {
            f"packed, {args.jobs} jobs": Workers(args.jobs, folder, buckets, False, False),
            f"packed, {args.jobs} jobs, allocator set": Workers(args.jobs, folder, buckets, False, True),
            f"packed, {args.jobs} jobs, allocator set, int8": Workers(args.jobs, folder, buckets, True, True),
        }
        ways = {
            "transformers, one clip at a time": lambda: [theirs(c[None], output_hidden_states=True) for c in clips],
            "transformers, padded batches of 8, mask": lambda: [
                theirs(data, attention_mask=mask, output_hidden_states=True) for data, mask in padded
            ],
            "packed, in this process": lambda: [forward_clips(ours, bucket) for bucket in buckets],
            **{way: pool.run for way, pool in pools.items()},
        }
        found = interleave({way: (lambda run=run: timed(run)) for way, run in ways.items()}, args.rounds)
        for pool in pools.values():
            pool.close()
        few = clips[:4]
        reference = [{"audio": forward_clips(ours, [clip])[0]["audio"]} for clip in few]
        int8 = compare(reference, forward_clips(with_precision(ours, int8=True), few))
        same = compare(reference, forward_clips(ours, few))
    alone, batched = (found[way] for way in list(ways)[:2])
    rows = [
        (
            way,
            seconds / median(found[way]),
            median([a / b for a, b in zip(alone, found[way], strict=True)]),
            median([a / b for a, b in zip(batched, found[way], strict=True)]),
        )
        for way in ways
    ]
    title = f"HuBERT-base, {len(clips)} clips, {seconds:.0f} s of audio, {args.rounds} rounds"
    print_table(title, ("way", "x real time", "to one at a time", "to padded batches"), rows)
    waste = sum(data.numel() for data, _ in padded) / (seconds * RATE)
    print(f"\ncontrol: matrix product {median(found['control']):.0f} GFLOP/s ({torch.get_num_threads()} threads)")
    print(f"padded batches carry {waste:.2f} times the audio")
    print(f"packed against each clip alone: {same}")
    print(f"int8 linears: {int8}")


if __name__ == "__main__":
    main()
