#!/usr/bin/env python
"""Put an exported encoder of recipes/ssl into mmssl/models, its weights rounded to 16 bits.

    python tools/ship_model.py egs/debian_speech/ssl/exp/hubert-hubert/upstream hubert_nano

Weights are stored as float16 (11 bits, half the size) and computed with as float32. The page with the curves of the
training comes along as training.html. The model card, README.md, is written by hand and left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmssl.upstreams.exported import DESCRIPTION

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Copy one model and say how large it is and what the rounding changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="exp/NAME/upstream of a recipe")
    parser.add_argument("name", help="of the folder in mmssl/models")
    args = parser.parse_args()
    target = ROOT / "mmssl" / "models" / args.name
    target.mkdir(parents=True, exist_ok=True)
    weights = load_file(args.folder / "model.safetensors")
    rounded = {name: value.to(torch.float16) for name, value in weights.items()}
    if not all(bool(torch.isfinite(value).all()) for value in rounded.values()):
        print("A weight is beyond the range of float16: it cannot be stored so.", file=sys.stderr)
        return 1
    save_file(rounded, target / "model.safetensors", metadata={"format": "pt"})
    (target / DESCRIPTION).write_bytes((args.folder / DESCRIPTION).read_bytes())
    # its curves and health, as the recipe drew them
    (target / "training.html").write_bytes((args.folder.parent / "report.html").read_bytes())
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    error = max(float((rounded[name].float() - value).norm() / value.norm()) for name, value in weights.items())
    print(f"{target}: {len(weights)} tensors, {size:.1f} MB, largest relative rounding of a tensor {error:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
