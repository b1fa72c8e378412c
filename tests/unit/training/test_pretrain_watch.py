"""The watcher: collapsed runs are named by their cause, healthy ones are left alone; what is found is kept."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from PIL import Image

from mmssl.errors import ConfigError, InputError
from mmssl.nn.quantizers import GumbelQuantizer
from mmssl.objectives.losses.cosine import Cosine
from mmssl.objectives.methods.dino import dino
from mmssl.objectives.methods.simclr import simclr
from mmssl.objectives.methods.wav2vec2 import wav2vec2
from mmssl.objectives.objective import Objective
from mmssl.objectives.projectors import MLP
from mmssl.objectives.targets.other_view import PeerView
from mmssl.objectives.term import Term
from mmssl.objectives.view_encoders import ImageViewEncoder
from mmssl.objectives.views_augmented import Augmented, simclr_chain
from mmssl.training.pretrain import PretrainResult, pretrain
from mmssl.training.pretrain_watch import WARNINGS, CollapseWatcher, find, read_warnings
from mmssl.types import Clip
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.vit_mae import MAE


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("images")
    rng = numpy.random.default_rng(0)
    for number in range(16):
        pixels = numpy.kron(rng.integers(0, 255, (4, 4, 3)), numpy.ones((4, 4, 1)))
        Image.fromarray(pixels.astype(numpy.uint8)).save(folder / f"{number}.png")
    return [Clip(f"c{k}", image=str(folder / f"{k}.png")) for k in range(16)]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("wav")
    rng = numpy.random.default_rng(0)
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", rng.standard_normal(4000) * 0.1, 16000)
    return [Clip(f"c{k}", audio=str(folder / f"{k}.wav")) for k in range(6)]


def vit() -> MAE:
    torch.manual_seed(0)
    return MAE("tiny", hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=16)


def byol_without_predictor_and_stop_gradient() -> Objective:
    upstream = vit()
    head = MLP((24, 32, 16), batch_norm=False)
    views = Augmented(simclr_chain(16, (0.3, 1.0)), 2)
    term = Term("prediction", Cosine(), PeerView(head), head, where="all", pairs=((0, 1),), stream="image", pool=True)
    return Objective(ImageViewEncoder(upstream), views, [term], health_every=1)


def speech() -> Objective:
    torch.manual_seed(0)
    model = SpeechTransformer("wav2vec2_tiny")
    return wav2vec2(model, num_negatives=5, num_entries=5, size=8, mask_span=3, health_every=1)


def run(
    objective: Objective, clips: list[Clip], folder: Path, *, share: float = 0.1, settle: int = 20, **changes: Any
) -> PretrainResult:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 20, "batch_size": 16, "log_every": 1}
    settings |= {"decay": "constant", **changes}
    return pretrain(objective, clips, folder, **settings, callbacks=[CollapseWatcher(folder, share, settle)])


def kinds(folder: Path) -> set[str]:
    return {warned.kind for warned in read_warnings(folder)}


def test_views_that_are_only_pulled_together_collapse(
    pictures: list[Clip], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mmssl"):
        run(byol_without_predictor_and_stop_gradient(), pictures, tmp_path, learning_rate=1e-2)
    found = read_warnings(tmp_path)
    assert {"target_collapse"} <= {w.kind for w in found} <= {"target_collapse", "representation_collapse"}
    assert all("stop-gradient" in w.message or "learning rate" in w.message for w in found)
    assert len(found) == len({(w.kind, w.term) for w in found})
    assert [record.getMessage() for record in caplog.records] == [f"step {w.step}: {w.message}" for w in found]


def test_dino_without_centring_gives_one_output(pictures: list[Clip], tmp_path: Path) -> None:
    objective = dino(
        vit(),
        num_outputs=32,
        hidden_size=32,
        bottleneck_size=8,
        num_local=0,
        center_momentum=1.0,
        teacher_temperature=0.02,
        warmup_temperature=0.02,
        decay=(0.5, 0.5),
        frozen_epochs=0,
        health_every=1,
    )
    run(objective, pictures, tmp_path, learning_rate=5e-3)
    assert "code_collapse" in kinds(tmp_path)
    assert any("without centring" in w.message for w in read_warnings(tmp_path))


def test_a_codebook_of_one_code_is_named(sounds: list[Clip], tmp_path: Path) -> None:
    objective = speech()
    for module in objective.modules():
        if isinstance(module, GumbelQuantizer):
            module.logits.weight.data.zero_()
            module.logits.bias.data.copy_(torch.arange(len(module.logits.bias)) % 5 * 20.0)
    run(objective, sounds, tmp_path, max_steps=3, batch_size=3)
    assert "code_collapse" in kinds(tmp_path)


def test_healthy_runs_are_left_alone(pictures: list[Clip], sounds: list[Clip], tmp_path: Path) -> None:
    run(simclr(vit(), hidden_size=32, size=16, crop_scale=(0.5, 1.0), health_every=1), pictures, tmp_path / "a")
    run(speech(), sounds, tmp_path / "b", batch_size=6, settle=21)
    for name in "ab":
        assert read_warnings(tmp_path / name) == []
        assert not (tmp_path / name / WARNINGS).exists()


def test_a_loss_that_is_not_finite_stops_the_run(pictures: list[Clip], tmp_path: Path) -> None:
    objective = byol_without_predictor_and_stop_gradient()
    next(objective.encoder.upstream.parameters()).data.fill_(math.nan)
    with pytest.raises(InputError, match="at step 0: look for"):
        run(objective, pictures, tmp_path)


def test_a_resumed_run_neither_repeats_nor_forgets(pictures: list[Clip], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-2}
    run(byol_without_predictor_and_stop_gradient(), pictures, tmp_path / "a", **settings)
    whole = read_warnings(tmp_path / "a")
    first = whole[0].step
    run(byol_without_predictor_and_stop_gradient(), pictures, tmp_path / "b", max_steps=first, **settings)
    before = read_warnings(tmp_path / "b")
    assert [w.step for w in before] == [w.step for w in whole if w.step <= first]
    (tmp_path / "b" / WARNINGS).write_text('{"step": 99, "kind": "stuck", "term": "", "message": "of a later step"}\n')
    run(byol_without_predictor_and_stop_gradient(), pictures, tmp_path / "b", **settings)
    assert read_warnings(tmp_path / "b") == whole
    rows = [json.loads(line) for line in (tmp_path / "b" / WARNINGS).read_text().splitlines()]
    assert set(rows[0]) == {"step", "kind", "term", "message"}


def history(**columns: list[float]) -> list[dict[str, float]]:
    """Rows of the term t, ten steps apart."""
    length = max(len(values) for values in columns.values())
    rows: list[dict[str, float]] = [{"step": 10.0 * (k + 1), "loss": 2.0} for k in range(length)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=False):
            row[name if name == "loss" else f"t/{name}"] = value
    return rows


def found(**columns: list[float]) -> list[str]:
    return [w.kind for w in find(history(**columns), settle=30)]


def test_collapse_is_a_share_of_the_start() -> None:
    size = [1.0] * 4
    assert found(target_spread=[0.5, 0.4, 0.04, 0.04], target_rank=[9.0] * 4, target_size=size) == ["target_collapse"]
    assert found(target_spread=[0.5, 0.4, 0.06, 0.04], target_rank=[9.0] * 4, target_size=size) == []
    # vectors that shrink as a whole still differ
    shrunk = {"representation_spread": [0.5, 0.1, 0.02, 0.02], "representation_size": [1.0, 0.2, 0.04, 0.04]}
    assert found(**shrunk, representation_rank=[9.0] * 4) == []
    gone = {"representation_spread": [0.5, 0.1, 1e-3, 1e-3], "representation_size": [1.0, 0.2, 2e-3, 2e-3]}
    assert found(**gone, representation_rank=[9.0] * 4) == ["representation_collapse"]
    wide = {"representation_spread": [0.5] * 4, "representation_size": size}
    assert found(**wide, representation_rank=[11.0, 5.0, 1.5, 1.9]) == ["representation_collapse"]
    assert found(**wide, representation_rank=[11.0, 5.0, 1.5, 2.1]) == []


def test_hidden_frames_as_easy_as_visible_ones() -> None:
    assert found(accuracy=[0.1, 0.3, 0.8, 0.9], visible_accuracy=[0.1, 0.4, 0.81, 0.9]) == ["no_context"]
    assert found(accuracy=[0.1, 0.3, 0.6, 0.7], visible_accuracy=[0.1, 0.4, 0.9, 0.95]) == []
    # at the start both guess; and the commonest code alone is no context
    assert found(accuracy=[0.3] * 4, visible_accuracy=[0.3] * 4) == []
    assert found(accuracy=[0.7] * 4, visible_accuracy=[0.7] * 4, code_usage_entropy=[0.6] * 4) == []


def test_losses_that_stay_or_rise() -> None:
    guess = math.log(100)
    assert found(loss=[guess] * 4, ln_n=[guess] * 4) == []
    columns = {"ln_n": [guess] * 4}
    assert [w.kind for w in find([row | {"t/loss": guess} for row in history(**columns)], settle=30)] == ["stuck"]
    assert [w.kind for w in find([row | {"t/loss": guess - 0.2} for row in history(**columns)], settle=30)] == []
    down, up = [4 - 0.1 * k for k in range(20)], [2 + 0.1 * k for k in range(20)]
    assert found(loss=down) == []
    assert found(loss=up) == ["rising"]
    assert found(loss=down + up) == ["rising"]
    assert found(loss=[*down, *up[:8]]) == []
    noisy = torch.randn(60, generator=torch.Generator().manual_seed(0)).abs() + 1
    assert found(loss=noisy.tolist()) == []
    assert found(teacher_entropy=[guess] * 4, ln_n=[guess] * 4) == ["flat_target"]
    # what rises with the teacher's entropy is not the student's doing
    assert found(loss=up, teacher_entropy=[1 + 0.11 * k for k in range(20)]) == []
    assert found(loss=up, teacher_entropy=[1 + 0.05 * k for k in range(20)]) == ["rising"]
    assert found(loss=up, teacher_entropy=[1 + 0.11 * k for k in range(20)], weight=[0.5] * 20) == ["rising"]


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for options in ({"share": 0.0}, {"share": 1.0}, {"settle": 0}):
        with pytest.raises(ConfigError):
            CollapseWatcher(tmp_path, **options)
    assert read_warnings(tmp_path) == []
    assert find([]) == []
