from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.downstream.fusion import ScoreFusion
from mmssl.downstream.margin import MarginSoftmax
from mmssl.downstream.plda import Plda
from mmssl.downstream.scoring import as_norm, cohort_means, cosine_scores
from mmssl.downstream.speaker import SpeakerEmbedding
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.metrics.calibration import calibration_metrics
from mmssl.metrics.speaker_bootstrap import speaker_bootstrap
from mmssl.metrics.verification import verification_metrics
from mmssl.nn.resnet_speaker import ResNetEncoder
from mmssl.nn.tdnn import EcapaEncoder, XVectorEncoder
from mmssl.random import isolated_rng
from mmssl.types import Layers, StreamSpec

SPEC = StreamSpec((12, 12), (160, 160))
FRAMES = 12


def clips(speakers: range, per_speaker: int, seed: int, frames: int = FRAMES) -> list[tuple[Layers, int]]:
    """Four features hold the speaker, the others a strong channel of each clip; the second layer is noise."""
    voices = torch.randn(200, 4, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    made = []
    for speaker in speakers:
        for _ in range(per_speaker):
            own = torch.cat([voices[speaker], 1.5 * torch.randn(8, generator=generator)])
            states = (
                own + 0.5 * torch.randn(frames, 12, generator=generator),
                torch.randn(frames, 12, generator=generator),
            )
            made.append((Layers(states, (torch.tensor(frames),) * 2), speaker))
    return made


def batch(items: list[tuple[Layers, int]]) -> tuple[Layers, torch.Tensor]:
    from mmssl.data.collate import collate_layers

    return collate_layers([layers for layers, _ in items]), torch.tensor([speaker for _, speaker in items])


def build(encoder: str = "ecapa", classes: int = 10, centre: bool = False) -> SpeakerEmbedding:
    with isolated_rng(0):
        interface = build_interface("weighted_sum", SPEC)
        encoders = {
            "ecapa": lambda: EcapaEncoder(12, 16, 24, 8, scale=4, bottleneck=8, attention_size=8),
            "xvector": lambda: XVectorEncoder(12, 16, 24, 8),
            "resnet": lambda: ResNetEncoder(12, 18, 4, 8),
        }
        return SpeakerEmbedding(interface, encoders[encoder](), MarginSoftmax(8, classes, "aam", 0.2, 15.0), centre)


@pytest.mark.parametrize("encoder", ["ecapa", "xvector", "resnet"])
@pytest.mark.parametrize("centre", [False, True])
def test_embeddings_do_not_depend_on_the_batch(encoder: str, centre: bool) -> None:
    task = build(encoder, centre=centre)
    items = clips(range(3), 1, 0) + clips(range(2), 1, 1, frames=17)
    together = task.predict(batch(items)[0])
    assert task.training
    for row, item in enumerate(items):
        torch.testing.assert_close(task.predict(batch([item])[0])[0], together[row], rtol=1e-4, atol=1e-5)


def test_training_scores_speakers_and_judging_compares_clips() -> None:
    task = build()
    layers, targets = batch(clips(range(5), 2, 0))
    out = task(layers, targets)
    assert out.predictions.shape == (10, 10)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
    task.eval()
    judged = task(layers, targets + 100)  # speakers that the loss does not know
    torch.testing.assert_close(judged.predictions, task.predict(layers))
    unit = torch.nn.functional.normalize(judged.predictions)
    cosine = (unit @ unit.t()).detach()
    pairs = [(i, j) for i in range(10) for j in range(10) if i != j]
    within = torch.stack([cosine[i, j] for i, j in pairs if targets[i] == targets[j]]).mean()
    between = torch.stack([cosine[i, j] for i, j in pairs if targets[i] != targets[j]]).mean()
    torch.testing.assert_close(judged.loss.detach(), 1 - within + between)
    found = task.metrics(judged.predictions.detach(), targets)
    rows = torch.triu_indices(10, 10, 1).numpy()
    expected = verification_metrics(cosine_scores(unit.detach(), *rows), targets[rows[0]] == targets[rows[1]])
    assert found == pytest.approx(expected | {"one_minus_eer": 1 - expected["eer"]})


def test_from_training_to_calibrated_scores_of_unseen_speakers() -> None:
    from mmssl.training.fit import fit

    train, dev, test = clips(range(40), 20, 0), clips(range(40, 60), 5, 1), clips(range(60, 90), 5, 2)
    task = build("xvector", classes=40)
    untrained = task.metrics(task.predict(batch(test)[0]), batch(test)[1])["eer"]
    result = fit(task, train, dev, learning_rate=1e-2, max_steps=100, eval_every=50, batch_size=80)
    assert result.monitor == "dev_one_minus_eer"
    vectors = {name: task.predict(batch(part)[0]).numpy() for name, part in [("train", train), ("dev", dev)]}
    vectors["test"] = task.predict(batch(test)[0]).numpy()
    speakers = {name: batch(part)[1].numpy() for name, part in [("train", train), ("dev", dev), ("test", test)]}
    cohort = cohort_means(vectors["train"], speakers["train"].tolist())
    plda = Plda(5).fit(vectors["train"], speakers["train"].tolist())
    tables, labels, sides = {}, {}, {}
    for name in ("dev", "test"):
        first, second = torch.triu_indices(len(vectors[name]), len(vectors[name]), 1).numpy()
        raw = cosine_scores(vectors[name], first, second)
        normed = as_norm(raw, vectors[name], first, second, cohort, top=30)
        tables[name] = np.stack([raw, normed, plda.scores(vectors[name], first, second)], axis=1)
        sides[name] = speakers[name][first], speakers[name][second]
        labels[name] = sides[name][0] == sides[name][1]
    errors = [verification_metrics(column, labels["test"])["eer"] for column in tables["test"].T]
    assert untrained > 0.3
    assert max(errors) < 0.15
    llrs = ScoreFusion(prior=0.1).fit(tables["dev"], labels["dev"]).llrs(tables["test"])
    assert verification_metrics(llrs, labels["test"])["eer"] < min(errors) + 0.02
    calibration = calibration_metrics(llrs, labels["test"])
    assert calibration["cllr"] < calibration["min_cllr"] + 0.15
    low, high = speaker_bootstrap(llrs, labels["test"], *sides["test"], ["eer"], 100)["eer"]
    assert low < verification_metrics(llrs, labels["test"])["eer"] < high


def test_mistakes_are_named() -> None:
    task = build()
    with pytest.raises(ConfigError, match=r"width 8, the loss takes 9.*encoder.output_size"):
        SpeakerEmbedding(task.interface, task.encoder, MarginSoftmax(9, 5))
    with pytest.raises(InputError, match="got 1 speakers and 2 clips"):
        task.metrics(torch.randn(2, 8), torch.tensor([1, 1]))
    with pytest.raises(InputError, match="Classes must lie in 0 to 9"):
        task(*batch(clips(range(9, 12), 1, 0)))
