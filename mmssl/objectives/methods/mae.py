"""MAE.

Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"; defaults are those of its base model.
"""

from __future__ import annotations

from mmssl.nn.masking import hidden_count
from mmssl.objectives.losses.regression import MSE
from mmssl.objectives.objective import Objective
from mmssl.objectives.patch_decoders import PatchDecoder
from mmssl.objectives.patch_encoder import PictureEncoder
from mmssl.objectives.patch_targets import NormalizedPatches
from mmssl.objectives.patch_views import DroppedPatches, RandomPatches
from mmssl.objectives.targets.tap import Tap
from mmssl.objectives.term import Term
from mmssl.upstreams.vit_mae import MAE


def mae(
    upstream: MAE,
    *,
    mask_ratio: float = 0.75,
    decoder_size: int = 512,
    decoder_layers: int = 8,
    decoder_heads: int = 16,
    normalize_patches: bool = True,
    health_every: int = 50,
) -> Objective:
    """Restore the pixels of dropped patches from those that are left.

    Args:
        upstream: the encoder.
        mask_ratio: share of patches that are dropped.
        decoder_size, decoder_layers, decoder_heads: of the decoder, which is thrown away afterwards.
        normalize_patches: targets of mean 0 and deviation 1 within each patch.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or a ratio that hides nothing or all.
    """
    encoder = PictureEncoder(upstream)
    columns = upstream.encoder.positions.columns
    hidden_count(columns**2, mask_ratio)  # refuses a ratio that hides no patch of these pictures, or all
    size, pictures = upstream.spec.streams["image"].hidden_sizes[-1], upstream.spec.image_size or (0, 0)
    values = len(upstream.image_mean) * (pictures[0] // columns) ** 2
    decoder = PatchDecoder(size, columns, values, decoder_size, decoder_layers, decoder_heads)
    target = NormalizedPatches() if normalize_patches else Tap("patches", stream="image")
    term = Term("restoration", MSE(), target, decoder, stream="image")
    return Objective(encoder, DroppedPatches({"image": RandomPatches(mask_ratio)}), [term], health_every)
