"""AudioMAE: what it starts from, three steps, clips of unequal length, bad settings, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.methods.audio_mae import audio_mae
from mmssl.objectives.objective import Objective
from mmssl.objectives.types import Examples, Step
from mmssl.training.pretrain import pretrain
from mmssl.types import Clip, Inputs, Padded
from mmssl.upstreams.audio_mae import AudioMAE
from mmssl.upstreams.vit_mae import MAE

SAMPLES = (16000, 9000, 12345)


def build(**changes: Any) -> Objective:
    torch.manual_seed(0)
    upstream = AudioMAE("tiny", hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32, num_mel_bins=64)
    options = {"decoder_size": 16, "decoder_layers": 2, "decoder_heads": 2, "health_every": 0, **changes}
    return audio_mae(upstream, **options)


def sounds(*samples: int, fill: float = 0.0) -> Examples:
    generator = torch.Generator().manual_seed(1)
    data = torch.full((len(samples), max(samples)), fill)
    for row, size in zip(data, samples, strict=True):
        row[:size] = torch.randn(size, generator=generator) * 0.1
    return Examples(Inputs(waveforms=Padded(data, torch.tensor(samples))), seeds=tuple(range(len(samples))))


@pytest.mark.parametrize("attention", ["local", "global"])
def test_three_steps_lower_the_loss_and_train_every_parameter(attention: str) -> None:
    objective = build(decoder_attention=attention).train()
    parameters = dict(objective.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=2e-3)
    losses, touched = [], set()
    for step in range(3):
        output = objective(sounds(*SAMPLES), step)
        optimizer.zero_grad()
        output.loss.backward()
        touched |= {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        losses.append(float(output.loss.detach()))
        assert "restoration/baseline" in output.logs
    assert losses[0] > losses[1] > losses[2]
    assert touched == set(parameters)


def test_loss_at_the_start_follows_from_the_initialisation() -> None:
    """Predictions are independent of targets of variance 1, and have variance 2 D / (D + P) by Xavier's weights."""
    torch.manual_seed(0)
    upstream = AudioMAE("tiny", hidden_size=48, num_layers=2, num_heads=2, feed_forward_size=64)
    objective = audio_mae(upstream, decoder_size=64, decoder_layers=2, decoder_heads=4, health_every=0)
    with torch.no_grad():
        loss = float(objective(sounds(*[32000] * 8), 0).loss)
    assert loss == pytest.approx(1 + 2 * 64 / (64 + 256), rel=0.05)


def test_the_loss_of_a_clip_is_its_own() -> None:
    objective = build().eval()
    with torch.no_grad():
        joint = objective(sounds(*SAMPLES), 0)
        assert torch.equal(objective(sounds(*SAMPLES, fill=5.0), 0).loss, joint.loss)
        total, examples = 0.0, sounds(*SAMPLES)
        for clip, size in enumerate(SAMPLES):
            data = examples.inputs.waveforms.data[clip : clip + 1, :size]
            single = Examples(
                Inputs(waveforms=Padded(data, torch.tensor([size]))), seeds=examples.seeds[clip : clip + 1]
            )
            output = objective(single, 0)
            total += float(output.loss) * output.count
    # 6, 3 and 4 rows of 4 patches, of which int(.2 N) stay
    assert joint.count == (24 - 4) + (12 - 2) + (16 - 3)
    assert total / joint.count == pytest.approx(float(joint.loss), rel=1e-5)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        build(mask_ratio=1.0)
    with pytest.raises(ConfigError, match="'windows'"):
        build(decoder_attention="windows")
    with pytest.raises(ConfigError, match="log-mel patches"):
        audio_mae(MAE("tiny", num_layers=1, image_size=32))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one"):
        build(mask_ratio=0.95)(sounds(9000), 0)  # one of twenty would stay, there are twelve
    with pytest.raises(InputError, match="takes waveforms"):
        build()(Examples(Inputs(images=torch.rand(1, 3, 8, 8))), 0)
    spoilt = sounds(*SAMPLES)
    spoilt.inputs.waveforms.data[0, 100] = torch.nan
    with pytest.raises(InputError, match="is nan at step 3"):
        build()(spoilt, 3)


def test_it_pretrains_on_files(tmp_path: Path) -> None:
    clips = []
    for number in range(6):
        path = tmp_path / f"{number}.wav"
        noise = torch.randn(8000 + 1100 * number, generator=torch.Generator().manual_seed(number)) * 0.1
        soundfile.write(path, noise.numpy(), 16000)
        clips.append(Clip(f"c{number}", audio=str(path)))
    result = pretrain(
        build(), clips, tmp_path / "run", learning_rate=1e-3, max_steps=3, batch_seconds=2, max_seconds=1, log_every=1
    )
    assert len(result.history) == 3
    assert all(math.isfinite(row["loss"]) for row in result.history)


def harmonies(count: int, seed: int) -> tuple[Examples, torch.Tensor]:
    """Sounds of one of six pitches throughout, loud and soft in turn; and which."""
    generator = torch.Generator().manual_seed(seed)
    pitch = torch.randint(6, (count,), generator=generator)
    time = torch.arange(16000) / 16000
    frequency = 200 * 1.5 ** pitch[:, None]
    phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
    envelope = 0.6 + 0.4 * torch.sin(2 * math.pi * 3 * time + phase)
    sound = sum(torch.sin(2 * math.pi * frequency * k * time) / k for k in (1, 2, 3)) * envelope * 0.2
    level = 0.2 + torch.rand(count, 1, generator=generator)
    sound = level * (sound + 0.05 * torch.randn(count, 16000, generator=generator))
    return Examples(Inputs(waveforms=Padded(sound, torch.full((count,), 16000)))), pitch


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["local", "global"])
def test_hidden_patches_are_told_from_visible_ones(attention: str) -> None:
    torch.manual_seed(0)
    upstream = AudioMAE("tiny", hidden_size=48, num_layers=2, num_heads=4, feed_forward_size=96)
    objective = audio_mae(
        upstream, decoder_size=48, decoder_layers=2, decoder_heads=4, decoder_attention=attention, health_every=0
    )
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=250, pct_start=0.1)
    for step in range(250):
        output = objective(harmonies(16, step)[0], step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
    # one mask for all clips, so that visible patches of another clip can be put in the place of a clip's own
    examples = replace(harmonies(64, 10**6)[0], seeds=(7,) * 64)
    with torch.no_grad():
        encoder, term = objective.eval().encoder, objective.terms[0]
        view = objective.views(examples, encoder, torch.Generator())[0]
        encoded = encoder.encode(view)["audio"]
        order = torch.arange(1, 65) % 64
        lengths = encoded.output.lengths
        taps = {**encoded.taps, "class": Padded(encoded.taps["class"].data[order], encoded.taps["class"].lengths)}
        moved = replace(encoded, output=Padded(encoded.output.data[order], lengths), taps=taps)
        target = term.target(Step(0, [view], {0: {"audio": encoded}}, encoder, torch.Generator()), 0)
        own, other = (float(term.loss(term.head(e), target, encoded.hidden).loss) for e in (encoded, moved))
    print(attention, own, other)
    assert own < 0.9
    assert other - own > 0.02
