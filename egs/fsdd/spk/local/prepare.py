"""FSDD for speaker verification: 7_jackson_32.wav is the digit 7 said by jackson."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.stages.spk_corpus import one_corpus
from mmssl.types import Clip

PATTERNS = ("*_*_*.wav", "recordings/*_*_*.wav", "*/recordings/*_*_*.wav")
LAYOUT = "a folder of recordings such as 7_jackson_32.wav, or the repository with recordings in it."


def prepare(
    root: Path | None,
    folder: Path,
    test_speakers: int | Sequence[str] | None = None,
    dev_speakers: int | Sequence[str] = 0,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Clip]:
    """Clips with speaker and split; by default a third of the speakers (2 of 6) is tested, the last ones.

    Args:
        root: of FSDD.
        folder: of the data.
        test_speakers, dev_speakers: names such as theo, or how many.
        sources: other corpora to train on as well, see `mmssl.stages.spk_corpus.pooled`; their paths are absolute.
    """
    corpus = ("FSDD", PATTERNS, LAYOUT)
    return one_corpus(root, folder, corpus, r"\d_([a-z]+)_\d+\.wav$", test_speakers, dev_speakers, sources)
