"""RAVDESS speech for speaker verification: Actor_01/03-01-EE-II-SS-RR-AA.wav is of actor AA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.stages.spk_corpus import one_corpus
from mmssl.types import Clip

PATTERNS = ("Actor_*/03-01-*.wav", "*/Actor_*/03-01-*.wav", "03-01-*.wav")
LAYOUT = "a folder with Actor_01, Actor_02, ... in it, of files such as 03-01-05-01-02-01-12.wav (audio only, speech)."


def prepare(
    root: Path | None,
    folder: Path,
    test_speakers: int | Sequence[str] | None = None,
    dev_speakers: int | Sequence[str] = 0,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Clip]:
    """Clips with actor and split; by default a third of the actors present is tested, the last ones.

    Args:
        root: of RAVDESS.
        folder: of the data.
        test_speakers, dev_speakers: actors such as "07", or how many.
        sources: other corpora to train on as well, see `mmssl.stages.spk_corpus.pooled`; their paths are absolute.
    """
    corpus = ("RAVDESS", PATTERNS, LAYOUT)
    return one_corpus(root, folder, corpus, r"-(\d\d)\.wav$", test_speakers, dev_speakers, sources)
