"""BEST-RQ.

Source: Chiu et al. 2022, "Self-Supervised Learning with Random-Projection Quantizer for Speech Recognition". There, the
encoder is a Conformer on four stacked log-mel frames, and the noise stands in the place of those; here it is a speech
transformer, on the waveform or with `mel_bins` on two stacked log-mel frames, the noise stands in the place of its
projected frames, and the targets are as many stacked log-mel frames as make one of the encoder's (two at 50 Hz).
"""

from __future__ import annotations

from mmssl.objectives.encoders import SpeechEncoder
from mmssl.objectives.heads import GroupedLogits
from mmssl.objectives.losses.cross_entropy import MaskedCrossEntropy
from mmssl.objectives.maskers import NoiseMask
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.random_projection import RandomProjectionCodes
from mmssl.objectives.term import Term
from mmssl.objectives.views import SpanMasked
from mmssl.upstreams.speech_transformer import SpeechTransformer


def best_rq(
    upstream: SpeechTransformer,
    *,
    mask_probability: float = 0.6,
    mask_span: int = 4,
    num_entries: int = 8192,
    code_size: int = 16,
    num_codebooks: int = 1,
    quantizer_seed: int = 0,
    mel_hop: int = 160,
    noise: float = 0.1,
    front_end_gradient: float = 1.0,
    health_every: int = 50,
) -> Objective:
    """Predict, at hidden frames, the code that a frozen random projection gives the log-mel frames.

    Args:
        upstream: the encoder, any speech transformer.
        mask_probability, mask_span: of the mask, see `span_mask`; a frame starts a span of 4 with probability .15.
        num_entries, code_size, num_codebooks, quantizer_seed: of the random quantizer.
        mel_hop: samples between two log-mel frames; divides the encoder's hop.
        noise: deviation of what stands in the place of hidden frames.
        front_end_gradient: see `SpeechEncoder`.
        health_every: see `Objective`.
    """
    hop = upstream.spec.streams["audio"].hop_lengths[-1]
    target = RandomProjectionCodes(
        num_entries, code_size, num_codebooks, quantizer_seed, mel_hop=mel_hop, hop_length=hop
    )
    head = GroupedLogits(upstream.config.hidden_size, num_entries, num_codebooks)
    terms = [Term("codes", MaskedCrossEntropy(), target, head)]
    views = SpanMasked(NoiseMask(noise), mask_probability, mask_span)
    return Objective(SpeechEncoder(upstream, front_end_gradient), views, terms, health_every)
