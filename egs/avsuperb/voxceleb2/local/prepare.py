"""VoxCeleb2: dev/mp4/SPEAKER/VIDEO/CLIP.mp4 to train on, test/mp4/... to test, and trials among the test speakers."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from mmssl.data.trials import Trials, make_trials, write_trials
from mmssl.errors import DataError
from mmssl.stages.context import log
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LAYOUT = "the folder of VoxCeleb2 with dev/mp4/idNNNNN/VIDEO/NNNNN.mp4 and test/mp4/idNNNNN/VIDEO/NNNNN.mp4."
LIST = "test.lst"
PER_SPEAKER = 500


def prepare(root: Path | None, folder: Path, videos: int | None = 5, clips: int | None = None) -> list[Clip]:
    """Clips of the training speakers and those of the trials; data/trials.txt has the clips' ids.

    Args:
        root: of the corpus.
        folder: where trials.txt goes.
        videos: of each training speaker, the first ones by name; None for all.
        clips: of each of these videos, the first ones by name; None for all.
    """
    found = []
    for speaker, own in _tree(root, "dev").items():
        for paths in list(own.values())[:videos]:
            found += [_clip(path, speaker, "train") for path in paths[:clips]]
    tested = _tree(root, "test")
    shared = sorted({clip.speaker for clip in found} & set(tested))
    if shared:
        raise DataError(f"{len(shared)} speakers are in dev and in test, among them {shared[0]}: the copy is wrong.")
    known = {_id(p): _clip(p, speaker, "test") for speaker, own in tested.items() for ps in own.values() for p in ps}
    given = Path(root or folder) / LIST
    if given.is_file():
        trials = _listed(given)
        missing = [clip for clip in dict.fromkeys((*trials.enrol, *trials.test)) if clip not in known]
        if missing:
            raise DataError(f"{given} names {len(missing)} clips that are not there, among them {missing[0]}.")
    else:
        # one clip of each video: two clips of a trial are never of one recording
        firsts = {_id(ps[0]): speaker for speaker, own in tested.items() for ps in own.values()}
        trials = make_trials(firsts, per_speaker=PER_SPEAKER)
        log.info("   there is no %s: %d trials were drawn", LIST, len(trials))
    folder.mkdir(parents=True, exist_ok=True)
    write_trials(folder / "trials.txt", trials)
    return [*found, *(known[clip] for clip in dict.fromkeys((*trials.enrol, *trials.test)))]


def _tree(root: Path | None, part: str) -> dict[str, dict[str, list[Path]]]:
    """Speaker -> video -> its clips."""
    tree: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in corpus_files(root, "VoxCeleb2", [f"{part}/mp4/*/*/*.mp4"], LAYOUT):
        tree[path.parts[-3]][path.parts[-2]].append(path)
    return tree


def _listed(path: Path) -> Trials:
    """AV-SUPERB's list: 1 or 0, and two files from the corpus folder on, separated by commas."""
    rows = []
    with path.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if len(row) != 3 or row[0] not in ("0", "1"):
                raise DataError(f"{path}:{number}: expected 1 or 0 and two files, separated by commas, got {row}.")
            rows.append((_id(Path(row[1])), _id(Path(row[2])), row[0] == "1"))
    if not rows:
        raise DataError(f"{path} holds no trial.")
    enrol, test, target = zip(*rows, strict=True)
    return Trials(enrol, test, target)


def _clip(path: Path, speaker: str, split: str) -> Clip:
    return Clip(_id(path), video=str(path), labels={"speaker_name": speaker}, speaker=speaker, split=split)


def _id(path: Path) -> str:
    return "-".join([*path.parts[-3:-1], path.stem])
