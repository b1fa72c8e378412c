"""One training step of MAE and VideoMAE: patches dropped, none dropped, and transformers' models of the same sizes.

    python benchmarks/masked_step.py [--preset small] [--images 4] [--videos 1] [--rounds 3] [--threads 1] [--bf16]

A step is forward, backward and fused AdamW, the default of both trainers. "Dense" is the same encoder and decoder with
every patch seen and scored. On a CPU the times are those of the processor, so that other work on the machine does not
count.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable

import torch
import transformers
from common import interleave, median, print_table, timed
from torch import Tensor, nn

from mmssl.nn.patch import standardize_pictures
from mmssl.objectives.methods.mae import mae
from mmssl.objectives.methods.video_mae import video_mae
from mmssl.objectives.objective import Objective
from mmssl.objectives.types import Examples, Hidden, Step, View
from mmssl.types import Inputs, Padded
from mmssl.upstreams.mae_weights import PRESETS
from mmssl.upstreams.video_mae import VideoMAE
from mmssl.upstreams.vit_mae import MAE


def dense_loss(objective: Objective, inputs: Inputs) -> Tensor:
    """Loss over all patches, none of which is dropped."""
    (stream, lengths), *_ = objective.encoder.frame_lengths(inputs).items()
    mask = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.bool, device=lengths.device)
    view = View(inputs, {stream: Hidden(mask)})
    encoded = objective.encoder.encode(view)
    term = objective.terms[0]
    assert term.head is not None
    assert term.target is not None
    target = term.target(Step(0, [view], {0: encoded}, objective.encoder, torch.Generator()), 0)
    return term.loss(term.head(encoded[stream]), target).loss


def step_of(model: nn.Module, loss: Callable[[], Tensor], bf16: bool) -> Callable[[], float]:
    """Seconds of a step, as a call."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    mixed = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def step() -> None:
        with mixed:
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def processor_time() -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    return processor_time if device.type == "cpu" else lambda: timed(step)


def picture_steps(preset: str, count: int, device: str, bf16: bool) -> dict[str, Callable[[], float]]:
    """Name -> step on pictures of 224 pixels."""
    sizes = PRESETS[preset]
    width = sizes.hidden_size * 2 // 3
    upstream = MAE(preset)
    ours = mae(upstream, decoder_size=width, decoder_heads=8, health_every=0).to(device)
    config = transformers.ViTMAEConfig(
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.feed_forward_size,
        patch_size=sizes.patch_size,
        decoder_hidden_size=width,
        decoder_num_attention_heads=8,
        decoder_intermediate_size=4 * width,
        norm_pix_loss=True,
    )
    theirs = transformers.ViTMAEForPreTraining(config).to(device)
    pictures = torch.rand(count, 3, 224, 224, device=device)
    pixels = standardize_pictures(pictures, upstream.image_mean, upstream.image_std, torch.float32)
    inputs = Inputs(images=pictures)
    return {
        "MAE, dense": step_of(ours, lambda: dense_loss(ours, inputs), bf16),
        "MAE, masked": step_of(ours, lambda: ours(Examples(inputs), 0).loss, bf16),
        "MAE, transformers": step_of(theirs, lambda: theirs(pixels).loss, bf16),
    }


def video_steps(preset: str, count: int, device: str, bf16: bool) -> dict[str, Callable[[], float]]:
    """Name -> step on videos of 16 frames of 224 pixels."""
    sizes = PRESETS[preset]
    width, heads = sizes.hidden_size // 2, max(1, sizes.num_heads // 2)
    upstream = VideoMAE(preset)
    ours = video_mae(upstream, decoder_size=width, decoder_heads=heads, health_every=0).to(device)
    config = transformers.VideoMAEConfig(
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.feed_forward_size,
        decoder_hidden_size=width,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * width,
        use_mean_pooling=False,
    )
    theirs = transformers.VideoMAEForPreTraining(config).to(device)
    video = torch.rand(count, 16, 3, 224, 224, device=device)
    inputs = Inputs(video=Padded(video, torch.full((count,), 16, device=device)))
    pixels = standardize_pictures(video, upstream.image_mean, upstream.image_std, torch.float32)
    mask = ours.views(Examples(inputs), ours.encoder, torch.Generator())[0].hidden["video"].mask
    return {
        "VideoMAE, dense": step_of(ours, lambda: dense_loss(ours, inputs), bf16),
        "VideoMAE, masked": step_of(ours, lambda: ours(Examples(inputs), 0).loss, bf16),
        "VideoMAE, transformers": step_of(theirs, lambda: theirs(pixels, bool_masked_pos=mask).loss, bf16),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small", choices=["tiny", "small", "base", "large"])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--videos", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    work = picture_steps(options.preset, options.images, options.device, options.bf16)
    work |= video_steps(options.preset, options.videos, options.device, options.bf16)
    found = interleave(work, options.rounds)
    rows = []
    for name in work:
        method = name.partition(",")[0]
        # ratios of each round, so that a change of the machine's speed meets both sides
        beside = {
            other: median([b / a for a, b in zip(found[name], found[f"{method}, {other}"], strict=True)])
            for other in ("dense", "transformers")
        }
        rows.append((name, 1e3 * median(found[name]), beside["dense"], beside["transformers"]))
    title = (
        f"{options.preset}, {options.images} pictures, {options.videos} videos, {options.threads} thread(s), "
        f"{options.device}{', bf16' if options.bf16 else ''}; control {median(found['control']):.0f} GFLOP/s"
    )
    print_table(title, ("step", "ms", "times faster than dense", "times faster than transformers"), rows)


if __name__ == "__main__":
    main()
