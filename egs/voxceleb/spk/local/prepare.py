"""VoxCeleb: voxceleb1/{dev,test}/wav and voxceleb2/dev/{aac,wav}, each SPEAKER/VIDEO/FILE, and lists of trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmssl.data.files import some
from mmssl.data.trials import Trials, read_trials, write_trials
from mmssl.errors import ConfigError, DataError, did_you_mean
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LISTS = {"vox1-o": "veri_test2.txt", "vox1-e": "list_test_all2.txt", "vox1-h": "list_test_hard2.txt"}
TRAIN = {"voxceleb1": ("voxceleb1",), "voxceleb2": ("voxceleb2",), "both": ("voxceleb1", "voxceleb2")}
TOPS = ("dev/wav", "test/wav", "dev/aac", "wav", "aac")
ENDINGS = (".wav", ".m4a", ".flac")
LAYOUT = (
    "a folder with voxceleb1/ (dev/wav and test/wav, or wav), voxceleb2/ (dev/aac or dev/wav), each with "
    "SPEAKER/VIDEO/FILE, and the lists veri_test2.txt, list_test_all2.txt, list_test_hard2.txt, those of them you have."
)


def prepare(
    root: Path | None, folder: Path, train: str = "voxceleb2", trials: Mapping[str, str | None] | None = None
) -> list[Clip]:
    """The clips of the trials ("test"), those of all other speakers of the training corpora ("train"), and the lists.

    Args:
        root: of it all.
        folder: trial lists go to its folder trials.
        train: voxceleb1, voxceleb2 or both. Speakers of a trial are never trained on.
        trials: name -> file of a list below the root; None for those of Vox1-O, E and H (cleaned) that are there.
    """
    if train not in TRAIN:
        raise ConfigError(
            f"data.options.train: there is no {train!r}.{did_you_mean(train, TRAIN)} It is one of {', '.join(TRAIN)}."
        )
    corpus_files(root, "VoxCeleb", ["voxceleb1/**/*.*"], LAYOUT)
    assert root is not None  # corpus_files refuses None
    lists = read_lists(root, trials)
    asked = dict.fromkeys(name for listed in lists.values() for name in (*listed.enrol, *listed.test))
    files = {corpus: files_of(root / corpus) for corpus in dict.fromkeys(("voxceleb1", *TRAIN[train]))}
    missing = [name for name in asked if stem(name) not in files["voxceleb1"]]
    if missing:
        raise DataError(
            f"The lists {', '.join(lists)} name {len(missing)} files that are not in {root}/voxceleb1: "
            f"{some(missing)}. The copy is not whole."
        )
    wanted, tested = {stem(name) for name in asked}, {name.split("/")[0] for name in asked}
    clips = []
    for corpus, found in files.items():
        for name, path in found.items():
            speaker = name.split("/")[0]
            is_test = corpus == "voxceleb1" and name in wanted
            # a file of a tested speaker that no trial asks for is neither trained on nor tested
            if is_test or (corpus in TRAIN[train] and speaker not in tested):
                part = "test" if is_test else "train"
                clips.append(Clip(name, audio=str(path), labels={"speaker": speaker}, speaker=speaker, split=part))
    if not any(clip.split == "train" for clip in clips):
        raise DataError(
            f"Every speaker of {train} is in a trial of {', '.join(lists)}, so that nobody is left to train on: take "
            "data.options.train=voxceleb2, or the list vox1-o alone (data.options.trials.vox1-o=veri_test2.txt)."
        )
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    for name, listed in lists.items():
        rows = Trials(tuple(map(stem, listed.enrol)), tuple(map(stem, listed.test)), listed.is_target)
        write_trials(folder / "trials" / f"{name}.txt", rows)
    return clips


def read_lists(root: Path, trials: Mapping[str, str | None] | None) -> dict[str, Trials]:
    """The lists by name; raises DataError where there is none."""
    asked = {name: file for name, file in (trials or {}).items() if file}
    if asked:
        return {name: read_trials(root / file, "voxceleb") for name, file in asked.items()}
    places = {name: [root / file, root / "voxceleb1" / file] for name, file in LISTS.items()}
    present = {name: next((p for p in paths if p.is_file()), None) for name, paths in places.items()}
    found = {name: read_trials(path, "voxceleb") for name, path in present.items() if path is not None}
    if not found:
        raise DataError(f"{root} holds none of {', '.join(LISTS.values())}. VoxCeleb is expected as {LAYOUT}")
    return found


def files_of(corpus: Path) -> dict[str, Path]:
    """Sound files below a corpus by SPEAKER/VIDEO/FILE, without ending."""
    tops = [corpus / top for top in TOPS if (corpus / top).is_dir()]
    if not tops:
        raise DataError(f"{corpus} has none of {', '.join(TOPS)}. VoxCeleb is expected as {LAYOUT}")
    found = {}
    for top in tops:
        for path in sorted(top.glob("*/*/*")):
            if path.suffix in ENDINGS:
                found[stem(path.relative_to(top).as_posix())] = path
    return found


def stem(name: str) -> str:
    """SPEAKER/VIDEO/FILE without its ending."""
    head, _, ending = name.rpartition(".")
    return head if f".{ending}" in ENDINGS else name
