"""SimCLR.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", section 2 and
appendix A; defaults are those of its ImageNet runs. Batch norms take their statistics from one view at a time.
"""

from __future__ import annotations

from mmssl.augment.base import Augmentation
from mmssl.errors import ConfigError
from mmssl.objectives.losses.nt_xent import NTXent
from mmssl.objectives.objective import Objective
from mmssl.objectives.projectors import MLP
from mmssl.objectives.targets.other_view import PeerView
from mmssl.objectives.term import Term
from mmssl.objectives.types import Encoder
from mmssl.objectives.view_encoders import ImageViewEncoder, StreamViewEncoder
from mmssl.objectives.views_augmented import Augmented, simclr_chain, waveform_chain
from mmssl.upstreams.base import Upstream


def simclr(
    upstream: Upstream,
    *,
    temperature: float = 0.1,
    hidden_size: int = 2048,
    size: int = 128,
    pooling: str | None = None,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    jitter: float = 1.0,
    blur: float = 0.5,
    augment: Augmentation | None = None,
    gather: bool = False,
    health_every: int = 50,
) -> Objective:
    """Find, among all views of the batch, the other view of the same clip.

    Args:
        upstream: an encoder of pictures (mae, torchvision, timm) or any encoder of waveforms.
        temperature: divides the cosines.
        hidden_size, size: of the projector, two layers with batch norm.
        pooling: see `ImageViewEncoder`; pictures only.
        crop_scale, jitter, blur: see `simclr_chain`; pictures only.
        augment: chain of both views instead of the paper's (pictures) or of `waveform_chain`.
        gather: views of all ranks as negatives.
        health_every: see `Objective`.

    Raises:
        ConfigError: an upstream of another kind, or a value out of range.
    """
    encoder: Encoder
    if upstream.spec.inputs == ("images",):
        encoder, stream, kind = ImageViewEncoder(upstream, pooling), "image", "images"
        side = (upstream.spec.image_size or (224, 224))[0]
        chain: Augmentation = simclr_chain(side, crop_scale, jitter, blur)
    elif upstream.spec.inputs == ("waveforms",):
        encoder, stream, kind = StreamViewEncoder(upstream), "audio", "waveforms"
        chain = waveform_chain(upstream.spec.sample_rate or 16000)
    else:
        raise ConfigError(f"simclr takes an encoder of images or of waveforms, this takes {upstream.spec.inputs}.")
    width = upstream.spec.streams[stream].hidden_sizes[-1]
    head = MLP((width, hidden_size, size), last_norm=True)
    loss = NTXent(temperature, gather)
    term = Term("contrast", loss, PeerView(head, stream), head, where="all", pairs=((0, 1),), stream=stream, pool=True)
    return Objective(encoder, Augmented(chain if augment is None else augment, 2, kind), [term], health_every)
