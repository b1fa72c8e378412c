from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.downstream.mil import MultipleInstance, bag_sizes, modality_contrast, top_k_mean
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.aligned import AlignedStreams
from mmssl.metrics.ranking import average_precision
from mmssl.types import Layers, Padded, StreamSpec, UpstreamSpec

SPEC = UpstreamSpec(
    ("waveforms", "video"),
    {"audio": StreamSpec((3,), (640,)), "video": StreamSpec((4,), (1,))},
    sample_rate=16000,
    video_fps=25.0,
)


def padded(lengths: list[int], size: int, seed: int, fill: float = float("nan")) -> Padded:
    data = torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(seed))
    for row, n in zip(data, lengths, strict=True):
        row[n:] = fill
    return Padded(data, torch.tensor(lengths))


def batch(seed: int, clips: int = 16) -> tuple[dict[str, Layers], Tensor, Tensor]:
    """Clips of 20 snippets; in positive ones, two neighbouring snippets have an event heard and seen."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (clips,), generator=draw)
    audio, video = (torch.randn(clips, 20, n, generator=draw) for n in (3, 4))
    where = torch.zeros(clips, 20, dtype=torch.bool)
    for clip, label in enumerate(targets.tolist()):
        first = int(torch.randint(0, 19, (), generator=draw))
        where[clip, first : first + 2] = bool(label)
    audio[where, 0] += 4
    video[where, 1] += 4
    lengths = (torch.full((clips,), 20),)
    return {"audio": Layers((audio,), lengths), "video": Layers((video,), lengths)}, targets, where


def build(**kwargs: float) -> MultipleInstance:
    torch.manual_seed(0)
    return MultipleInstance(AlignedStreams(SPEC), hidden_size=8, **kwargs)


def test_a_clips_score_is_the_mean_of_its_highest_snippets() -> None:
    scores = padded([40, 16, 15, 1], 1, 0)
    flat = Padded(scores.data[..., 0], scores.lengths)
    assert bag_sizes(flat.lengths).tolist() == [3, 2, 1, 1]
    for clip, k in enumerate((3, 2, 1, 1)):
        want = np.sort(flat.unpad()[clip].numpy())[::-1][:k].mean()
        assert float(top_k_mean(flat)[clip]) == pytest.approx(float(want), rel=1e-5)


def slow_contrast(a: Padded, v: Padded, sa: Tensor, sv: Tensor, positive: list[bool]) -> list[float]:
    """The authors' four losses, in numpy: background a->v plus v->a, then normal."""
    rows: dict[str, dict[str, list[np.ndarray]]] = {}
    for name, x, s in (("a", a, sa), ("v", v, sv)):
        rows[name] = {"bag": [], "bgd": [], "nor": []}
        for clip, n in enumerate(x.lengths.tolist()):
            k, order = n // 16 + 1, np.argsort(s[clip, :n].numpy())
            reps = x.data[clip].numpy()
            rows[name]["bgd"] += list(reps[order[:k]])
            if positive[clip]:
                rows[name]["bag"] += [reps[order[-k:]].mean(0)] * k
            else:
                rows[name]["nor"] += list(reps[order[-k:]])

    def unit(x: list[np.ndarray]) -> np.ndarray:
        return np.stack(x) / np.linalg.norm(np.stack(x), axis=1, keepdims=True)

    found = []
    for kind in ("bgd", "nor"):
        total = 0.0
        for one, other in (("a", "v"), ("v", "a")):
            q, p, n = unit(rows[one]["bag"]), unit(rows[other]["bag"]), unit(rows[other][kind])
            own, rest = np.exp((q * p).sum(1) / 0.1), np.exp(q @ n.T / 0.1).sum(1)
            total += float(-np.log(own / (own + rest)).mean())
        found.append(total)
    return found


def test_the_contrast_is_that_of_the_authors() -> None:
    lengths, positive = [20, 33, 5, 17], [True, False, True, False]
    a, v = padded(lengths, 6, 1), padded(lengths, 6, 2)
    sa, sv = (padded(lengths, 1, seed).data[..., 0] for seed in (3, 4))
    found = modality_contrast(a, v, sa, sv, torch.tensor(positive))
    assert [float(x) for x in found] == pytest.approx(slow_contrast(a, v, sa, sv, positive), rel=1e-4)
    for all_the_same in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        assert [float(x) for x in modality_contrast(a, v, sa, sv, all_the_same)] == [0, 0]


def test_self_distillation_moves_the_video_encoder_alone() -> None:
    task = build(momentum=0.9)
    before = {name: p.clone() for name, p in task.named_parameters()}
    other = dict(task.video_alone.named_parameters())
    task.distil()
    for name, parameter in task.named_parameters():
        want = before[name]
        if name.startswith("encoders.video."):
            want = 0.9 * want + 0.1 * other[name.removeprefix("encoders.video.")]
        torch.testing.assert_close(parameter, want)
    task.eval()
    after = {name: p.clone() for name, p in task.named_parameters()}
    streams, targets, _ = batch(0)
    task(streams, targets)
    assert all(torch.equal(after[name], p) for name, p in task.named_parameters())


def test_padding_is_not_seen() -> None:
    task = build().eval()
    streams, _, _ = batch(0, 2)
    short = torch.tensor([20, 12])
    for layers in streams.values():
        layers.hidden_states[0][1, 12:] = float("nan")
    given = {name: Layers(layers.hidden_states, (short,)) for name, layers in streams.items()}
    alone = {name: Layers((x.hidden_states[0][1:, :12],), (short[1:],)) for name, x in streams.items()}
    torch.testing.assert_close(task.predict(given)[1:], task.predict(alone))
    assert bool((task.snippet_scores(given).data[1, 12:] == 0).all())
    given_loss = task.train()(given, torch.tensor([0, 1])).loss
    given_loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in task.parameters() if p.grad is not None)


def test_labels_of_clips_teach_which_snippets() -> None:
    task = build()
    optimizer = torch.optim.Adam(task.parameters(), 0.01)
    for step in range(60):
        streams, targets, _ = batch(step)
        optimizer.zero_grad()
        task(streams, targets).loss.backward()
        optimizer.step()
    streams, targets, where = batch(1000, 48)
    assert task.metrics(task.predict(streams), targets)["ap"] > 0.9
    snippets = task.snippet_scores(streams)
    assert average_precision(snippets.data.numpy().ravel(), where.numpy().ravel()) > 0.7
    with pytest.raises(InputError, match="0 and 1"):
        task(streams, targets + 1)
    with pytest.raises(ConfigError, match="momentum"):
        build(momentum=2.0)
