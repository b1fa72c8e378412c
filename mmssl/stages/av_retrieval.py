"""Stage 4 of recipes/av_retrieval: two streams in one space, and ranks of unseen speakers' clips in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from mmssl.data.streams import collate_streams
from mmssl.errors import ConfigError
from mmssl.metrics.retrieval import expected_ranks, recall_at
from mmssl.stages.av_features import AvClips, AvStore
from mmssl.stages.av_jobs import PairJob, pair_jobs
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO
from mmssl.stages.av_sync import fit_offsets
from mmssl.stages.context import Context
from mmssl.stages.fold_jobs import put_in_place, run_jobs
from mmssl.stages.probe import STANDARDIZED

Found = tuple[npt.NDArray[np.float64], list[str], tuple[int, int], float]
"""Similarity (N, N) of sound n and pictures m, the test clips, sizes of the other parts, and the learning rate."""

KS = (1, 5, 10)
GALLERIES = ("all", "speaker")
"""What is searched: all test clips of the fold, or those of the query's own speaker."""
SHOWN = 5


def train(context: Context) -> str:
    """Train a head on the frozen features of training speakers, and rank the clips of test speakers.

    Raises:
        ConfigError: the main encoder takes one stream only.
        DataError: a fold has an empty part.
    """
    done, kept = run_jobs(context, pair_jobs(context, "retrieval"), run_job)
    return f"{done} models trained, {kept} kept"


def run_job(job: PairJob) -> None:
    """Train one model on one fold and write its ranks.

    Raises:
        ConfigError: `retrieval.match` is neither "clips" nor "frames".
    """
    match = job.settings["match"]
    if match not in _MATCHES:
        raise ConfigError(f"retrieval.match must be {' or '.join(_MATCHES)}, got {match!r}.")
    similarity, ids, sizes, rate = _MATCHES[match](job)
    rows = ranks(similarity, ids, [job.facts[name][0] for name in ids])
    hits = [row["recall"][0] for row in rows if row["gallery"] == "all"]
    put_in_place(
        job,
        {
            "name": job.fold.name,
            "num_train": sizes[0],
            "num_dev": sizes[1],
            "num_test": len(ids),
            "learning_rate": rate,
            "metrics": {"r1": float(np.mean(hits)), "chance": 1 / len(ids)},
            "rows": rows,
        },
    )


def _by_clips(job: PairJob) -> Found:
    """Similarity of embeddings of whole clips, trained by InfoNCE."""
    from mmssl.training.fit import predict
    from mmssl.training.sweep import sweep

    settings = job.fit_settings()
    store = AvStore(job.root, job.record)
    # what belongs together is a clip's own sound and pictures
    numbers = {name: k for k, name in enumerate(job.facts)}
    train, dev, test = (
        AvClips(store, ids, numbers, BOTH, [AUDIO, VIDEO]) for ids in (job.fold.train, job.fold.dev, job.fold.test)
    )
    rates = settings.pop("learning_rates")
    result = sweep(_builder(job, store, train), train.batches(), dev.batches(), learning_rates=rates, **settings)
    answers, _ = predict(result.task, test.batches(), batch_size=64, device=job.device)
    both = answers.double().numpy()
    return both[:, 0] @ both[:, 1].T, test.ids, (len(train), len(dev)), result.learning_rate


def _by_frames(job: PairJob) -> Found:
    """Mean similarity of the frames that two clips have in common, trained to find offsets (`av_sync`)."""
    offsets = fit_offsets(job, job.settings["frames"])
    task: Any = offsets.result.task.cpu().eval()
    store, parts = AvStore(job.root, job.record), offsets.parts
    found = []
    with torch.no_grad():
        for clip in parts["test"]:
            whole = store.read(clip, BOTH)
            kept = {name: offsets.features.chosen(name, whole[name]) for name in (AUDIO, VIDEO)}
            found.append(task.frames(collate_streams([kept])))
    units = [{name: F.normalize(p.data[0], dim=-1).double().numpy() for name, p in clip.items()} for clip in found]
    table = np.asarray([[_in_common(one[AUDIO], other[VIDEO]) for other in units] for one in units])
    sizes = (len(parts["train"]), len(parts["dev"]))
    return table, list(parts["test"]), sizes, offsets.result.learning_rate


def _in_common(sound: npt.NDArray[np.float64], pictures: npt.NDArray[np.float64]) -> float:
    size = min(len(sound), len(pictures))
    return float((sound[:size] * pictures[:size]).sum(-1).mean())


_MATCHES: dict[str, Callable[[PairJob], Found]] = {"clips": _by_clips, "frames": _by_frames}


def ranks(
    similarity: npt.NDArray[np.float64], ids: Sequence[str], speakers: Sequence[str | None]
) -> list[dict[str, Any]]:
    """One row for each clip, direction and gallery.

    Args:
        similarity: (N, N) of sound n and pictures m.
        ids: of the clips.
        speakers: of the clips.

    Returns:
        Rows with "id", "direction", "gallery", "size" of the gallery, "rank" (mean over orders of ties), "recall" at 1,
        5 and 10 (a share where ties allow both), and "top", the ids that come first.
    """
    found = []
    for direction, table in (("audio_to_video", similarity), ("video_to_audio", similarity.T)):
        for gallery in GALLERIES:
            for k, name in enumerate(ids):
                members = [m for m in range(len(ids)) if gallery == "all" or speakers[m] == speakers[k]]
                scores = table[k : k + 1, members]
                relevant = np.asarray([[m == k for m in members]])
                order = np.argsort(-scores[0], kind="stable")[:SHOWN]
                found.append(
                    {
                        "id": name,
                        "direction": direction,
                        "gallery": gallery,
                        "size": len(members),
                        "rank": float(expected_ranks(scores, relevant)[0]),
                        "recall": [float(recall_at(scores, relevant, n)) for n in KS],
                        "top": [ids[members[m]] for m in order],
                    }
                )
    return found


def _builder(job: PairJob, store: AvStore, train: AvClips) -> Callable[[], nn.Module]:
    from mmssl.downstream.retrieval import CrossModalRetrieval
    from mmssl.interfaces.base import build_interface

    specs = store.specs(BOTH)
    moments = store.moments(train.ids, BOTH) if job.standardize else {}

    def build() -> nn.Module:
        name = STANDARDIZED if job.standardize else job.interface
        interfaces: dict[str, Any] = {stream: build_interface(name, specs[stream]) for stream in (AUDIO, VIDEO)}
        for stream, interface in interfaces.items():
            if stream in moments:
                interface.set_statistics(*moments[stream])
        return CrossModalRetrieval(interfaces, **job.settings["clips"])

    return build
