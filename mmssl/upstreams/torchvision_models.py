"""Networks of torchvision by name, tapped at their stages: pictures, and video by its 3-D ResNets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmssl.errors import ConfigError, did_you_mean
from mmssl.nn.equal_lengths import map_equal_lengths
from mmssl.nn.patch import standardize_pictures
from mmssl.types import Inputs, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.pictures import TappedPictures, load_trunk
from mmssl.upstreams.vit_mae import IMAGENET_MEAN, IMAGENET_STD

KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
_STAGES = ["layer1", "layer2", "layer3", "layer4"]
# video network -> what each of its stages does to the number of frames: one in n is left
_VIDEO = {"r3d_18": (1, 1, 2, 4, 8), "mc3_18": (1, 1, 1, 1, 1), "r2plus1d_18": (1, 1, 2, 4, 8)}
_HEADS = r"(fc|heads?|classifier|norm|encoder\.ln)\..*"


class TorchvisionImage(TappedPictures):
    """A picture network of torchvision; each stage or block is a layer, a map's positions are its tokens.

    Layers by default: ResNets and their kin: the stem and the four stages; vision transformers: the input of the first
    block and the output of each, the class token first; others with a list `features`: the output of each of its parts.

    Networks without a checkpoint are for trials: their batch norms have no statistics yet, so that values shrink from
    layer to layer, in EfficientNet-B0 to 1e-14, below what float16 can hold (bfloat16 has float32's range).

    Args:
        name: as torchvision.models has it: resnet18, resnet50, vit_b_16, swin_t, convnext_tiny, ...
        checkpoint: a local file with the network's weights, of torchvision or of a method trained on that network; its
            head is left out. None draws weights.
        prefix: what stands before the network's names in the file, such as "module.encoder_q.".
        layers: names of other parts to tap, in order; None for those above. See
            `torchvision.models.feature_extraction.get_graph_node_names`.
        image_size: height and width of the pictures.
        image_mean, image_std: of the channels of pictures in [0, 1].

    Raises:
        ConfigError: an unknown name, or one that has no layers by default.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        *,
        prefix: str = "",
        layers: Sequence[str] | None = None,
        image_size: int = 224,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise ConfigError(
                f"torchvision has no picture network {name!r}.{did_you_mean(name, known)} "
                f"For video use torchvision_video. Some names: resnet18, resnet50, vit_b_16, swin_t, convnext_tiny."
            )
        # only vision transformers are built for one size
        more = {"image_size": image_size} if name.startswith("vit_") else {}
        network = models.get_model(name, weights=None, **more)
        self.channels_last = name.startswith("swin")
        self.names = list(layers) if layers is not None else _default_taps(name, network)
        self.trunk = _tapped(network, self.names, name)
        if checkpoint is not None:
            load_trunk(self.trunk, checkpoint, prefix, _HEADS)
        self.declare(image_size, image_mean, image_std)

    def taps(self, pictures: Tensor) -> list[Tensor]:
        """Outputs of the tapped parts, maps as (B, C, H, W)."""
        found = self.trunk(pictures)
        outputs = [found[name] for name in self.names]
        if self.channels_last:
            return [h.permute(0, 3, 1, 2) if h.dim() == 4 else h for h in outputs]
        return [h[..., None, None] if h.dim() == 2 else h for h in outputs]


class TorchvisionVideo(Upstream):
    """A 3-D ResNet of torchvision on videos of any length; layers: the stem and the four stages, averaged over space.

    Clips of one length run together, others on their own, so that no clip meets padding.

    Args:
        name: r2plus1d_18, r3d_18 or mc3_18.
        checkpoint: a local file with the network's weights; its head is left out. None draws weights.
        prefix: what stands before the network's names in the file.
        image_size: height and width of the pictures.
        video_fps: of the video, in Hz; torchvision's own weights were trained at 15.
        image_mean, image_std: of the channels of pictures in [0, 1].

    Raises:
        ConfigError: an unknown name.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        name: str = "r2plus1d_18",
        checkpoint: str | None = None,
        *,
        prefix: str = "",
        image_size: int = 112,
        video_fps: float = 15.0,
        image_mean: Sequence[float] = KINETICS_MEAN,
        image_std: Sequence[float] = KINETICS_STD,
    ) -> None:
        super().__init__()
        from torchvision.models import get_model

        if name not in _VIDEO:
            raise ConfigError(f"The video networks are {', '.join(_VIDEO)}, got {name!r}.{did_you_mean(name, _VIDEO)}")
        network = get_model(name, weights=None)
        self.strides = _VIDEO[name]
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.stages = nn.ModuleDict({part: network.get_submodule(part) for part in ["stem", *_STAGES]})
        if checkpoint is not None:
            trunk = nn.Module()
            for part, stage in self.stages.items():
                trunk.add_module(part, stage)
            load_trunk(trunk, checkpoint, prefix, _HEADS)
        self.spec = UpstreamSpec(
            inputs=("video",),
            streams={"video": StreamSpec((64, 64, 128, 256, 512), self.strides)},
            video_fps=video_fps,
            image_size=(image_size, image_size),
        )

    def output_lengths(self, lengths: Tensor, stream: str = "video", layer: int = -1) -> Tensor:
        """Frames (B,) of a layer for videos of `lengths` (B,) frames."""
        stride = self.strides[layer]
        return (lengths + stride - 1) // stride

    def extract(self, inputs: Inputs) -> Representation:
        """All stages."""
        assert inputs.video is not None  # `forward` has checked it
        return {"video": map_equal_lengths(inputs.video, self._run)}

    def _run(self, video: Tensor) -> list[Tensor]:
        x = standardize_pictures(video, self.image_mean, self.image_std, self.dtype).transpose(1, 2)
        outputs = []
        for stage in self.stages.values():
            x = stage(x)
            outputs.append(x.mean(dim=(3, 4)).transpose(1, 2))
        return outputs


def _default_taps(name: str, network: nn.Module) -> list[str]:
    if all(hasattr(network, stage) for stage in _STAGES):
        return ["maxpool", *_STAGES]
    if name.startswith("vit_"):
        blocks = network.get_submodule("encoder.layers")
        return ["encoder.dropout", *(f"encoder.layers.{block}" for block, _ in blocks.named_children())]
    if isinstance(getattr(network, "features", None), nn.Sequential):
        return [f"features.{part}" for part, _ in network.get_submodule("features").named_children()]
    raise ConfigError(f"{name} has no layers by default: name the parts to tap in layers, such as [layer1, layer2].")


def _tapped(network: nn.Module, names: Sequence[str], name: str) -> nn.Module:
    from torchvision.models.feature_extraction import create_feature_extractor

    try:
        return create_feature_extractor(network, return_nodes={part: part for part in names})
    except ValueError as error:
        parts = [part for part, _ in network.named_children()]
        raise ConfigError(f"{name} cannot be tapped at {', '.join(names)}: {error} Its parts: {parts}.") from error
