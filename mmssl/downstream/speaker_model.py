"""A speaker model from the waveform on: upstream, interface and encoder as one module that gives embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmssl.downstream.pooling import without_padding
from mmssl.errors import ConfigError, InputError
from mmssl.lengths import pad, samples_to_seconds, zero_padding
from mmssl.types import Layers, Padded

if TYPE_CHECKING:
    from mmssl.interfaces.base import Interface
    from mmssl.upstreams.base import Upstream

LEVEL = "level"


class SpeakerModel(nn.Module):
    """Waveforms to speaker embeddings, which are compared by their cosine.

    In eval mode an embedding is a function of its clip alone: the same, to float32 rounding, alone, padded, in any
    batch and order.

    Args:
        upstream: log-mel or any other built-in, or a self-supervised encoder; None where the encoder takes waveforms.
        interface: layers of the upstream -> one sequence; None where the encoder takes waveforms.
        encoder: Padded frames (B, T, D) -> embeddings (B, E), with `output_size`: `mmssl.nn.tdnn.EcapaEncoder`,
            `XVectorEncoder`, `mmssl.nn.resnet_speaker.ResNetEncoder`, `mmssl.nn.ska_tdnn.SkaTdnnEncoder`; or Padded
            waveforms (B, T) -> embeddings, with `takes_waveforms`, `sample_rate` and `min_length` as well:
            `mmssl.nn.rawnet3.RawNet3Encoder`.
        centre: take away each clip's mean over time from the frames, as is usual on log-mel; "level": only its mean
            over time and features, which is the level on log-mel. The mean spectrum then stays: it tells speakers apart
            where clips are short, and microphones.
        train_upstream: let gradients into the upstream; else it stays in eval mode, whatever the mode of the rest.
        stream: of the upstream.
        trim_silence: the model is for clips whose ends are cut off where they are by so many dB below the loud parts,
            see `mmssl.media.silence.speech_extent`; None for whole clips. `mmssl.load_speaker` does it, this class
            takes waveforms as they are.
        description: what `mmssl.training.speaker_files` needs to build the model again; None for a model that is not
            saved.

    Raises:
        ConfigError: the parts do not fit together.
    """

    def __init__(
        self,
        upstream: Upstream | None,
        interface: Interface | None,
        encoder: nn.Module,
        *,
        centre: bool | str = True,
        train_upstream: bool = False,
        stream: str = "audio",
        trim_silence: float | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.takes_waveforms = bool(getattr(encoder, "takes_waveforms", False))
        if not isinstance(getattr(encoder, "output_size", None), int):
            raise ConfigError(f"A speaker encoder states its output_size; {type(encoder).__name__} has none.")
        if self.takes_waveforms != (upstream is None) or (upstream is None) != (interface is None):
            takes = "waveforms, so give no" if self.takes_waveforms else "frames, so give both"
            raise ConfigError(f"{type(encoder).__name__} takes {takes} upstream and interface.")
        if centre not in (True, False, LEVEL):
            raise ConfigError(f"centre must be true, false or {LEVEL!r}, got {centre!r}.")
        if trim_silence is not None and not trim_silence > 0:
            raise ConfigError(f"trim_silence must be above 0 dB, or None for whole clips, got {trim_silence}.")
        if upstream is None and train_upstream:
            raise ConfigError("train_upstream is for models with an upstream; this encoder takes waveforms.")
        if upstream is not None and ("waveforms" not in upstream.spec.inputs or stream not in upstream.spec.streams):
            raise ConfigError(
                f"A speaker model needs an upstream that takes waveforms and has the stream {stream!r}; this one takes "
                f"{', '.join(upstream.spec.inputs)} and has {', '.join(upstream.spec.streams)}."
            )
        self.upstream, self.interface, self.encoder = upstream, interface, encoder
        self.centre, self.train_upstream, self.stream = centre, train_upstream, stream
        self.trim_silence = trim_silence
        self.description = None if description is None else dict(description)
        if upstream is not None:
            upstream.requires_grad_(train_upstream)
        self.train(self.training)

    @property
    def output_size(self) -> int:
        """Width E of the embeddings."""
        return int(self.encoder.output_size)  # type: ignore[arg-type]

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return int(self._front().sample_rate)

    @property
    def min_length(self) -> int:
        """The shortest waveform that has an embedding, in samples."""
        return int(self._front().min_length)

    def _front(self) -> Any:
        """What states the rate and the shortest length of waveforms."""
        return self.encoder if self.upstream is None else self.upstream.spec

    def train(self, mode: bool = True) -> SpeakerModel:
        """Set the mode; an upstream that is not trained stays in eval mode."""
        super().train(mode)
        if self.upstream is not None and not self.train_upstream:
            self.upstream.eval()
        return self

    def frames(self, waveforms: Padded) -> Padded:
        """What the encoder sees of a batch: frames (B, T, D), zero past each length, or the waveforms themselves.

        Raises:
            InputError: the shape is another one, or a clip is too short.
        """
        self._check(waveforms)
        if self.upstream is None or self.interface is None:
            return Padded(zero_padding(waveforms.data, waveforms.lengths), waveforms.lengths)
        with torch.set_grad_enabled(self.train_upstream and torch.is_grad_enabled()):
            layers = self.upstream(waveforms.data, waveforms.lengths)[self.stream]
        return self.joined(layers)

    def joined(self, layers: Layers) -> Padded:
        """Frames (B, T, D) as the encoder takes them, from layers of the upstream.

        Raises:
            ConfigError: the model has no interface, since its encoder takes waveforms.
        """
        if self.interface is None:
            raise ConfigError("This encoder takes waveforms: there are no layers to join.")
        frames = without_padding(self.interface(layers))
        if self.centre:
            mean = frames.data.sum(1, keepdim=True) / frames.lengths[:, None, None]
            if self.centre == LEVEL:
                mean = mean.mean(2, keepdim=True)
            frames = without_padding(Padded(frames.data - mean, frames.lengths))
        return frames

    def encode(self, frames: Padded) -> Tensor:
        """Embeddings (B, E) of what `frames` gives."""
        return self.encoder(frames)

    def forward(self, waveforms: Padded) -> Tensor:
        """Embeddings (B, E) of waveforms (B, T) in [-1, 1], in the mode the module is in.

        Raises:
            InputError: the shape is another one, or a clip is too short.
        """
        return self.encode(self.frames(waveforms))

    @torch.no_grad()
    def embed(self, waveforms: Padded) -> Tensor:
        """Embeddings (B, E) in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            return self(waveforms)
        finally:
            self.train(training)

    def embed_crops(self, waveforms: Padded, crop_length: int, num_crops: int = 10) -> Tensor:
        """One embedding per clip from crops that are spread evenly over it: the mean of their unit vectors.

        The inner product of two such embeddings is the mean cosine over all pairs of crops of the two clips (Chung et
        al. 2018, "VoxCeleb2", section 4.3, with ten crops of 4 s). A clip that is not longer than a crop counts whole.

        Args:
            waveforms: (B, T) with lengths.
            crop_length: in samples.
            num_crops: of a clip, at least 1; a single one lies in the middle.

        Returns:
            (B, E), of length 1 at most.

        Raises:
            InputError: the shape is another one, a clip is too short, or a number is below 1.
        """
        if crop_length < self.min_length or num_crops < 1:
            raise InputError(
                f"crop_length must be at least {self.min_length} samples and num_crops at least 1, got {crop_length} "
                f"and {num_crops}."
            )
        self._check(waveforms)
        means = []
        for clip in waveforms.unpad():
            crops = [clip[start : start + crop_length] for start in crop_starts(len(clip), crop_length, num_crops)]
            embeddings = self.embed(Padded(*pad(crops)))
            means.append(nn.functional.normalize(embeddings.double()).mean(0).to(embeddings.dtype))
        return torch.stack(means)

    def optimizer_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters that are trained: those of the upstream, and all others."""
        own = [] if self.upstream is None else [p for p in self.upstream.parameters() if p.requires_grad]
        ids = {id(p) for p in own}
        return own, [p for p in self.parameters() if p.requires_grad and id(p) not in ids]

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without an upstream that is not trained, which its description already determines."""
        frozen = self.upstream is not None and not self.train_upstream
        return {k: v for k, v in self.state_dict().items() if not (frozen and k.startswith("upstream."))}

    def _check(self, waveforms: Padded) -> None:
        data, lengths = waveforms.data, waveforms.lengths
        if data.dim() != 2 or not data.is_floating_point() or not len(data) or lengths.shape != data.shape[:1]:
            raise InputError(
                f"A speaker model takes float waveforms (B, T) with (B,) lengths, got {data.dtype} "
                f"{tuple(data.shape)} and {tuple(lengths.shape)}."
            )
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < self.min_length or longest > data.shape[1]:
            seconds = samples_to_seconds(shortest, self.sample_rate)
            raise InputError(
                f"Lengths must lie between {self.min_length} samples, the shortest clip that has an embedding, and the "
                f"{data.shape[1]} given; got {shortest} ({seconds:.3f} s) to {longest}. Leave short clips out."
            )


def crop_starts(length: int, crop_length: int, num_crops: int) -> Iterable[int]:
    """First samples of crops that are spread evenly over a clip, from its first to its last place."""
    last = length - crop_length
    if last <= 0:
        return (0,)
    if num_crops == 1:
        return (last // 2,)
    return tuple(last * k // (num_crops - 1) for k in range(num_crops))
