"""HiCMAE: what it starts from, counts, three steps, invariants, bad settings, and that streams help each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.av_patch_encoder import AudioVisualEncoder, partner_gaps
from mmssl.objectives.methods.hicmae import hicmae
from mmssl.objectives.methods.video_mae import video_mae
from mmssl.objectives.objective import Objective
from mmssl.objectives.types import Examples, View
from mmssl.types import Inputs, Padded
from mmssl.upstreams.hicmae import HiCMAE
from mmssl.upstreams.video_mae import VideoMAE

LEVELS = (1, 2, 3)


def build(**changes: Any) -> Objective:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_layers": 3, "num_fusion_layers": 1, "num_heads": 2, "feed_forward_size": 32}
    upstream = HiCMAE("tiny", image_size=64, video_fps=12.5, **sizes)
    options = {"levels": LEVELS, "decoder_size": 16, "decoder_heads": 2, "health_every": 0, **changes}
    return hicmae(upstream, **options)


def pairs(samples: tuple[int, ...], frames: tuple[int, ...]) -> Examples:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(len(samples), max(samples), generator=generator) * 0.1
    video = torch.rand(len(frames), max(frames), 3, 64, 64, generator=generator)
    inputs = Inputs(Padded(audio, torch.tensor(samples)), Padded(video, torch.tensor(frames)))
    return Examples(inputs, seeds=tuple(range(len(samples))))


RAGGED = pairs((16000, 9000, 12345), (6, 2, 5))


def test_three_steps_lower_the_loss_and_train_every_parameter() -> None:
    objective = build().train()
    parameters = dict(objective.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    losses, touched = [], set()
    for step in range(3):
        output = objective(RAGGED, step)
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        losses.append(float(output.loss.detach()))
    assert losses[0] > losses[1] > losses[2]
    assert touched == set(parameters)
    assert [term.name for term in objective.terms] == ["audio", "video", "contrast_1", "contrast_2", "contrast_3"]
    assert {"contrast_2/ln_n", "contrast_2/accuracy", "video/baseline"} <= set(output.logs)


def test_counts_and_loss_at_the_start_are_the_published_ones() -> None:
    """16 pictures of 160 pixels and 2.56 s of sound: 80 of 800 and 26 of 128 tokens are seen."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_layers": 3, "num_fusion_layers": 1, "num_heads": 2, "feed_forward_size": 48}
    upstream = HiCMAE("tiny", pad_last=True, **sizes)
    objective = hicmae(upstream, levels=LEVELS, decoder_size=48, decoder_heads=2, health_every=0)
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(8, 40960, generator=generator) * 0.1
    video = torch.rand(8, 16, 3, 160, 160, generator=generator)
    inputs = Inputs(Padded(audio, torch.full((8,), 40960)), Padded(video, torch.full((8,), 16)))
    with torch.no_grad():
        output = objective(Examples(inputs), 0)
        encoded = objective.encoder.encode(objective.views(Examples(inputs), objective.encoder, generator)[0])
    shapes = {stream: (found.output.data.shape[1], found.hidden.shape[1]) for stream, found in encoded.items()}
    assert shapes == {"audio": (26, 128), "video": (80, 800)}
    assert output.count == 8 * 102
    for level in LEVELS:
        assert float(output.logs[f"contrast_{level}/loss"]) == pytest.approx(math.log(8), rel=0.05)
    assert float(output.logs["audio/loss"]) == pytest.approx(1 + 2 * 48 / (48 + 256), rel=0.05)
    # of pictures of noise, the difference of two frames has a variance of 2
    assert float(output.logs["video/loss"]) == pytest.approx(1.5 + 2 * 48 / (48 + 1536), rel=0.05)
    expected = output.logs["audio/loss"] + output.logs["video/loss"]
    expected = expected + 0.0025 * sum(output.logs[f"contrast_{level}/loss"] for level in LEVELS)
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-6)


def test_the_restoration_of_a_clip_is_its_own() -> None:
    objective = build().eval()
    totals = {"audio": 0.0, "video": 0.0}
    counts = dict(totals)
    waveforms, video = RAGGED.inputs.waveforms, RAGGED.inputs.video
    with torch.no_grad():
        joint = objective(RAGGED, 0)
        objective = build(contrast_weight=0.0).eval()
        for clip in range(3):
            sound, frames = waveforms.lengths[clip : clip + 1], video.lengths[clip : clip + 1]
            single = Inputs(
                Padded(waveforms.data[clip : clip + 1, : int(sound)], sound),
                Padded(video.data[clip : clip + 1, : int(frames)], frames),
            )
            alone = Examples(single, seeds=(clip,))
            logs = objective(alone, 0).logs
            masks = objective.views(alone, objective.encoder, torch.Generator())[0].hidden
            for name in totals:
                totals[name] += float(logs[f"{name}/loss"]) * int(masks[name].mask.sum())
                counts[name] += int(masks[name].mask.sum())
    for name in totals:
        assert totals[name] / counts[name] == pytest.approx(float(joint.logs[f"{name}/loss"]), rel=1e-5)


def test_levels_are_normed_by_the_last_norm_and_seen_by_the_decoder() -> None:
    objective = build().eval()
    encoder = objective.encoder
    encoded = encoder.encode(objective.views(RAGGED, encoder, torch.Generator())[0])
    for stream, part in (("audio", encoder.upstream.audio), ("video", encoder.upstream.video)):
        found = encoded[stream]
        for level in LEVELS:
            normed = part.norm(found.layers.hidden_states[level])
            valid = found.output.mask
            assert torch.allclose(found.taps[f"layer.{level}"].data[valid], normed[valid], atol=1e-6)
    head = objective.terms[0].head
    before = head(encoded["audio"])
    for level in LEVELS:
        taps = {**encoded["audio"].taps}
        taps[f"layer.{level}"] = Padded(taps[f"layer.{level}"].data + 1, taps[f"layer.{level}"].lengths)
        changed = head(type(encoded["audio"])(**{**vars(encoded["audio"]), "taps": taps}))
        assert not torch.allclose(before, changed, atol=1e-4)


def test_partners_make_no_difference_at_the_start() -> None:
    gaps = partner_gaps(build().eval(), pairs((16000,) * 16, (4,) * 16))
    assert set(gaps) == {"audio", "video"}
    for own, other in gaps.values():
        assert abs(other - own) < 0.005 * own
    with pytest.raises(InputError, match="two clips"):
        partner_gaps(build(), pairs((16000,), (4,)))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="blocks from 1 to 3"):
        build(levels=(1, 4))
    with pytest.raises(ConfigError, match="different numbers"):
        build(levels=(2, 2))
    with pytest.raises(ConfigError, match="as many blocks"):
        build(decoder_layers=2)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        build(audio_mask_ratio=1.0)
    with pytest.raises(ConfigError, match="hides 0 of the 16"):
        build(video_mask_ratio=0.01)
    with pytest.raises(ConfigError, match="temperature"):
        build(temperature=0.0)
    with pytest.raises(InputError, match="at least 2"):
        build()(pairs((16000,), (4,)), 0)  # a contrast needs another clip
    with pytest.raises(ConfigError, match="hicmae"):
        AudioVisualEncoder(VideoMAE("tiny", num_layers=1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes video"):
        build()(Examples(Inputs(waveforms=RAGGED.inputs.waveforms)), 0)
    with pytest.raises(InputError, match="one of each"):
        build().encoder.encode(View(Inputs(RAGGED.inputs.waveforms, pairs((9000,), (4,)).inputs.video)))
    small = VideoMAE("tiny", hidden_size=24, num_layers=1, num_heads=2, feed_forward_size=24, image_size=64)
    other = video_mae(small, decoder_size=16, decoder_layers=1, decoder_heads=2)
    with pytest.raises(ConfigError, match="'audio' and 'video'"):
        partner_gaps(other, RAGGED)


def duets(count: int, seed: int, shuffled: bool = False) -> Examples:
    """A low and a high tone, of three each, and a picture whose upper and lower half show a pattern for each of them.

    One visible tubelet shows one of the two patterns, the sound tells both.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randint(3, (count, 2), generator=generator)
    heard = seen[torch.randperm(count, generator=generator)] if shuffled else seen
    time = 2 * math.pi * torch.arange(10480) / 16000
    phase = 2 * math.pi * torch.rand(count, 2, 1, generator=generator)
    tones = torch.tensor([[300.0, 600, 1000], [2500, 3500, 5000]])
    frequency = torch.stack([tones[half, heard[:, half]] for half in range(2)], dim=1)[..., None]
    audio = 0.2 * torch.sin(frequency * time + phase).sum(1)
    audio = audio + 0.01 * torch.randn(audio.shape, generator=generator)
    wave = torch.sin(math.pi * (torch.arange(64) + 0.5) / 4)
    patterns = torch.stack([wave[:, None].expand(64, 64), wave.expand(64, 64), wave[:, None] * wave])
    picture = torch.cat([patterns[seen[:, 0], :32], patterns[seen[:, 1], 32:]], dim=1)
    video = 0.5 + 0.3 * picture[:, None, None].expand(-1, 2, 3, -1, -1)
    video = (video + 0.05 * torch.randn(video.shape, generator=generator)).clamp(0, 1)
    inputs = Inputs(Padded(audio, torch.full((count,), 10480)), Padded(video, torch.full((count,), 2)))
    return Examples(inputs)


@pytest.mark.slow
def test_streams_help_each_other_where_they_share_content_and_not_where_they_are_shuffled() -> None:
    found = {}
    for shuffled in (False, True):
        torch.manual_seed(0)
        sizes = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "feed_forward_size": 96}
        objective = hicmae(
            HiCMAE("tiny", image_size=64, **sizes),
            audio_mask_ratio=0.85,
            video_mask_ratio=0.94,
            levels=(1, 2),
            decoder_size=48,
            decoder_layers=3,
            decoder_heads=4,
            frame_difference=False,
            health_every=0,
        )
        start = partner_gaps(objective.eval(), duets(128, 10**6))
        optimizer = torch.optim.AdamW(objective.train().parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=400, pct_start=0.1)
        for step in range(400):
            output = objective(duets(16, step, shuffled), step)
            optimizer.zero_grad()
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        end = partner_gaps(objective.eval(), duets(128, 10**6))
        print(shuffled, start, end)
        assert all(abs(other - own) < 0.002 for own, other in start.values())
        found[shuffled] = {name: other - own for name, (own, other) in end.items()}
    # so short a training teaches the sound's decoder to look at the pictures; the other way takes longer
    assert found[False]["audio"] > 0.005
    assert all(abs(gap) < 0.002 for gap in found[True].values())
