"""Audio-visual upstreams as encoders that are trained: pairs of sound and pictures, and two modalities fused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.nn.packed import Packed
from mmssl.objectives.targets.base import Target
from mmssl.objectives.types import Encoded, Encoder, Hidden, Masker, Step, View
from mmssl.types import Inputs, Layers, Padded
from mmssl.upstreams.av_hubert import AvHubert
from mmssl.upstreams.two_tower import TwoTower


class TwoTowerEncoder(Encoder):
    """A two-tower upstream in training. Pictures without time stand for videos of one frame.

    Streams: "audio" and "video", the last layer of each tower; with `joint`, "fusion", one frame for each pair of the
    view. Pairs are the labels "audio" and "video" of the view, rows of either side; without them row i of one side
    belongs to row i of the other.

    Args:
        upstream: the model, with both towers.
        joint: from sound (T_a, D_a) and pictures (T_v, D_v) of pairs to one vector; thrown away after training.

    Raises:
        ConfigError: another kind of upstream, or one without both towers.
    """

    upstream: TwoTower

    def __init__(self, upstream: TwoTower, joint: PairJoin | None = None) -> None:
        super().__init__()
        if not isinstance(upstream, TwoTower) or upstream.audio is None or upstream.video is None:
            raise ConfigError(
                f"This objective trains an encoder with two towers, of sound and of video (l3, xdc, avid, crisscross), "
                f"got {type(upstream).__name__} with the streams {', '.join(upstream.spec.streams)}."
            )
        self.upstream, self.joint = upstream, joint

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Frames of each clip; see `Encoder.frame_lengths`."""
        waveforms, video = _two_sides(inputs)
        return {
            "audio": self.upstream.output_lengths(waveforms.lengths, "audio"),
            "video": self.upstream.output_lengths(video.lengths, "video"),
        }

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode both sides of a view and join its pairs; see `Encoder.encode`."""
        if view.hidden:
            raise ConfigError("A two-tower encoder hides nothing: its objectives contrast or match whole crops.")
        waveforms, video = _two_sides(view.inputs)
        self._check(waveforms, video)
        layers = self.upstream.extract(Inputs(waveforms, video))
        found = {stream: Encoded(of[-1], of) for stream, of in layers.items()}
        if self.joint is not None:
            found["fusion"] = self._joined(view, layers["audio"][-1].unpad(), layers["video"][-1].unpad(), self.joint)
        return found

    def _check(self, waveforms: Padded, video: Padded) -> None:
        shortest, size = int(waveforms.lengths.min()), tuple(video.data.shape[-2:])
        if shortest < self.upstream.spec.min_length:
            raise InputError(
                f"A waveform has {shortest} samples; the encoder takes at least {self.upstream.spec.min_length}: "
                "use longer crops."
            )
        if self.upstream.spec.image_size not in (None, size):
            raise InputError(f"The encoder takes pictures of {self.upstream.spec.image_size}, got {size}.")

    @staticmethod
    def _joined(view: View, sounds: list[Tensor], pictures: list[Tensor], joint: PairJoin) -> Encoded:
        if ("audio" in view.labels) != ("video" in view.labels):
            raise ConfigError("A view that pairs its rows gives the rows of both sides: labels 'audio' and 'video'.")
        rows = [
            view.labels[side].tolist() if side in view.labels else list(range(len(clips)))
            for side, clips in (("audio", sounds), ("video", pictures))
        ]
        if len(rows[0]) != len(rows[1]):
            raise InputError(f"Pairs need as many sounds as pictures, got {len(rows[0])} and {len(rows[1])}.")
        joined = joint([sounds[row] for row in rows[0]], [pictures[row] for row in rows[1]])[:, None]
        lengths = torch.ones(len(joined), dtype=torch.int64, device=joined.device)
        return Encoded(Padded(joined, lengths), Layers((joined,), (lengths,)))


class PairJoin(nn.Module, ABC):
    """Base of what makes one vector of each pair of sound and pictures."""

    @abstractmethod
    def forward(self, sounds: list[Tensor], pictures: list[Tensor]) -> Tensor:
        """Sounds (T_a, D_a) and pictures (T_v, D_v) of P pairs, no padding -> (P, D)."""


class PooledJoin(PairJoin):
    """Maximum over time of either side, then one hidden layer on both.

    Source: Arandjelovic and Zisserman 2017, "Look, Listen and Learn", figure 2 (fc1 after the last pooling).

    Args:
        audio_size, video_size: D of either side.
        size: of the hidden layer.
    """

    def __init__(self, audio_size: int, video_size: int, size: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(audio_size + video_size, size)

    def forward(self, sounds: list[Tensor], pictures: list[Tensor]) -> Tensor:
        """See `PairJoin.forward`."""
        rows = [torch.cat([s.amax(0), p.amax(0)]) for s, p in zip(sounds, pictures, strict=True)]
        return F.relu(self.hidden(torch.stack(rows)))


class DistanceJoin(PairJoin):
    """Two layers on either side, unit length: the distance of the two sides is all that is left of a pair.

    It can only say that the sides agree, which a hidden layer on both has to find out first.

    Sources: Arandjelovic and Zisserman 2018, "Objects that Sound", section 3.1 (AVE-Net), maximum over time first;
    with `timed` the distance is that of frames at the same time, as in Chung and Zisserman 2016, "Out of Time"
    (SyncNet), and its mean over the frames of the pictures is taken.

    Args:
        audio_size, video_size: D of either side.
        size: of the layers.
        timed: compare frame by frame; frames of the sound are averaged over each picture's.
    """

    def __init__(self, audio_size: int, video_size: int, size: int = 128, timed: bool = False) -> None:
        super().__init__()
        self.audio, self.video = projector(audio_size, size, size), projector(video_size, size, size)
        self.timed = timed

    def forward(self, sounds: list[Tensor], pictures: list[Tensor]) -> Tensor:
        """(P, 1), from 0 to 2; see `PairJoin.forward`."""
        return torch.stack([self._distance(*pair) for pair in zip(sounds, pictures, strict=True)])[:, None]

    def _distance(self, sound: Tensor, shown: Tensor) -> Tensor:
        if self.timed:
            sound = F.adaptive_avg_pool1d(sound.T, len(shown)).T
        else:
            sound, shown = sound.amax(0), shown.amax(0)
        apart = F.normalize(self.audio(sound), dim=-1) - F.normalize(self.video(shown), dim=-1)
        # the root has no slope at 0
        return (apart.square().sum(-1) + 1e-8).sqrt().mean()


class TimedJoin(PairJoin):
    """Both sides frame by frame, then convolutions over time, then their mean: it sees what coincides.

    Frames of the sound are averaged over each frame of the pictures, or repeated where they are fewer. Owens
    and Efros 2018 join the sides after a few layers by concatenation and go on with convolutions.

    Args:
        audio_size, video_size: D of either side.
        size: channels of the convolutions.
        kernel: of the first convolution, in frames.
    """

    def __init__(self, audio_size: int, video_size: int, size: int = 128, kernel: int = 5) -> None:
        super().__init__()
        if kernel < 1 or size < 1:
            raise ConfigError(f"TimedJoin needs a kernel and a size of at least 1, got {kernel} and {size}.")
        self.norms = nn.ModuleList([nn.LayerNorm(audio_size), nn.LayerNorm(video_size)])
        self.first = nn.Conv1d(audio_size + video_size, size, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(size, size, 1)

    def forward(self, sounds: list[Tensor], pictures: list[Tensor]) -> Tensor:
        """See `PairJoin.forward`."""
        # pairs of one size together; nothing is padded
        places: dict[tuple[int, int], list[int]] = {}
        for row, (sound, shown) in enumerate(zip(sounds, pictures, strict=True)):
            places.setdefault((len(sound), len(shown)), []).append(row)
        rows: dict[int, Tensor] = {}
        for members in places.values():
            audio = self.norms[0](torch.stack([sounds[row] for row in members])).transpose(1, 2)
            video = self.norms[1](torch.stack([pictures[row] for row in members])).transpose(1, 2)
            x = torch.cat([F.adaptive_avg_pool1d(audio, video.shape[2]), video], dim=1)
            x = F.relu(self.second(F.relu(self.first(x)))).mean(2)
            rows |= dict(zip(members, x, strict=True))
        return torch.stack([rows[row] for row in range(len(sounds))])


class AvHubertEncoder(Encoder):
    """AV-HuBERT in training. Filterbank frames and mouth pictures are hidden before their front ends.

    Stream: "fusion"; hidden are frames that either mask hides. Where a view's labels "use_audio" and "use_video" (B,)
    say so, the projected frames of one modality are zero, as the upstream has them where an input is not given.

    Taps: "latents", projected frames of both modalities side by side.

    Args:
        upstream: the model.

    Raises:
        ConfigError: another kind of upstream.
    """

    upstream: AvHubert

    def __init__(self, upstream: AvHubert) -> None:
        super().__init__()
        if not isinstance(upstream, AvHubert):
            raise ConfigError(f"This objective trains AV-HuBERT (av_hubert), got {type(upstream).__name__}.")
        self.upstream = upstream

    def frame_lengths(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Frames of each clip; see `Encoder.frame_lengths`."""
        waveforms, video = _two_sides(inputs)
        audio = self.upstream.output_lengths(waveforms.lengths, "audio")
        shown = self.upstream.output_lengths(video.lengths, "video")
        return {"audio": audio, "video": shown, "fusion": torch.minimum(audio, shown)}

    def encode(self, view: View) -> Mapping[str, Encoded]:
        """Encode the fusion of both modalities; see `Encoder.encode`."""
        other = [stream for stream in view.hidden if stream not in ("audio", "video")]
        if other:
            raise ConfigError(f"AV-HuBERT hides frames of audio and video, not of {other[0]!r}.")
        waveforms, video = _two_sides(view.inputs)
        upstream = self.upstream
        sounds = list(upstream.audio_frames(waveforms.unpad()).split())
        mouths = upstream.mouth_frames(video.unpad())
        sizes = [min(len(s), len(m)) for s, m in zip(sounds, mouths, strict=True)]
        audio = Packed.of(_substituted(sounds, view.hidden.get("audio")))
        audio = audio.replace(upstream.audio_projection(audio.data))
        pictures = upstream.mouth(_substituted(mouths, view.hidden.get("video")))
        pictures = pictures.replace(upstream.video_projection(pictures.data))
        audio, pictures = _used(audio, view.labels.get("use_audio")), _used(pictures, view.labels.get("use_video"))
        states = upstream.encoder.forward_packed(upstream.fuse(audio, pictures))
        both = [torch.cat([a[:n], v[:n]], 1) for a, v, n in zip(audio.split(), pictures.split(), sizes, strict=True)]
        padded = [state.pad() for state in states]
        layers = Layers(tuple(p.data for p in padded), tuple(p.lengths for p in padded))
        output = states[-1].replace(upstream.encoder.finish(states[-1].data)).pad()
        masks = [hidden.mask[:, : max(sizes)] for hidden in view.hidden.values()]
        mask = torch.stack(masks).any(0) if masks else None
        return {"fusion": Encoded(output, layers, mask, None, {"latents": Packed.of(both).pad()})}


class PooledStream(Target):
    """Mean over the frames of another stream of the same clip, projected; gradients train it too.

    Args:
        stream: which one.
        head: from its frames' size to the space of the contrast.
    """

    reads_student = True

    def __init__(self, stream: str, head: nn.Module) -> None:
        super().__init__()
        self.stream, self.head = stream, head

    def forward(self, step: Step, view: int) -> Tensor:
        """(B, D); see `Target.forward`."""
        output = step.stream(view, self.stream).output
        return self.head(torch.stack([frames.mean(0) for frames in output.unpad()]))


class ViewLabels(Target):
    """A label of the view, such as whether its pairs match.

    Args:
        name: of the label.
    """

    def __init__(self, name: str = "match") -> None:
        super().__init__()
        self.name = name

    def forward(self, step: Step, view: int) -> Tensor:
        """(B,); see `Target.forward`."""
        labels = step.views[view].labels
        if self.name not in labels:
            raise ConfigError(f"View {view} has no label {self.name!r}; it has {', '.join(labels) or 'none'}.")
        return labels[self.name]


def projector(input_size: int, size: int, hidden_size: int | None = None) -> nn.Sequential:
    """Two linear layers with a ReLU between them.

    Args:
        input_size: D.
        size: of the output.
        hidden_size: between the layers; None for D.
    """
    middle = hidden_size or input_size
    return nn.Sequential(nn.Linear(input_size, middle), nn.ReLU(), nn.Linear(middle, size))


def _two_sides(inputs: Inputs) -> tuple[Padded, Padded]:
    """Waveforms, and video or pictures as videos of one frame."""
    video = inputs.video
    if inputs.images is not None and video is None:
        ones = torch.ones(len(inputs.images), dtype=torch.int64, device=inputs.images.device)
        video = Padded(inputs.images[:, None], ones)
    if inputs.waveforms is None or video is None:
        raise InputError("This encoder takes waveforms, and video or images, of the same clips: the corpus needs both.")
    return inputs.waveforms, video


def _substituted(clips: list[Tensor], hidden: Hidden | None) -> list[Tensor]:
    """Frames (T_b, ...) of each clip after their masker."""
    if hidden is None:
        return clips
    masker: Masker | None = hidden.masker
    if masker is None:
        raise ConfigError("AV-HuBERT does not drop frames: give the mask a masker that replaces them.")
    longest = max(len(clip) for clip in clips)
    if hidden.mask.shape[0] != len(clips) or hidden.mask.shape[1] < longest:
        raise InputError(f"The mask must be ({len(clips)}, {longest}), got {tuple(hidden.mask.shape)}.")
    seeds = hidden.seeds or tuple(range(len(clips)))
    rows = zip(clips, hidden.mask, seeds, strict=True)
    return [masker(clip, row[: len(clip)], seed) for clip, row, seed in rows]


def _used(frames: Packed, used: Tensor | None) -> Packed:
    """Projected frames, zero in clips whose modality is not used."""
    if used is None:
        return frames
    per_frame = torch.repeat_interleave(used.to(frames.data.device), torch.tensor(frames.lengths).to(used.device))
    return frames.replace(frames.data.masked_fill(~per_frame[:, None], 0))
