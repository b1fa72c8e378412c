"""Views of masked audio-visual prediction: spans hidden from either modality, and modalities left out."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError
from mmssl.nn.masking import span_mask
from mmssl.objectives.av_samplers import check_control, kept_modalities, other_spans
from mmssl.objectives.av_views import batch_size, both, clip_generators, controlled, groups_of, on_device
from mmssl.objectives.types import Encoder, Examples, Hidden, Masker, View
from mmssl.objectives.views import Views

# places where something is drawn for a clip, beside those of `av_views`
_MASK, _DROPOUT = 14, 15


class SpanFromElsewhere(Masker):
    """Hidden spans of a clip are replaced by other spans of it; see `mmssl.objectives.av_samplers.other_spans`.

    Args:
        span: frames of the pieces that are replaced.
    """

    def __init__(self, span: int = 5) -> None:
        super().__init__()
        if span < 1:
            raise ConfigError(f"A span has at least 1 frame, got {span}.")
        self.span = span

    def forward(self, frames: Tensor, mask: Tensor, seed: int) -> Tensor:
        """Frames (T, ...) with other ones of the clip where the mask is True."""
        index = other_spans(mask, self.span, torch.Generator().manual_seed(seed))
        return frames[index.to(frames.device)]


class MaskedPair(Views):
    """One view of sound and video, each with its own hidden spans, of which one modality may be missing (AV-HuBERT).

    Labels: "use_audio" and "use_video", (B,) bool. Masks, substitutes and dropout are drawn for each clip alone.

    Source: Shi et al. 2022, "Learning Audio-Visual Speech Representation by Masked Multimodal Cluster Prediction".

    Args:
        audio_masker, video_masker: what stands in the place of hidden frames.
        audio_mask, video_mask: probability and span of each mask, see `span_mask`.
        dropout, audio_dropout: see `kept_modalities`.
        dropout_per: "clip", or "batch" as in the authors' code, where one draw is for all clips.
        control: see `check_control`; of "audio_only" and "video_only" the other modality is always dropped.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        audio_masker: Masker,
        video_masker: Masker,
        audio_mask: tuple[float, int] = (0.8, 10),
        video_mask: tuple[float, int] = (0.3, 5),
        dropout: float = 0.5,
        audio_dropout: float = 0.5,
        dropout_per: str = "clip",
        control: str = "none",
    ) -> None:
        super().__init__()
        for probability, span in (audio_mask, video_mask):
            if not 0 < probability <= 1 or span < 1:
                raise ConfigError(
                    f"A mask needs a probability in (0, 1] and spans of at least 1 frame, got {probability} and {span}."
                )
        if not (0 <= dropout <= 1 and 0 <= audio_dropout <= 1) or dropout_per not in ("clip", "batch"):
            raise ConfigError(
                f"Modality dropout takes probabilities in [0, 1] for each 'clip' or 'batch', got {dropout}, "
                f"{audio_dropout} and {dropout_per!r}."
            )
        self.audio_masker, self.video_masker = audio_masker, video_masker
        self.masks = {"audio": audio_mask, "video": video_mask}
        self.dropout, self.audio_dropout, self.dropout_per = dropout, audio_dropout, dropout_per
        self.control = check_control(control)

    def forward(self, examples: Examples, encoder: Encoder, generator: torch.Generator) -> list[View]:
        """The view; see `Views.forward`."""
        both(examples.inputs)
        lengths = encoder.frame_lengths(examples.inputs)
        sizes = lengths["fusion"].tolist()
        longest = int(torch.stack([lengths[stream] for stream in ("audio", "video")]).max())
        inputs = examples.inputs
        if self.control == "shuffled":
            inputs = controlled(inputs, groups_of(examples, None), "shuffled", generator)
        draws = clip_generators(examples, _MASK, generator)
        hidden = {}
        maskers = {"audio": self.audio_masker, "video": self.video_masker}
        for stream, (probability, span) in self.masks.items():
            mask = torch.zeros(len(sizes), longest, dtype=torch.bool)
            for row, size, draw in zip(mask, sizes, draws, strict=True):
                if size >= span:
                    length = torch.tensor([size])
                    row[:size] = span_mask(length, probability, span, min_spans=2, generator=draw)[0]
            seeds = tuple(int(torch.randint(2**31, (), generator=draw)) for draw in draws)
            hidden[stream] = Hidden(mask.to(inputs.device), maskers[stream], seeds)
        if not (hidden["audio"].mask | hidden["video"].mask).any():
            raise InputError(f"The masks hide nothing: clips of {min(sizes)} to {max(sizes)} frames are too short.")
        labels = on_device({**examples.labels, **self._kept(examples, generator)}, inputs)
        return [View(inputs, hidden, examples.ids, labels, examples.starts)]

    def _kept(self, examples: Examples, generator: torch.Generator) -> dict[str, Tensor]:
        count = batch_size(examples.inputs)
        if self.control in ("audio_only", "video_only"):
            kept = [(self.control == "audio_only", self.control == "video_only")] * count
        elif self.dropout_per == "batch":
            kept = [kept_modalities(self.dropout, self.audio_dropout, generator)] * count
        else:
            draws = clip_generators(examples, _DROPOUT, generator)
            kept = [kept_modalities(self.dropout, self.audio_dropout, draw) for draw in draws]
        audio, video = zip(*kept, strict=True)
        return {"use_audio": torch.tensor(audio), "use_video": torch.tensor(video)}
