"""SUPERB ER: the corpus of egs/iemocap/ser."""

from __future__ import annotations

import runpy
from pathlib import Path

prepare = runpy.run_path(str(Path(__file__).parents[3] / "iemocap" / "ser" / "local" / "prepare.py"))["prepare"]
