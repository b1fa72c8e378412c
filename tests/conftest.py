from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpora() -> Callable[[str], Path]:
    """corpora("emodb") -> folder of a real corpus under $MMSSL_DATA; skips the test where it is absent."""

    def find(name: str) -> Path:
        root = os.environ.get("MMSSL_DATA")
        if not root:
            pytest.skip("MMSSL_DATA does not name a folder of real corpora")
        folder = Path(root) / name
        if not folder.exists():
            pytest.skip(f"{folder} does not exist")
        return folder

    return find
