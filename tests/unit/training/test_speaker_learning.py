"""What speaker training is for: speakers that were never heard are told apart better than by averages of log-mel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mmssl.data.trials import make_trials
from mmssl.downstream.margin import MarginSoftmax
from mmssl.downstream.scoring import cosine_scores
from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.media.audio import load_audio
from mmssl.media.mini import make_mini
from mmssl.metrics.verification import verification_metrics
from mmssl.random import isolated_rng
from mmssl.training.speaker import SpeakerStage, num_classes, train_speaker
from mmssl.training.speaker_data import hold_out_speakers
from mmssl.training.speaker_files import build_speaker_model
from mmssl.types import Clip, Padded

pytestmark = pytest.mark.slow
Embed = Callable[[Padded], torch.Tensor]


def eer_of(embed: Embed, clips: Sequence[Clip]) -> float:
    """EER of cosine scores over all trials that `make_trials` draws of some clips."""
    trials = make_trials({clip.id: str(clip.speaker) for clip in clips}, per_speaker=300)
    rows = []
    for clip in clips:
        wave, _ = load_audio(str(clip.audio), sample_rate=16000)
        rows.append(embed(Padded(wave[None], torch.tensor([len(wave)])))[0])
    pairs = trials.rows([clip.id for clip in clips])
    return verification_metrics(cosine_scores(torch.stack(rows).numpy(), *pairs), trials.is_target)["eer"]


def mean_log_mel(waveforms: Padded) -> torch.Tensor:
    fbank = build_speaker_model("fbank", "xvector", centre=False)
    frames = fbank.frames(waveforms)
    return frames.data.sum(1) / frames.lengths[:, None]


def trained(
    train: Sequence[Clip],
    dev: Sequence[Clip],
    folder: Path,
    steps: int,
    seconds: tuple[float, float],
) -> SpeakerModel:
    model = build_speaker_model(
        "fbank", "ecapa_tdnn", encoder_kwargs={"channels": 64, "joined_size": 128, "embedding_size": 48}
    )
    with isolated_rng(0):
        loss = MarginSoftmax(48, num_classes(train), margin=0.2)
    train_speaker(
        model,
        loss,
        train,
        dev,
        folder,
        stages=[SpeakerStage(steps, learning_rate=4e-3, final_learning_rate=4e-4, crop_seconds=seconds)],
        batch_size=24,
        on_error="skip",
        eval_every=steps // 4,
    )
    return model


def test_ecapa_beats_averages_of_log_mel_on_synthetic_speakers_never_heard(tmp_path: Path) -> None:
    clips = make_mini(tmp_path / "mini", num_speakers=18, sentences_per_speaker=2, num_sentences=10)
    names = sorted({str(clip.speaker) for clip in clips})
    test = [clip for clip in clips if clip.speaker in names[:6]]
    train, dev = hold_out_speakers([clip for clip in clips if clip.speaker not in names[:6]], 3, seed=1)
    model = trained(train, dev, tmp_path / "run", 120, (1.0, 1.2))
    floor, ours = eer_of(mean_log_mel, test), eer_of(model.embed, test)
    print(f"mini, 6 speakers never heard: mean log-mel {floor:.3f}, ECAPA {ours:.3f}")
    assert ours < floor - 0.08
