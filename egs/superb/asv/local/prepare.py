"""VoxCeleb1: wav/SPEAKER/VIDEO/FILE.wav (or dev/wav and test/wav) and veri_test.txt (or veri_test2.txt)."""

from __future__ import annotations

from pathlib import Path

from mmssl.data.trials import Trials, read_trials, write_trials
from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LAYOUT = "the folder of VoxCeleb1 with veri_test.txt or veri_test2.txt and wav/idNNNNN (or dev/wav and test/wav)."


def prepare(root: Path | None, folder: Path, trials: str | None = None) -> list[Clip]:
    """The clips of the trials ("test") and those of all other speakers ("train"); data/trials.txt has the clips' ids.

    Args:
        root: of the corpus.
        folder: where trials.txt goes.
        trials: name of the list; None for veri_test.txt, or veri_test2.txt where there is no other.
    """
    names = [trials] if trials else ["veri_test.txt", "veri_test2.txt"]
    table = corpus_files(root, "VoxCeleb1", names, LAYOUT)[0]
    listed = read_trials(table, "voxceleb")
    tops = [top for top in (table.parent / t for t in ("wav", "dev/wav", "test/wav")) if top.is_dir()]
    files = {path.relative_to(top).as_posix(): path for top in tops for path in sorted(top.glob("*/*/*.wav"))}
    asked = dict.fromkeys((*listed.enrol, *listed.test))
    missing = [name for name in asked if name not in files]
    if missing:
        raise DataError(
            f"{table} names {len(missing)} files that are in none of {', '.join(map(str, tops)) or 'wav'}, among them "
            f"{missing[0]}: the copy is not whole."
        )
    tested = {name.split("/")[0] for name in asked}
    clips = []
    for name, path in files.items():
        speaker = name.split("/")[0]
        # a file of a test speaker that no trial asks for is neither trained on nor tested
        if speaker in tested and name not in asked:
            continue
        split = "test" if speaker in tested else "train"
        clips.append(Clip(_id(name), audio=str(path), labels={"speaker_name": speaker}, speaker=speaker, split=split))
    folder.mkdir(parents=True, exist_ok=True)
    rows = Trials(tuple(map(_id, listed.enrol)), tuple(map(_id, listed.test)), listed.is_target)
    write_trials(folder / "trials.txt", rows)
    return clips


def _id(name: str) -> str:
    return name.removesuffix(".wav").replace("/", "-")
