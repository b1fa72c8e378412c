"""UCF101: UCF-101/Basketball/v_Basketball_g01_c01.avi is class Basketball, group 01 (one source video), clip 01."""

from __future__ import annotations

import re
from pathlib import Path

from mmssl.errors import DataError
from mmssl.media.video import video_info
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

NAME = re.compile(r"v_(?P<label>[A-Za-z]+)_g(?P<group>\d\d)_c\d\d")
PATTERNS = ["*/v_*_g??_c??.avi", "UCF-101/*/v_*_g??_c??.avi", "*/v_*_g??_c??.mp4"]
LAYOUT = "the folder UCF-101 with a folder for each class, of files such as Basketball/v_Basketball_g01_c01.avi."
TEST, DEV = range(1, 8), range(8, 10)
"""Groups of the first official test list, and those of its training list that AV-SUPERB develops on."""


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    """Clips with sound alone, as in AV-SUPERB: half of the classes were published without."""
    clips = []
    files = corpus_files(root, "UCF101", PATTERNS, LAYOUT)
    for path in files:
        match = NAME.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path} is not named as UCF101 names its files: {LAYOUT} Remove it, or check data.root.")
        if not video_info(path).has_audio:
            continue
        number = int(match["group"])
        split = "test" if number in TEST else "dev" if number in DEV else "train"
        labels = {"action": match["label"], "source": f"{match['label']}_g{match['group']}"}
        clips.append(Clip(id=path.stem, video=str(path), labels=labels, split=split))
    if not clips:
        raise DataError(f"None of the {len(files)} files below {root} has sound: these are not the published files.")
    return clips
