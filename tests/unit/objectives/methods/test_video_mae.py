"""VideoMAE: what it starts from, three steps, videos of unequal length, bad settings, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.methods.video_mae import video_mae
from mmssl.objectives.objective import Objective
from mmssl.objectives.types import Examples, Step
from mmssl.types import Inputs, Padded
from mmssl.upstreams.audio_mae import AudioMAE
from mmssl.upstreams.video_mae import VideoMAE


def build(**changes: Any) -> Objective:
    torch.manual_seed(0)
    upstream = VideoMAE(
        "tiny", hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16
    )
    options = {"decoder_size": 16, "decoder_layers": 1, "decoder_heads": 2, "health_every": 0, **changes}
    return video_mae(upstream, **options)


def videos(*frames: int) -> Examples:
    data = torch.rand(len(frames), max(frames), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Examples(Inputs(video=Padded(data, torch.tensor(frames))), seeds=tuple(range(len(frames))))


def test_three_steps_lower_the_loss_and_train_every_parameter() -> None:
    objective = build().train()
    parameters = dict(objective.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=2e-3)
    losses, touched = [], set()
    for step in range(3):
        output = objective(videos(6, 4, 5), step)
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        losses.append(float(output.loss.detach()))
        # 3 + 2 + 2 slices of 16 places, of which int(.9 * 16) go
        assert output.count == 7 * 14
    assert losses[0] > losses[1] > losses[2]
    assert touched == set(parameters)


def test_the_published_configuration_hides_and_shows_what_it_says() -> None:
    torch.manual_seed(0)
    upstream = VideoMAE("tiny", hidden_size=24, num_layers=1, num_heads=2, feed_forward_size=24)
    objective = video_mae(upstream, decoder_size=48, decoder_layers=1, decoder_heads=2, health_every=0)
    seen = []
    upstream.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    video = torch.rand(1, 16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = objective(Examples(Inputs(video=Padded(video, torch.tensor([16])))), 0)
    assert seen == [160]
    assert output.count == 1408
    # Xavier's weights: see the same test of AudioMAE
    assert float(output.loss) == pytest.approx(1 + 2 * 48 / (48 + 1536), rel=0.05)


def test_the_loss_of_a_video_is_its_own() -> None:
    objective, sizes = build().eval(), (6, 4, 5)
    with torch.no_grad():
        joint = objective(videos(*sizes), 0)
        total, examples = 0.0, videos(*sizes)
        for clip, size in enumerate(sizes):
            data = examples.inputs.video.data[clip : clip + 1, :size]
            output = objective(Examples(Inputs(video=Padded(data, torch.tensor([size]))), seeds=(clip,)), 0)
            total += float(output.loss) * output.count
    assert total / joint.count == pytest.approx(float(joint.loss), rel=1e-5)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        build(mask_ratio=0.0)
    with pytest.raises(ConfigError, match="hides 0 of the 16"):
        build(mask_ratio=0.05)
    with pytest.raises(ConfigError, match="autoencoder of video"):
        video_mae(AudioMAE("tiny", num_layers=1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes video"):
        build()(Examples(Inputs(waveforms=Padded(torch.randn(1, 16000), torch.tensor([16000])))), 0)


def waves(count: int, seed: int) -> Examples:
    """Stripes of one of four directions and a phase that moves on from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(4, (count,), generator=generator) * math.pi / 4
    phase = 2 * math.pi * torch.rand(count, generator=generator)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    along = x * angle.cos()[:, None, None, None] + y * angle.sin()[:, None, None, None]
    moved = along + torch.arange(6.0)[:, None, None]
    video = 0.5 + 0.4 * torch.sin(2 * math.pi * moved / 16 + phase[:, None, None, None])
    return Examples(Inputs(video=Padded(video[:, :, None].expand(-1, -1, 3, -1, -1), torch.full((count,), 6))))


@pytest.mark.slow
def test_hidden_tubelets_are_told_from_visible_ones() -> None:
    torch.manual_seed(0)
    upstream = VideoMAE(
        "tiny", hidden_size=48, num_layers=2, num_heads=4, feed_forward_size=96, patch_size=4, image_size=16
    )
    objective = video_mae(upstream, decoder_size=48, decoder_layers=2, decoder_heads=4, health_every=0)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=400, pct_start=0.1)
    for step in range(400):
        output = objective(waves(32, step), step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
    # one mask for all videos, so that visible tubelets of another one can be put in the place of a video's own
    examples = replace(waves(64, 10**6), seeds=(7,) * 64)
    with torch.no_grad():
        encoder, term = objective.eval().encoder, objective.terms[0]
        view = objective.views(examples, encoder, torch.Generator())[0]
        encoded = encoder.encode(view)["video"]
        order = torch.arange(1, 65) % 64
        moved = replace(encoded, output=Padded(encoded.output.data[order], encoded.output.lengths))
        target = term.target(Step(0, [view], {0: {"video": encoded}}, encoder, torch.Generator()), 0)
        own, other = (float(term.loss(term.head(e), target, encoded.hidden).loss) for e in (encoded, moved))
    print(own, other)
    assert own < 0.95
    assert other - own > 0.05
