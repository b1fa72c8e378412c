"""What every local/prepare.py needs: the corpus folder, checked, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmssl.errors import DataError


def corpus_files(root: Path | None, corpus: str, patterns: Sequence[str], layout: str) -> list[Path]:
    """The files of a corpus, sorted.

    Args:
        root: what `data.root` gave.
        corpus: its name, for messages.
        patterns: glob patterns below the root, in order of preference; the first that matches anything is used.
        layout: what the folder should look like, in words.

    Raises:
        DataError: no root was given, there is no such folder, or nothing in it matches.
    """
    expected = f"{corpus} is expected as {layout}"
    if root is None:
        raise DataError(f"The folder of the corpus is not given: add data.root=FOLDER. {expected}")
    if not root.is_dir():
        raise DataError(f"The corpus folder {root} does not exist. {expected} Give it as data.root=FOLDER.")
    for pattern in patterns:
        files = sorted(path for path in root.glob(pattern) if path.is_file() and not path.name.startswith("."))
        if files:
            return files
    inside = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise DataError(
        f"{root} holds no {' or '.join(patterns)}; it holds {inside}. {expected} Give it as data.root=FOLDER."
    )
