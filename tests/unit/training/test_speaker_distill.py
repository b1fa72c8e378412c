"""OS-KDFT: the loss against an independent computation, where gradients go, training steps, the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mmssl.downstream.margin import MarginSoftmax
from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.errors import ConfigError
from mmssl.random import isolated_rng
from mmssl.training.speaker import SpeakerStage, num_classes, train_speaker
from mmssl.training.speaker_data import hold_out_speakers
from mmssl.training.speaker_distill import Distillation, compare_models
from mmssl.training.speaker_files import build_speaker_model, load_speaker_model, save_speaker_model
from mmssl.types import Clip, Padded
from mmssl.upstreams.base import load_upstream

STUDENT = {"preset": "hubert_tiny", "num_layers": 1, "adapter_size": 4}
ENCODER = {"channels": 16, "joined_size": 24, "embedding_size": 8}


def system(**kwargs: Any) -> tuple[SpeakerModel, Distillation]:
    model = build_speaker_model(
        "speech_student", "ecapa_tdnn", upstream_kwargs=STUDENT, encoder_kwargs=ENCODER, train_upstream=True
    )
    teacher = load_upstream("hubert", preset="hubert_tiny", seed=5)
    model.upstream.copy_first_blocks(teacher)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.upstream.adapter_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, Distillation(teacher, **kwargs)


def batch() -> Padded:
    data = 0.1 * torch.randn(3, 6000, generator=torch.Generator().manual_seed(0))
    return Padded(data, torch.tensor([6000, 6000, 4000]))


def test_the_loss_is_the_distance_of_the_last_layers_over_valid_frames() -> None:
    model, distillation = system()
    model.eval()
    frames, distance = distillation.frames(model, batch())
    torch.testing.assert_close(frames.data, model.frames(batch()).data, rtol=1e-5, atol=1e-6)
    # clip by clip, the student as the teacher cut after its first block
    cut = load_upstream("hubert", preset="hubert_tiny", num_layers=1)
    own = cut.state_dict()
    own.update({k: v for k, v in distillation.teacher.state_dict().items() if k in own})
    cut.load_state_dict(own)
    squares = []
    for clip in batch().unpad():
        ours = cut(clip[None])["audio"].hidden_states[-1][0]
        theirs = distillation.teacher(clip[None])["audio"].hidden_states[-1][0]
        squares.append((ours - theirs).double().square().flatten())
    assert distance.item() == pytest.approx(torch.cat(squares).mean().item(), rel=1e-5)
    assert distance > 0


def test_each_loss_reaches_what_the_paper_says() -> None:
    model, distillation = system()
    adapters = {id(p) for p in model.upstream.adapter_parameters()}
    shared = [p for p in model.upstream.parameters() if id(p) not in adapters]

    def reached(loss: torch.Tensor, parameters: Any) -> bool:
        found = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
        return any(g is not None and bool(g.abs().max() > 0) for g in found)

    frames, distance = distillation.frames(model, batch())
    with isolated_rng(0):
        speaker = MarginSoftmax(8, 4)(model.encode(frames), torch.tensor([0, 1, 2])).loss
    assert reached(distance, shared)
    assert not reached(distance, model.upstream.adapter_parameters())
    assert not reached(distance, [*model.encoder.parameters(), *model.interface.parameters()])
    assert reached(speaker, shared)
    assert reached(speaker, model.upstream.adapter_parameters())
    assert reached(speaker, model.encoder.parameters())
    (speaker + distance).backward()
    assert all(p.grad is None and not p.requires_grad for p in distillation.teacher.parameters())


def test_the_weight_falls_to_zero_over_a_stage() -> None:
    _, distillation = system()
    assert [distillation.weight_at(step, 4) for step in range(4)] == [100, 75, 50, 25]
    assert system(weight=2.0, decays=False)[1].weight_at(3, 4) == 2


def tones(folder: Path, speakers: int, clips: int) -> list[Clip]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for place in range(speakers):
        for number in range(clips):
            clock = torch.arange(6400) / 16000
            pitch = 120 * 1.25**place * (1 + 0.01 * number)
            wave = torch.stack([torch.sin(2 * math.pi * pitch * k * clock) / k for k in range(1, 6)]).sum(0)
            wave = 0.1 * wave + 0.01 * torch.randn(len(clock), generator=generator)
            path = folder / f"{place}-{number}.wav"
            soundfile.write(path, wave.numpy(), 16000, subtype="FLOAT")
            found.append(Clip(path.stem, audio=str(path), speaker=f"s{place}", duration=0.4))
    return found


def train(folder: Path, clips: list[Clip], steps: int, **kwargs: Any) -> Any:
    model, distillation = system(**kwargs)
    parts = hold_out_speakers(clips, 2)
    with isolated_rng(0):
        loss = MarginSoftmax(8, num_classes(parts[0], (1.0,)))
    stage = SpeakerStage(steps, 5e-3, 1e-3, upstream_learning_rate=1e-3, crop_seconds=(0.3, 0.4), perturb_speed=False)
    settings: dict[str, Any] = {"speeds": (1.0,), "batch_size": 8, "log_every": 1, "eval_every": steps}
    return model, train_speaker(
        model, loss, *parts, folder / "run", stages=[stage], distillation=distillation, **settings
    )


def test_three_steps_train_adapters_and_shared_weights(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in system()[0].state_dict().items()}
    clips = tones(tmp_path, 4, 3)
    model, result = train(tmp_path, clips, 3)
    assert len(result.history) == 3
    assert all(row["distillation"] > 0 for row in result.history)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(".adapter." in name for name in moved)
    assert any(name.startswith("upstream.body.encoder") and ".adapter." not in name for name in moved)
    # again: nothing to do; with another weight: refused
    assert train(tmp_path, clips, 3)[1].resumed_from == 3
    with pytest.raises(ConfigError, match="other clips or settings"):
        train(tmp_path, clips, 3, weight=1.0)
    save_speaker_model(tmp_path / "model", model)
    loaded = load_speaker_model(tmp_path / "model")
    torch.testing.assert_close(loaded.embed(batch()), model.embed(batch()))


@pytest.mark.slow
def test_it_learns_speakers_and_stays_near_its_teacher(tmp_path: Path) -> None:
    clips = tones(tmp_path, 6, 6)
    _, result = train(tmp_path, clips, 50)
    first, last = result.history[:10], result.history[-10:]

    def mean(rows: list[dict[str, float]], name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    assert mean(last, "accuracy") > 0.9 > result.history[0]["accuracy"]
    assert mean(last, "distillation") < 0.8 * mean(first, "distillation")
    assert result.best["dev_eer"] < 0.2


def test_models_without_a_student_are_refused() -> None:
    model, distillation = system()
    frozen = build_speaker_model("speech_student", upstream_kwargs=STUDENT, encoder_kwargs=ENCODER)
    with pytest.raises(ConfigError, match="speech_student with train_upstream=True"):
        distillation.check(frozen)
    with pytest.raises(ConfigError, match="one width and hop"):
        Distillation(load_upstream("fbank")).check(model)
    with pytest.raises(ConfigError, match="above 0"):
        Distillation(load_upstream("fbank"), weight=0)


def test_the_report_counts_what_there_is() -> None:
    student, distillation = system()
    teacher = build_speaker_model(
        "hubert", "ecapa_tdnn", upstream_kwargs={"preset": "hubert_tiny"}, encoder_kwargs=ENCODER
    )
    report = compare_models(student, teacher, seconds=0.5, rounds=2)
    assert report.parameters == sum(p.numel() for p in student.parameters())
    assert report.reference_upstream_parameters == sum(p.numel() for p in distillation.teacher.parameters())
    assert report.megabytes == pytest.approx(4e-6 * report.parameters, rel=0.05)  # and running statistics
    assert min(report.milliseconds, report.upstream_milliseconds, report.reference_upstream_milliseconds) > 0
    assert report.seconds == 0.5
    assert student.training
    assert report.render().splitlines()[3].startswith("| size, MB |")
