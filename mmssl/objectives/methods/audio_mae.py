"""AudioMAE.

Source: Huang et al. 2022, "Masked Autoencoders that Listen"; defaults are those of its base model.
"""

from __future__ import annotations

from mmssl.objectives.losses.regression import MSE
from mmssl.objectives.objective import Objective
from mmssl.objectives.patch_decoders import PatchDecoder
from mmssl.objectives.patch_encoder import MelEncoder
from mmssl.objectives.patch_targets import NormalizedPatches
from mmssl.objectives.patch_views import DroppedPatches, RandomPatches
from mmssl.objectives.targets.tap import Tap
from mmssl.objectives.term import Term
from mmssl.upstreams.audio_mae import AudioMAE


def audio_mae(
    upstream: AudioMAE,
    *,
    mask_ratio: float = 0.8,
    decoder_size: int = 512,
    decoder_layers: int = 16,
    decoder_heads: int = 16,
    decoder_attention: str = "local",
    normalize_patches: bool = True,
    health_every: int = 50,
) -> Objective:
    """Restore the log-mel values of dropped patches from those that are left; clips may have any length.

    Args:
        upstream: the encoder.
        mask_ratio: share of a clip's patches that are dropped, without regard to time and frequency.
        decoder_size, decoder_layers, decoder_heads: of the decoder, which is thrown away afterwards.
        decoder_attention: "local", shifted windows of 4 x 4 patches as in the paper, or "global".
        normalize_patches: targets of mean 0 and deviation 1 within each patch.
        health_every: see `Objective`.

    Raises:
        ConfigError: another kind of upstream, or a ratio out of range.
    """
    encoder = MelEncoder(upstream)
    frames = upstream.frames
    decoder = PatchDecoder(
        upstream.spec.streams["audio"].hidden_sizes[-1],
        frames.columns,
        frames.patch_size**2,
        decoder_size,
        decoder_layers,
        decoder_heads,
        attention=decoder_attention,
    )
    target = NormalizedPatches("audio") if normalize_patches else Tap("patches")
    term = Term("restoration", MSE(), target, decoder)
    return Objective(encoder, DroppedPatches({"audio": RandomPatches(mask_ratio)}), [term], health_every)
