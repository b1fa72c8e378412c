"""RAVDESS speech for speaker verification: Actor_01/03-01-EE-II-SS-RR-AA.wav is of actor AA."""

from __future__ import annotations

from mmssl.stages.spk_corpus import one_corpus

# by default a third of the actors present is tested, the last ones
prepare = one_corpus(
    "RAVDESS",
    ("Actor_*/03-01-*.wav", "*/Actor_*/03-01-*.wav", "03-01-*.wav"),
    "a folder with Actor_01, Actor_02, ... in it, of files such as 03-01-05-01-02-01-12.wav (audio only, speech).",
    speaker=r"-(\d\d)\.wav$",
)
