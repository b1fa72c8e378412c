"""Weakly supervised detection: which snippets show an event, learned from labels of whole clips.

Source: Yu et al. 2022, "Modality-Aware Contrastive Instance Learning with Self-Distillation for Weakly-Supervised
Audio-Visual Violence Detection" (MACIL-SD), and the authors' code where the paper leaves something open: the number of
snippets, what the negatives are, and that pairs of one clip count once for each of its snippets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import zero_padding
from mmssl.metrics.ranking import average_precision, roc_auc
from mmssl.types import Layers, Padded, TaskOutput

if TYPE_CHECKING:
    from mmssl.interfaces.aligned import AlignedStreams


def bag_sizes(lengths: Tensor, ratio: int = 16) -> Tensor:
    """Snippets k (B,) = T // ratio + 1 that stand for a clip of T snippets, at most T."""
    return torch.minimum(lengths // ratio + 1, lengths)


def top_k_mean(scores: Padded, ratio: int = 16) -> Tensor:
    """(B,) mean of the k highest scores (B, T) of each clip: the clip's score in multiple instance learning."""
    chosen = _chosen(scores, bag_sizes(scores.lengths, ratio), highest=True)
    return scores.data.masked_fill(~chosen, 0).sum(1) / chosen.sum(1)


def modality_contrast(
    audio: Padded,
    video: Padded,
    audio_scores: Tensor,
    video_scores: Tensor,
    positive: Tensor,
    temperature: float = 0.1,
    ratio: int = 16,
) -> tuple[Tensor, Tensor]:
    """Contrast of both streams' event snippets with each other, against background and against normal snippets.

    Of clips with the event, the k highest scored snippets of each stream, averaged, are its event bag, the k lowest its
    background; of clips without it the k highest are normal, the k lowest background too. The bag of one stream is
    drawn to that of the other, and away from all background (first loss) or normal (second loss) snippets of the other.

    Args:
        audio, video: (B, T, D) snippets on one clock.
        audio_scores, video_scores: (B, T) of the snippets by each stream alone.
        positive: (B,) bool, which clips are taken to have the event.
        temperature: divides the cosines; 0.1 in the authors' code.
        ratio: see `bag_sizes`.

    Returns:
        Both losses, each the sum of its two directions; 0 where the batch lacks clips of a kind.
    """
    streams = {"audio": (audio, audio_scores), "video": (video, video_scores)}
    sizes = bag_sizes(audio.lengths, ratio)
    bags, background, normal = {}, {}, {}
    for name, (frames, scores) in streams.items():
        padded = Padded(scores, frames.lengths)
        high, low = _chosen(padded, sizes, highest=True), _chosen(padded, sizes, highest=False)
        summed = frames.data.masked_fill(~high[..., None], 0).sum(1)
        bags[name] = (summed / sizes[:, None])[positive]
        background[name] = frames.data[low]
        normal[name] = frames.data[high & ~positive[:, None]]
    if not bool(positive.any()) or bool(positive.all()):
        nothing = audio.data.new_zeros(())
        return nothing, nothing
    weights = sizes[positive].to(audio.data.dtype)
    losses = []
    for negatives in (background, normal):
        terms = [
            _bag_loss(bags[one], bags[other], negatives[other], weights, temperature)
            for one, other in (("audio", "video"), ("video", "audio"))
        ]
        losses.append(terms[0] + terms[1])
    return losses[0], losses[1]


class SnippetEncoder(nn.Module):
    """Linear map and a convolution over neighbouring snippets, and a score for each.

    It sees three snippets at a time: with attention over the whole clip any snippet can carry the label of the clip,
    and the scores would not say where the event is.

    Args:
        input_size: width of the snippets.
        hidden_size: of the result.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.LayerNorm(input_size), nn.Linear(input_size, hidden_size), nn.GELU())
        self.neighbours = nn.Conv1d(hidden_size, hidden_size, 3, padding=1)
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, snippets: Padded) -> Padded:
        """(B, T, D) -> (B, T, hidden_size), zero past each length."""
        hidden = zero_padding(self.projection(snippets.data), snippets.lengths)
        hidden = hidden + F.gelu(self.neighbours(hidden.transpose(1, 2))).transpose(1, 2)
        return Padded(zero_padding(hidden, snippets.lengths), snippets.lengths)


class MultipleInstance(nn.Module):
    """MACIL-SD: two streams, a top-k score per clip, contrast, and a visual network's weights.

    The loss is binary cross entropy of the clip's score, plus both contrasts (`modality_contrast`), for which a clip is
    taken to have the event where the model's own score is above 0.5, plus the cross entropy of a network on video
    alone. Self-distillation: with every training batch, the weights of the video encoder move towards those of that
    network, theta <- m theta + (1 - m) theta_v.

    Not from the paper: each stream's own scores, by which its snippets are chosen, are trained by the same cross
    entropy, the contrasts' weights rise linearly, and the encoders are convolutions (see `SnippetEncoder`).

    Args:
        aligned: both streams on one clock; its frames are the snippets.
        hidden_size: of the encoders.
        background_weight, normal_weight: of the two contrasts.
        temperature: of the contrasts.
        momentum: m; 1 for no self-distillation.
        ratio: see `bag_sizes`.
        warmup: training batches over which the contrasts' weights rise linearly from 0: before the scores mean
            something, the contrasts draw together what was chosen at random.

    Attributes:
        monitor: the score that selects: average precision over clips.

    Raises:
        ConfigError: a value out of range.
    """

    monitor = "dev_ap"
    batches_seen: Tensor

    def __init__(
        self,
        aligned: AlignedStreams,
        hidden_size: int = 128,
        background_weight: float = 0.1,
        normal_weight: float = 0.1,
        temperature: float = 0.1,
        momentum: float = 0.99,
        ratio: int = 16,
        warmup: int = 1000,
    ) -> None:
        super().__init__()
        if (
            not 0 <= momentum <= 1
            or not temperature > 0
            or ratio < 1
            or min(background_weight, normal_weight, warmup) < 0
        ):
            raise ConfigError(
                f"momentum must be in [0, 1], the temperature above 0, ratio at least 1 and weights at least 0; got "
                f"{momentum}, {temperature}, {ratio}, {background_weight} and {normal_weight} (warmup {warmup})."
            )
        self.aligned, self.temperature, self.momentum, self.ratio = aligned, temperature, momentum, ratio
        self.background_weight, self.normal_weight = background_weight, normal_weight
        self.encoders = nn.ModuleDict({name: SnippetEncoder(size, hidden_size) for name, size in aligned.sizes.items()})
        self.video_alone = SnippetEncoder(aligned.sizes["video"], hidden_size)
        self.classifier = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, 1))
        self.warmup = warmup
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    def snippet_logits(self, streams: Mapping[str, Layers]) -> Padded:
        """(B, T) logits of the snippets by both streams, zero past each length."""
        return self._both(self.aligned(streams))[0]

    @torch.no_grad()
    def snippet_scores(self, streams: Mapping[str, Layers]) -> Padded:
        """(B, T) probabilities of the event in each snippet, in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            logits = self.snippet_logits(streams)
        finally:
            self.train(training)
        return Padded(zero_padding(logits.data.sigmoid(), logits.lengths), logits.lengths)

    def forward(self, streams: Mapping[str, Layers], targets: Tensor) -> TaskOutput:
        """Loss of a batch; `predictions` are the probabilities (B,) that clips have the event.

        Args:
            streams: of B clips, with both streams.
            targets: (B,) int64, 1 where a clip has the event.

        Raises:
            InputError: streams or targets do not fit.
        """
        if self.training and torch.is_grad_enabled():
            self.distil()
            self.batches_seen += 1
        share = min(int(self.batches_seen) / self.warmup, 1.0) if self.warmup else 1.0
        aligned = self.aligned(streams)
        logits, encoded = self._both(aligned)
        binary = not targets.is_floating_point() and bool(((targets == 0) | (targets == 1)).all())
        if targets.shape != logits.lengths.shape or not binary:
            raise InputError(f"Targets must be ({len(logits.lengths)},) of 0 and 1, got {targets.tolist()}.")
        wanted = targets.to(logits.data.dtype)
        clips = top_k_mean(logits, self.ratio)
        loss = F.binary_cross_entropy_with_logits(clips, wanted)
        own = {name: _scored(self.encoders[name], found) for name, found in encoded.items()}
        background, normal = modality_contrast(
            encoded["audio"],
            encoded["video"],
            own["audio"].data,
            own["video"].data,
            clips.detach().sigmoid() > 0.5,
            self.temperature,
            self.ratio,
        )
        loss = loss + share * (self.background_weight * background + self.normal_weight * normal)
        # the network on video alone has weights of its own: what it learns reaches the others by distillation only
        seen = Padded(aligned["video"].data.detach(), aligned["video"].lengths)
        for scores in (*own.values(), _scored(self.video_alone, self.video_alone(seen))):
            loss = loss + F.binary_cross_entropy_with_logits(top_k_mean(scores, self.ratio), wanted)
        return TaskOutput(loss, len(targets), clips.sigmoid())

    @torch.no_grad()
    def distil(self) -> None:
        """Move the video encoder towards the network on video alone: theta <- m theta + (1 - m) theta_v."""
        for mine, other in zip(self.encoders["video"].parameters(), self.video_alone.parameters(), strict=True):
            mine.lerp_(other, 1 - self.momentum)

    @torch.no_grad()
    def predict(self, streams: Mapping[str, Layers]) -> Tensor:
        """Probabilities (B,) in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            return top_k_mean(self.snippet_logits(streams), self.ratio).sigmoid()
        finally:
            self.train(training)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Average precision and area under the ROC curve over clips, from probabilities (N,)."""
        found, labels = scores.double().cpu().numpy(), targets.cpu().numpy()
        return {"ap": average_precision(found, labels), "auc": roc_auc(found, labels)}

    def _both(self, aligned: Mapping[str, Padded]) -> tuple[Padded, dict[str, Padded]]:
        """Logits of the snippets, and what each stream makes of them on its own."""
        encoded = {name: self.encoders[name](found) for name, found in aligned.items()}
        audio, video = encoded["audio"], encoded["video"]
        logits = self.classifier(torch.cat([audio.data, video.data], dim=-1))[..., 0]
        return Padded(zero_padding(logits, audio.lengths), audio.lengths), encoded


def _scored(encoder: nn.Module, encoded: Padded) -> Padded:
    """(B, T) scores of snippets by one stream alone."""
    assert isinstance(encoder, SnippetEncoder)
    return Padded(encoder.score(encoded.data)[..., 0], encoded.lengths)


def _chosen(scores: Padded, sizes: Tensor, *, highest: bool) -> Tensor:
    """(B, T) bool, the `sizes` (B,) highest or lowest valid scores of each clip; of equal ones the first."""
    values = scores.data.detach() if highest else -scores.data.detach()
    order = values.masked_fill(~scores.mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(values.shape[1], device=values.device)[None] < sizes[:, None]
    return torch.zeros_like(scores.mask).scatter(1, order, ranks)


def _bag_loss(bags: Tensor, partners: Tensor, negatives: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """InfoNCE of bags (V, D) with their partners against all negatives (N, D), mean weighted by (V,)."""
    queries, keys, others = (F.normalize(x, dim=-1) for x in (bags, partners, negatives))
    logits = torch.cat([(queries * keys).sum(-1, keepdim=True), queries @ others.t()], dim=1) / temperature
    losses = -logits.log_softmax(1)[:, 0]
    return (losses * weights).sum() / weights.sum()
