"""What cannot work stops with an error that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image

from mmssl.errors import ConfigError, DataError, InputError
from mmssl.objectives.losses.info_nce import InfoNCE
from mmssl.objectives.losses.nt_xent import NTXent
from mmssl.objectives.methods.data2vec import data2vec
from mmssl.objectives.methods.mae import mae
from mmssl.objectives.methods.simclr import simclr
from mmssl.objectives.methods.wav2vec2 import wav2vec2
from mmssl.objectives.objective import Objective
from mmssl.training.pretrain import pretrain
from mmssl.training.readers import VideoReader
from mmssl.types import Clip
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.video_mae import VideoMAE
from mmssl.upstreams.vit_mae import MAE

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 32, "patch_size": 4}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for number in range(4):
        wav, picture = folder / f"{number}.wav", folder / f"{number}.png"
        generator = torch.Generator().manual_seed(number)
        soundfile.write(wav, (0.1 * torch.randn(2000, generator=generator)).numpy(), 16000)
        Image.new("RGB", (16, 16), (50 * number, 0, 0)).save(picture)
        found.append(Clip(f"c{number}", audio=str(wav), image=str(picture)))
    return found


def speech() -> SpeechTransformer:
    return SpeechTransformer("wav2vec2_tiny", dropout=0.0, layer_drop=0.0)


def pictures() -> MAE:
    return MAE("tiny", image_size=16, **SIZES)


def video() -> Objective:
    from mmssl.objectives.methods.video_mae import video_mae

    return video_mae(VideoMAE("tiny", image_size=16, **SIZES), decoder_size=16, decoder_layers=1, decoder_heads=2)


def nan_weights() -> Objective:
    objective = mae(pictures(), decoder_size=16, decoder_layers=1, decoder_heads=2)
    with torch.no_grad():
        next(objective.parameters()).fill_(float("nan"))
    return objective


def nan_gradient() -> Objective:
    objective = mae(pictures(), decoder_size=16, decoder_layers=1, decoder_heads=2)
    next(p for p in objective.parameters() if p.requires_grad).register_hook(lambda grad: grad * float("nan"))
    return objective


CASES: dict[str, tuple[Callable[[], Objective], dict[str, Any], type[Exception], str]] = {
    "a batch of one has no negatives": (
        lambda: simclr(pictures(), hidden_size=16, size=8),
        {"batch_size": 1},
        InputError,
        "at least 2 clips",
    ),
    "no negatives": (lambda: wav2vec2(speech(), num_negatives=0), {}, ConfigError, "at least one negative"),
    "a mask of probability 0": (lambda: data2vec(speech(), mask_probability=0.0), {}, ConfigError, "hide nothing"),
    "clips shorter than a span": (
        lambda: data2vec(speech(), top_k=2, mask_span=500),
        {},
        InputError,
        "mask hides nothing",
    ),
    "every patch hidden": (lambda: mae(pictures(), mask_ratio=1.0), {}, ConfigError, "ratio"),
    "a loss that is not a number": (nan_weights, {"batch_size": 4}, InputError, "loss of the term .* is nan at step 0"),
    "a gradient that is not a number": (nan_gradient, {"batch_size": 4}, InputError, "gradient is nan at step 0"),
    "video of a corpus of sound": (
        video,
        {"reader": VideoReader(2, (16, 16), 7.5), "batch_size": 2},
        DataError,
        "has no video",
    ),
    "a batch without a size": (
        lambda: mae(pictures(), decoder_size=16, decoder_layers=1, decoder_heads=2),
        {},
        ConfigError,
        "how large a batch is",
    ),
    "a warm-up past the end": (lambda: data2vec(speech(), top_k=2), {"warmup_steps": 9}, ConfigError, "warmup_steps"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_stops_with_a_clear_error(case: str, clips: list[Clip], tmp_path: Path) -> None:
    build, changes, error, message = CASES[case]
    torch.manual_seed(0)
    with pytest.raises(error, match=message):
        pretrain(build(), clips, tmp_path, **{"learning_rate": 1e-3, "max_steps": 2, "batch_seconds": 20.0, **changes})
    assert not (tmp_path / "last.ckpt").exists()


def test_losses_that_contrast_clips_refuse_a_single_one() -> None:
    for loss in (InfoNCE(), NTXent()):
        with pytest.raises(InputError, match="needs at least 2, got 1"):
            loss(torch.ones(1, 4), torch.ones(1, 4))
