"""mini: the corpus of egs/mini/ser."""

from __future__ import annotations

import runpy
from pathlib import Path

prepare = runpy.run_path(str(Path(__file__).parents[2] / "ser" / "local" / "prepare.py"))["prepare"]
