"""FSDD: 7_theo_12.wav is digit 7, speaker theo, take 12. Each is bound once to a handwritten picture of its digit."""

from __future__ import annotations

import random
import re
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)")
LAYOUT = (
    "the Free Spoken Digit Dataset: a folder of files such as 7_theo_12.wav, or one with such a folder recordings/."
)


def prepare(root: Path | None, folder: Path, seed: int = 0) -> list[Clip]:
    """Clips with `audio` and `image`. No picture is shared by two speakers, so that folds share none either.

    Args:
        root: folder of FSDD.
        folder: data/ of the recipe; pictures are written to its folder digits.
        seed: of which picture goes with which clip.
    """
    found = []
    for path in corpus_files(root, "FSDD", ["*.wav", "recordings/*.wav"], LAYOUT):
        match = NAME.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path} is not named as FSDD names its files: {LAYOUT} Remove it, or check data.root.")
        found.append((match["digit"], match["speaker"], path))
    speakers = sorted({speaker for _, speaker, _ in found})
    pictures = write_digits(folder / "digits")
    clips = []
    for digit in sorted({digit for digit, _, _ in found}):
        draw = random.Random(f"{seed} {digit}")
        shuffled = draw.sample(pictures[digit], len(pictures[digit]))
        for index, speaker in enumerate(speakers):
            own = shuffled[index :: len(speakers)]
            if not own:
                raise DataError(f"There are {len(shuffled)} pictures of the digit {digit}, fewer than speakers.")
            paths = [path for d, s, path in found if (d, s) == (digit, speaker)]
            # every picture of the speaker is used before one is used again
            for place, path in enumerate(draw.sample(paths, len(paths))):
                image = own[place % len(own)]
                labels = {"digit": digit, "picture": image.stem}
                clips.append(Clip(id=path.stem, audio=str(path), image=str(image), labels=labels, speaker=speaker))
    return sorted(clips, key=lambda clip: clip.id)


def write_digits(folder: Path) -> dict[str, list[Path]]:
    """scikit-learn's 1,797 handwritten digits as grey 8 x 8 png files: digit -> files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    files: dict[str, list[Path]] = {}
    for number, (picture, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / f"{number:04d}.png"
        # 17 levels, 0 to 16
        Image.fromarray((picture * (255 / 16)).round().astype("uint8")).save(path)
        files.setdefault(str(digit), []).append(path)
    return files
