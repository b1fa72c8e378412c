"""An online probe: what an encoder's features are worth while it is pretrained, on a small labelled list of clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, DataError
from mmssl.random import isolated_rng
from mmssl.training.readers import ClipReader, Item, reader_for
from mmssl.types import Clip, Inputs
from mmssl.upstreams.base import Upstream

if TYPE_CHECKING:
    from mmssl.training.pretrain_module import PretrainModule

LAYERS = ("last", "mean")


class OnlineProbe(Callback):
    """Scores a k-NN classifier and a linear one on the encoder's features every so many steps.

    Rows of the history get "probe/knn" and "probe/linear", accuracies in [0, 1] on the test clips, and "probe/chance",
    the share of their commonest class; the first row has those of the untrained encoder, "probe/knn_untrained" and
    "probe/linear_untrained". The encoder is looked at in eval mode, without gradient, with its own generators: the run
    is the same with and without the probe. Clips are read once and kept; of longer ones the stretch in the middle.

    Args:
        train: labelled clips that the classifiers learn from.
        test: labelled clips of other speakers.
        label: name of the label.
        every: steps between two looks; one follows the last step too.
        neighbours: k of k-NN; fewer where there are fewer training clips.
        temperature: of the votes exp(cosine / temperature); .07 in Wu et al. 2018, "Unsupervised Feature Learning via
            Non-Parametric Instance Discrimination", section 3.4.
        layers: "last", or "mean" over all layers (of one width).
        stream: of the encoder; None for its only one.
        reader: how clips are read; None for `reader_for` with max_seconds.
        max_seconds: longer waveforms are cropped to this.
        batch_size: clips that are encoded together.

    Raises:
        ConfigError: a value out of range.
        DataError: no clips, no label, a speaker in both parts, or test labels that training clips lack.
    """

    def __init__(
        self,
        train: Sequence[Clip],
        test: Sequence[Clip],
        label: str,
        every: int = 200,
        *,
        neighbours: int = 20,
        temperature: float = 0.07,
        layers: str = "last",
        stream: str | None = None,
        reader: ClipReader | None = None,
        max_seconds: float = 5.0,
        batch_size: int = 16,
    ) -> None:
        if min(every, neighbours, batch_size) < 1 or not temperature > 0:
            raise ConfigError(
                "every, neighbours and batch_size must be at least 1 and temperature above 0, got "
                f"{every}, {neighbours}, {batch_size} and {temperature}."
            )
        if layers not in LAYERS:
            raise ConfigError(f"layers must be one of {', '.join(LAYERS)}, got {layers!r}.")
        self.train_clips, self.test_clips = list(train), list(test)
        self.classes = _classes(self.train_clips, self.test_clips, label)
        self.label, self.every, self.neighbours, self.temperature = label, every, neighbours, temperature
        self.layers, self.stream, self.reader = layers, stream, reader
        self.max_seconds, self.batch_size = max_seconds, batch_size
        self._batches: list[Inputs] = []
        self._looked = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the untrained encoder, unless the run is resumed."""
        # between the batches of a step the count stays as it was
        self._looked = trainer.global_step
        if trainer.global_step == 0:
            module: PretrainModule = pl_module  # type: ignore[assignment]
            for name, value in self.scores(module.objective.encoder.upstream).items():
                if name != "probe/chance":
                    module.note(f"{name}_untrained", value)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Score the encoder if a step of the interval, or the last one, has just been done."""
        step = trainer.global_step
        if step == self._looked or (step % self.every and step != trainer.max_steps):
            return
        self._looked = step
        module: PretrainModule = pl_module  # type: ignore[assignment]
        for name, value in self.scores(module.objective.encoder.upstream).items():
            module.note(name, value)

    def scores(self, upstream: Upstream) -> dict[str, float]:
        """ "probe/knn", "probe/linear" and "probe/chance" of an encoder; nothing of it is changed."""
        with isolated_rng(0), evaluation(upstream), torch.no_grad():
            rows = self._rows(upstream)
        codes = [self.classes.index(c.labels[self.label]) for c in (*self.train_clips, *self.test_clips)]
        labels, count = torch.tensor(codes), len(self.train_clips)
        parts = rows[:count], labels[:count], rows[count:], labels[count:]
        knn = nearest_neighbours(*parts, neighbours=self.neighbours, temperature=self.temperature)
        chance = float(torch.bincount(parts[3]).max()) / len(parts[3])
        return {"probe/knn": knn, "probe/linear": linear_classifier(*parts), "probe/chance": chance}

    def _rows(self, upstream: Upstream) -> Tensor:
        """(N, D) float32 on the CPU of training clips, then of test clips."""
        clips = [*self.train_clips, *self.test_clips]
        if not self._batches:
            reader = self.reader or reader_for(upstream.spec, max_seconds=self.max_seconds)
            items = [_middle(reader, clip) for clip in clips]
            starts = range(0, len(items), self.batch_size)
            self._batches = [reader.collate(items[k : k + self.batch_size]) for k in starts]
        device = next(upstream.parameters()).device
        rows = [_pooled(upstream, inputs, device, self.stream, self.layers) for inputs in self._batches]
        return torch.cat(rows).float().cpu()


def nearest_neighbours(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, neighbours: int, temperature: float
) -> float:
    """Accuracy of a vote of the nearest training rows by cosine, each weighing exp(cosine / temperature).

    Rows are centred by the mean of the training rows first: features share one large direction, beside which cosines
    would all be near 1.

    Source: Wu et al. 2018, section 3.4.

    Args:
        train, test: (N, D), (M, D).
        train_labels, test_labels: (N,), (M,) int64 from 0.
        neighbours: most that vote.
        temperature: above 0.
    """
    mean = train.mean(0)
    cosines = F.normalize(test - mean, dim=1) @ F.normalize(train - mean, dim=1).t()
    nearest, places = cosines.topk(min(neighbours, len(train)), dim=1)
    # the largest weight of a row is 1: no overflow, and the same winner
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    votes = torch.zeros(len(test), int(train_labels.max()) + 1).scatter_add_(1, train_labels[places], weights)
    return float((votes.argmax(1) == test_labels).float().mean())


def linear_classifier(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of logistic regression on standardised rows; see `nearest_neighbours`."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    mean, deviation = train.mean(0), train.std(0, correction=0)
    # a dimension that is constant up to rounding must not be blown up
    scale = torch.where(deviation > 1e-6 * train.abs().max(), deviation, torch.ones(()))
    a, b = (((rows - mean) / scale).double().numpy() for rows in (train, test))
    if not (numpy.isfinite(a).all() and numpy.isfinite(b).all()):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge is no matter here
        model = LogisticRegression(C=0.1, max_iter=200).fit(a, train_labels.numpy())
    return float(model.score(b, test_labels.numpy()))


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Inside the block a module is in eval mode; after it, every part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _pooled(upstream: Upstream, inputs: Inputs, device: torch.device, stream: str | None, layers: str) -> Tensor:
    """(B, D) means over the valid frames."""
    waveforms, video = (None if x is None else x.to(device) for x in (inputs.waveforms, inputs.video))
    streams = upstream(
        None if waveforms is None else waveforms.data,
        None if waveforms is None else waveforms.lengths,
        video=None if video is None else video.data,
        video_lengths=None if video is None else video.lengths,
        images=None if inputs.images is None else inputs.images.to(device),
    )
    if stream is None and len(streams) == 1:
        stream = next(iter(streams))
    if stream not in streams:
        raise ConfigError(f"Name a stream for the probe: the encoder gives {', '.join(streams)}, got {stream!r}.")
    states = streams[stream]
    if layers == "mean" and len(set(states.hidden_sizes)) > 1:
        raise ConfigError(f"layers='mean' needs layers of one width, got {states.hidden_sizes}: use layers='last'.")
    chosen = range(len(states)) if layers == "mean" else [len(states) - 1]
    means = []
    for layer in chosen:
        frames = states[layer]
        total = frames.data.masked_fill(~frames.mask[..., None], 0).float().sum(1)
        means.append(total / frames.lengths.clamp(min=1)[:, None])
    return torch.stack(means).mean(0)


def _middle(reader: ClipReader, clip: Clip) -> Item:
    size = reader.measure(clip)
    if size < reader.least:
        raise DataError(
            f"The clip {clip.id!r} of the probe is too short for the encoder: {size} of {reader.least} units."
        )
    count = size if reader.most is None else min(size, reader.most)
    first = (size - count) // 2 // reader.step * reader.step
    return reader.load(clip, first, count)


def _classes(train: Sequence[Clip], test: Sequence[Clip], label: str) -> list[Any]:
    """Values of the label among the training clips, sorted."""
    if not train or not test:
        raise DataError(f"The probe needs training and test clips, got {len(train)} and {len(test)}.")
    for clip in (*train, *test):
        if clip.labels.get(label) is None:
            raise DataError(f"The clip {clip.id!r} of the probe has no label {label!r}; it has {sorted(clip.labels)}.")
    both = {c.speaker for c in train if c.speaker} & {c.speaker for c in test if c.speaker}
    if both and label != "speaker":
        raise DataError(f"Speakers are in both parts of the probe, which would flatter it: {sorted(both)[:5]}.")
    classes = sorted({clip.labels[label] for clip in train}, key=str)
    unknown = sorted({clip.labels[label] for clip in test} - set(classes), key=str)
    if unknown or len(classes) < 2:
        raise DataError(
            f"The probe's training clips need at least 2 values of {label!r} and all those of the test clips; they "
            f"have {classes[:5]}, the test clips also {unknown[:5]}."
        )
    return classes
