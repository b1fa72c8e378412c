"""FSDD for speaker verification: 7_jackson_32.wav is the digit 7 said by jackson."""

from __future__ import annotations

from mmssl.stages.spk_corpus import one_corpus

# by default a third of the speakers (2 of 6) is tested, the last ones
prepare = one_corpus(
    "FSDD",
    ("*_*_*.wav", "recordings/*_*_*.wav", "*/recordings/*_*_*.wav"),
    "a folder of recordings such as 7_jackson_32.wav, or the repository with recordings in it.",
    speaker=r"\d_([a-z]+)_\d+\.wav$",
)
