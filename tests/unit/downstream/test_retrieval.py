from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.downstream.matching import matching_accuracy, matching_trials, matching_verification
from mmssl.downstream.retrieval import CrossModalRetrieval, paired_info_nce
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.metrics.retrieval import retrieval_metrics
from mmssl.training.fit import fit, predict
from mmssl.types import Layers, StreamSpec

SPECS = {"audio": StreamSpec((6, 6), (320, 320)), "image": StreamSpec((4,), (0,))}


def build(**kwargs: object) -> CrossModalRetrieval:
    torch.manual_seed(0)
    return CrossModalRetrieval(
        {name: build_interface("weighted_sum", spec) for name, spec in SPECS.items()}, embedding_size=5, **kwargs
    )


class Clips(torch.utils.data.Dataset):
    """Both streams show the same hidden vector of three numbers, one per clip."""

    def __init__(self, count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        maps = torch.Generator().manual_seed(99)
        hidden = torch.randn(count, 3, generator=draw)
        to_audio, to_image = torch.randn(3, 6, generator=maps), torch.randn(3, 4, generator=maps)
        noise = 0.1 * torch.randn(count, 4, 6, generator=draw)
        self.audio = (hidden @ to_audio)[:, None] + noise
        self.image = (hidden @ to_image)[:, None].repeat(1, 2, 1)

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, index: int) -> tuple[dict[str, Layers], int]:
        audio, image = self.audio[index], self.image[index]
        return {
            "audio": Layers((audio, -audio), (torch.tensor(4),) * 2),
            "image": Layers((image,), (torch.tensor(2),)),
        }, index


def test_the_loss_is_clips_figure_3() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 4, generator=draw), torch.randn(5, 4, generator=draw)
    x, y = (m.numpy() / np.linalg.norm(m.numpy(), axis=1, keepdims=True) for m in (a, b))
    logits = np.exp(x @ y.T / 0.2)
    want = -np.mean(
        [np.log(logits[i, i] / logits[i].sum()) + np.log(logits[i, i] / logits[:, i].sum()) for i in range(5)]
    )
    assert float(paired_info_nce(a, b, torch.arange(5), 0.2)) == pytest.approx(want / 2, rel=1e-5)
    # clips 0 and 1 are about the same: left out of each other's denominator
    same = torch.tensor([0, 0, 1, 2, 3])
    kept = logits.copy()
    kept[0, 1] = kept[1, 0] = 0
    want = -np.mean([np.log(kept[i, i] / kept[i].sum()) + np.log(kept[i, i] / kept[:, i].sum()) for i in range(5)])
    assert float(paired_info_nce(a, b, same, 0.2)) == pytest.approx(want / 2, rel=1e-5)


def test_the_trainer_teaches_retrieval_from_several_streams() -> None:
    task = build(hidden_size=8)
    result = fit(task, Clips(128, 0), Clips(24, 1), learning_rate=0.02, max_steps=60, batch_size=32, eval_every=30)
    assert result.monitor == "dev_r1"
    assert result.best_score > 0.4
    embeddings, ids = predict(task, Clips(24, 2), batch_size=7)
    assert embeddings.shape == (24, 2, 5)
    found = task.metrics(embeddings, ids)
    assert found["r1"] > 0.4
    assert found["audio_to_image_median_rank"] <= 2
    table = (embeddings[:, 0] @ embeddings[:, 1].T).double().numpy()
    assert found["r5"] == pytest.approx(retrieval_metrics(table)["r5"], abs=0.05)


def test_pooled_layers_give_the_same_embeddings() -> None:
    task = build()
    assert task.affine
    clip, _ = Clips(1, 0)[0]
    whole = {
        s: Layers(tuple(h[None] for h in x.hidden_states), tuple(n[None] for n in x.lengths)) for s, x in clip.items()
    }
    one = torch.ones(1, dtype=torch.int64)
    pooled = {
        s: Layers(tuple(h.mean(1, keepdim=True) for h in x.hidden_states), (one,) * len(x)) for s, x in whole.items()
    }
    torch.testing.assert_close(task.predict(pooled), task.predict(whole))


def test_wrong_batches_are_refused() -> None:
    task = build()
    clip, _ = Clips(1, 0)[0]
    whole = {
        s: Layers(tuple(h[None] for h in x.hidden_states), tuple(n[None] for n in x.lengths)) for s, x in clip.items()
    }
    with pytest.raises(InputError, match="between audio and image"):
        task({"audio": whole["audio"]}, torch.zeros(1, dtype=torch.int64))
    empty = Layers(whole["image"].hidden_states, (torch.zeros(1, dtype=torch.int64),))
    with pytest.raises(InputError, match="lacks the stream image"):
        task(whole | {"image": empty}, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="whole numbers"):
        task(whole, torch.zeros(1))
    with pytest.raises(ConfigError, match="two streams"):
        CrossModalRetrieval({"audio": build_interface("weighted_sum", SPECS["audio"])})


def test_matching_faces_and_voices() -> None:
    rng = np.random.default_rng(0)
    persons = [f"p{k // 3}" for k in range(30)]
    groups = ["m" if k // 3 < 5 else "f" for k in range(30)]
    trials = matching_trials(persons, 4, torch.Generator().manual_seed(0), groups)
    assert trials.candidates.shape == (30, 4)
    for probe, row, answer in zip(trials.probes, trials.candidates, trials.answers, strict=True):
        chosen = [persons[k] for k in row]
        assert chosen[answer] == persons[probe]
        assert len(set(chosen)) == 4
        assert probe not in row
        assert {groups[k] for k in row} == {groups[probe]}
    again = matching_trials(persons, 4, torch.Generator().manual_seed(0), groups)
    assert np.array_equal(again.candidates, trials.candidates)
    centres = rng.normal(size=(10, 8))
    voices, faces = (np.stack([centres[k // 3] for k in range(30)]) + 0.01 * rng.normal(size=(30, 8)) for _ in range(2))
    assert matching_accuracy(voices, faces, trials) == 1
    assert matching_verification(voices, faces, trials)["eer"] == 0
    assert matching_accuracy(np.ones((30, 3)), np.ones((30, 3)), trials) == pytest.approx(0.25)
    with pytest.raises(InputError, match="needs 6 other persons"):
        matching_trials(persons, 7, torch.Generator(), groups)
    with pytest.raises(InputError, match="two clips"):
        matching_trials(["a", "b"], 2, torch.Generator())
