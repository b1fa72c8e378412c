"""Picture and video models of transformers: a local folder, a hub name, or random weights from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import CheckpointError, ConfigError
from mmssl.lengths import patch_count
from mmssl.nn.equal_lengths import map_equal_lengths
from mmssl.nn.patch import standardize_pictures
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.checkpoints import read_json
from mmssl.upstreams.hf import DTYPES, build_model, check_arguments, find_folder, make_config, read_config
from mmssl.upstreams.vit_mae import IMAGENET_MEAN, IMAGENET_STD, TOKENS


@dataclass(frozen=True)
class VisionFamily:
    """How a model type of transformers is run.

    Attributes:
        prefix: tokens before the patches (class token first, then distillation or register tokens), from the config.
        any_size: positions are rotary or interpolated by the model itself, so that any picture size goes.
        skip: hidden states at the front of the list that are no tokens.
        video_fps: for video models, the rate in Hz at which their authors took frames; None for pictures.
        any_length: for video models, any number of frames goes instead of the configured one.
        patch_major: tokens of a video lie patch by patch, each through time, instead of slice by slice.
    """

    prefix: Callable[[Any], int]
    any_size: bool = False
    skip: int = 0
    video_fps: float | None = None
    any_length: bool = False
    patch_major: bool = False


def _prefix(count: int) -> Callable[[Any], int]:
    return lambda config: count


def _registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _class_tokens(config: Any) -> int:
    return config.n_cls_tokens


FAMILIES: Mapping[str, VisionFamily] = {
    "beit": VisionFamily(_prefix(1)),
    "clip_vision_model": VisionFamily(_prefix(1)),
    "convnext": VisionFamily(_prefix(0), any_size=True),
    "data2vec-vision": VisionFamily(_prefix(1)),
    "deit": VisionFamily(_prefix(2)),
    "dinov2": VisionFamily(_prefix(1), any_size=True),
    "dinov2_with_registers": VisionFamily(_registers, any_size=True),
    "dinov3_convnext": VisionFamily(_prefix(0), any_size=True, skip=1),
    "dinov3_vit": VisionFamily(_registers, any_size=True),
    "hiera": VisionFamily(_prefix(0)),
    "ijepa": VisionFamily(_prefix(0)),
    "pixio": VisionFamily(_class_tokens),
    "resnet": VisionFamily(_prefix(0), any_size=True),
    "siglip_vision_model": VisionFamily(_prefix(0)),
    "swin": VisionFamily(_prefix(0)),
    "vit": VisionFamily(_prefix(1)),
    "vit_mae": VisionFamily(_prefix(1)),
    "vit_msn": VisionFamily(_prefix(1)),
    "timesformer": VisionFamily(_prefix(1), video_fps=0.9375, patch_major=True),
    "videomae": VisionFamily(_prefix(0), video_fps=7.5),
    "vivit": VisionFamily(_prefix(1), video_fps=15.0),
    "vjepa2": VisionFamily(_prefix(0), video_fps=4.0, any_length=True),
}
"""transformers' model type -> how it is run."""

# models of text and pictures whose picture encoder is taken
_WITH_TEXT = ("clip", "siglip")
# weights that no hidden state depends on
_OPTIONAL = ("pooler", "mask_token", "predictor")


class HFVision(Upstream):
    """A picture or video model of transformers as an upstream, with the scaling of colours its checkpoint asks for.

    The hidden states are those that transformers lists under `output_hidden_states=True`, as they are: most vision
    transformers leave their last norm out of the list. Maps (ConvNeXt, ResNet) become tokens row by row. From CLIP and
    SigLIP the picture encoder is taken. ViTMAE runs on all patches, in order.

    A stream of pictures has no time axis. The tokens of a video lie slice by slice, without class token; V-JEPA 2 takes
    any number of frames (an odd last one is dropped), the other video models just as many as they were trained with:
    frames too many or too few are refused, so choose `video_fps` and cut clips to fit.

    Args:
        path: folder in transformers format (config.json and model.safetensors or pytorch_model.bin), or a hub name.
        config: instead of `path`, the configuration of a model with random weights: `model_type` and any of its fields.
        tokens: of pictures: "all", "patches" without class, distillation and register tokens, or "class" alone.
        image_size: height and width of the pictures; None for that of the checkpoint. Models with fixed positions take
            no other.
        image_mean, image_std: of the channels of pictures in [0, 1]; None for those of preprocessor_config.json, or
            ImageNet's with `config`.
        video_fps: of the video, in Hz; None for the rate at which the model's authors took frames.
        attn_implementation: "sdpa" or "eager"; None is "sdpa" where the family has it, else "eager".
        dtype: type of the loaded weights and of the computation: "float32", "float16" or "bfloat16".

    Attributes:
        model: the transformers module.

    Raises:
        ConfigError: an unknown model type or wrong arguments.
        CheckpointError: the folder lacks what is needed.
    """

    invariance = "pictures have one size; videos of equal length run together"

    def __init__(
        self,
        path: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        tokens: str = "all",
        image_size: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        video_fps: float | None = None,
        attn_implementation: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        check_arguments(path, config, attn_implementation, dtype)
        folder = None if path is None else find_folder(path)
        if folder is not None:
            hf_config = read_config(folder, (*FAMILIES, *_WITH_TEXT))
        else:
            hf_config = make_config(config or {}, FAMILIES)
        if hf_config.model_type in _WITH_TEXT:
            hf_config = hf_config.vision_config
        if hf_config.model_type == "vit_mae":
            hf_config.mask_ratio = 0.0
        self.family = FAMILIES[hf_config.model_type]
        stated = {} if folder is None else _preprocessing(folder)
        self.image_mean = _colours("image_mean", image_mean, stated, folder, IMAGENET_MEAN)
        self.image_std = _colours("image_std", image_std, stated, folder, IMAGENET_STD)
        self.prefix = self.family.prefix(hf_config)
        self.tokens = _kept_tokens(tokens, self.prefix, self.family, hf_config.model_type)
        side = _picture_size(image_size, stated, hf_config, self.family)
        self.model = build_model(hf_config, folder, attn_implementation, DTYPES[dtype], _OPTIONAL)
        if self.family.video_fps is None:
            self._declare_pictures(side)
        else:
            self._declare_video(hf_config, side, video_fps)

    def _declare_pictures(self, side: int) -> None:
        """Set the spec from what the model gives for an empty picture: stages differ in width and tokens."""
        self.eval()
        with torch.no_grad():
            picture = torch.zeros(1, len(self.image_mean), side, side, dtype=self.dtype)
            shapes = [h.shape for h in self._run_pictures(picture)]
        self.counts = [shape[1] for shape in shapes]
        streams = {"image": StreamSpec(tuple(shape[2] for shape in shapes), (0,) * len(shapes))}
        self.spec = UpstreamSpec(inputs=("images",), streams=streams, image_size=(side, side))

    def _declare_video(self, config: Any, side: int, video_fps: float | None) -> None:
        tubelet, patch = getattr(config, "tubelet_size", 1), getattr(config, "patch_size", 16)
        if not isinstance(tubelet, int):  # ViViT has one field for both
            tubelet, patch = tubelet[0], tubelet[1]
        self.tubelet, layers = tubelet, config.num_hidden_layers + 1
        self.counts = [(side // patch) ** 2] * layers
        frames = None if self.family.any_length else config.num_frames
        self.spec = UpstreamSpec(
            inputs=("video",),
            streams={"video": StreamSpec((config.hidden_size,) * layers, (tubelet,) * layers, self.counts[0])},
            video_fps=video_fps or self.family.video_fps,
            min_length=frames or tubelet,
            max_length=frames,
            image_size=(side, side),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "image", layer: int = -1) -> Tensor:
        """Tokens (B,) of pictures, whatever `lengths` says, or of videos of `lengths` (B,) frames."""
        if "video" in self.spec.inputs:
            return patch_count(lengths, self.tubelet) * self.counts[layer]
        return torch.full_like(lengths, self.counts[layer])

    def extract(self, inputs: Inputs) -> Representation:
        """All hidden states, in the type of the parameters."""
        if inputs.video is not None:
            return {"video": map_equal_lengths(inputs.video, self._run_video)}
        assert inputs.images is not None  # `forward` has checked it
        pictures = standardize_pictures(inputs.images, self.image_mean, self.image_std, self.dtype)
        hidden = self._run_pictures(pictures)
        lengths = [torch.full((len(pictures),), h.shape[1], device=pictures.device) for h in hidden]
        return {"image": Layers(hidden, tuple(lengths))}

    def _run_pictures(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Scaled pictures (B, C, H, W) -> hidden states (B, tokens, D), with the tokens that are kept."""
        more: dict[str, Tensor] = {}
        config: Any = self.model.config
        if config.model_type == "vit_mae":
            # the model sorts its patches by noise even where it hides none
            patches = (pictures.shape[-1] // config.patch_size) ** 2
            more["noise"] = torch.arange(patches, device=pictures.device).expand(len(pictures), -1)
        hidden = self.model(pictures, output_hidden_states=True, **more).hidden_states[self.family.skip :]
        return tuple(h.flatten(2).transpose(1, 2) if h.dim() == 4 else h[:, self.tokens] for h in hidden)

    def _run_video(self, video: Tensor) -> tuple[Tensor, ...]:
        """Videos (B, T, C, H, W) of one length -> hidden states (B, slices * patches, D), slice by slice."""
        slices = video.shape[1] // self.tubelet
        scaled = standardize_pictures(video[:, : slices * self.tubelet], self.image_mean, self.image_std, self.dtype)
        more = {"skip_predictor": True} if self.family.any_length else {}
        hidden = self.model(scaled, output_hidden_states=True, **more).hidden_states
        hidden = tuple(h[:, self.prefix :] for h in hidden)
        if self.family.patch_major:
            return tuple(h.unflatten(1, (-1, slices)).transpose(1, 2).flatten(1, 2) for h in hidden)
        return hidden


def _preprocessing(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    return read_json(file) if file.is_file() else {}


def _colours(
    name: str, given: Sequence[float] | None, stated: Mapping[str, Any], folder: Path | None, default: Sequence[float]
) -> tuple[float, ...]:
    """Mean or deviation of the channels; 0 and 1 where the checkpoint says that it does not normalise."""
    if given is not None:
        return tuple(given)
    if stated.get("do_normalize") is False:
        return (0.0,) * 3 if name == "image_mean" else (1.0,) * 3
    if name in stated:
        return tuple(stated[name])
    if folder is not None:
        raise CheckpointError(
            f"{str(folder)!r} does not say how colours are scaled: it has no preprocessor_config.json with {name}. "
            "Put that file of the model there, or give image_mean and image_std."
        )
    return tuple(default)


def _kept_tokens(tokens: str, prefix: int, family: VisionFamily, model_type: str) -> slice:
    if tokens not in TOKENS:
        raise ConfigError(f"tokens must be one of {', '.join(TOKENS)}, got {tokens!r}.")
    if family.video_fps is not None and tokens == "class":
        raise ConfigError(f"tokens='class' is for pictures: the stream of {model_type} is a video's patches.")
    if tokens == "class" and not prefix:
        raise ConfigError(f"A {model_type} model has no class token: tokens must be 'all' or 'patches'.")
    return {"all": slice(None), "patches": slice(prefix, None), "class": slice(1)}[tokens]


def _picture_size(given: int | None, stated: Mapping[str, Any], config: Any, family: VisionFamily) -> int:
    size = getattr(config, "crop_size", None) or getattr(config, "image_size", None)
    if not family.any_size:
        fixed = _side(size)
        if given is not None and given != fixed:
            raise ConfigError(f"This {config.model_type} model takes pictures of {fixed} x {fixed}, not {given}.")
        return fixed
    crop = stated.get("crop_size") if stated.get("do_center_crop") else None
    return given or _side(crop or stated.get("size") or size or 224)


def _side(size: Any) -> int:
    """Side of a square, from the forms that size fields have."""
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    if isinstance(size, Sequence):
        if len(set(size)) > 1:
            raise ConfigError(f"Only square pictures are supported, the model takes {list(size)}.")
        size = size[0]
    return int(size)
