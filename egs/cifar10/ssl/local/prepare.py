"""CIFAR-10 as pictures: train/CLASS/*.jpg and test/CLASS/*.jpg, in a folder or in a tar of such a folder."""

from __future__ import annotations

import tarfile
from pathlib import Path

from mmssl.errors import DataError
from mmssl.types import Clip

LAYOUT = "train/CLASS/*.jpg (or .png) and test/CLASS/*.jpg, as a folder or as a .tar with these in it."
# of the training pictures of a class, every tenth is for development
DEV_EVERY = 10


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    """Clips with `image`, the label `class` and the split.

    Args:
        root: the folder, the .tar, or a folder with one .tar in it, which is unpacked to data/pictures.
        folder: data/ of the recipe, where a .tar is unpacked.
    """
    if root is None:
        raise DataError(f"The pictures are not given: add data.root=FOLDER. CIFAR-10 is expected as {LAYOUT}")
    place = unpacked(root, folder / "pictures")
    clips = []
    for split in ("train", "test"):
        for kind in sorted(path for path in (place / split).glob("*") if path.is_dir()):
            files = sorted(path for path in kind.iterdir() if path.suffix in (".jpg", ".png"))
            for number, path in enumerate(files):
                part = "dev" if split == "train" and number % DEV_EVERY == 0 else split
                clips.append(
                    Clip(
                        id=f"{split}-{kind.name}-{path.stem}", image=str(path), labels={"class": kind.name}, split=part
                    )
                )
    if {clip.split for clip in clips} != {"train", "dev", "test"}:
        raise DataError(f"{root} has no pictures for both train and test; expected is {LAYOUT}")
    return clips


def unpacked(root: Path, target: Path) -> Path:
    """The folder that has train/ in it; a tar is unpacked once, and nothing in it may lead outside the target."""
    if (root / "train").is_dir():
        return root
    archives = [root] if root.is_file() else sorted(root.glob("*.tar"))
    if len(archives) != 1:
        raise DataError(f"{root} holds neither train/ nor one .tar. CIFAR-10 is expected as {LAYOUT}")
    if not (target / "train").is_dir():
        partial = target.with_name(f".{target.name}.part")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(partial, filter="data")
        partial.replace(target)
    return target
