"""Copy a feature store into formats that other tools read.

Each clip gives one matrix: all frames of one layer (T, D), of all layers (L, T, D) where the format holds more than
two axes, or a pooled statistic (L, D).
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from mmssl.errors import ConfigError, StoreError, did_you_mean
from mmssl.features.shards import explain_write_errors
from mmssl.features.store import FeatureStore

Arrays = Iterator[tuple[str, np.ndarray]]


def export(
    store: FeatureStore,
    target: str | Path,
    kind: str = "npy",
    *,
    stream: str = "audio",
    layer: int | None = None,
    stat: str | None = None,
) -> int:
    """Write every clip of a store into a new folder.

    Args:
        store: to read from.
        target: folder that does not exist yet; it appears when everything is in it.
        kind: "npy" (one file per clip and an index.json of ids and files), "kaldi" (feats.ark, feats.scp),
            "hdf5" (features.h5, one data set per clip), "webdataset" (tar files of <number>.npy and <number>.json) or
            "parquet" (columns id, shape and features, the values in order; `datasets.load_dataset("parquet", ...)` of
            Hugging Face reads it).
        stream: of the upstream.
        layer: number of one layer; None takes all of them. "kaldi" needs one for frames.
        stat: "mean", "std" or "max" instead of frames.

    Returns:
        Number of clips written.

    Raises:
        ConfigError: an unknown kind, a layer is needed, or a package is missing.
        StoreError: the target exists, layers cannot be stacked, or reading or writing fails.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no export format {kind!r}.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}.")
    if kind == "kaldi" and layer is None and stat is None:
        raise ConfigError("A Kaldi archive holds matrices: name the layer to export, or a pooled statistic.")
    target = Path(target)
    if target.exists():
        raise StoreError(f"{target} exists: name a new folder, or remove that one.")
    temporary = target.with_name(f"tmp-{target.name}")
    with explain_write_errors(target.parent):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            count = KINDS[kind](_arrays(store, stream, layer, stat), temporary)
            temporary.replace(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return count


def _arrays(store: FeatureStore, stream: str, layer: int | None, stat: str | None) -> Arrays:
    layers = None if layer is None else [layer]
    for clip_id in store.ids:
        if stat is None:
            states = [h.numpy() for h in store.read(clip_id, stream, layers).hidden_states]
        else:
            states = [h[0].numpy() for h in store.pooled(clip_id, stream, stat, layers).hidden_states]
        if layer is not None and stat is None:
            yield clip_id, states[0]
            continue
        if len({state.shape for state in states}) > 1:
            raise StoreError(
                "The layers differ in width or rate, so they cannot be stacked: export one layer at a time."
            )
        yield clip_id, np.stack(states)


def _write_npy(arrays: Arrays, folder: Path) -> int:
    files: dict[str, str] = {}
    taken: set[str] = set()
    for number, (clip_id, array) in enumerate(arrays):
        # ids may hold characters that a file name must not, and some file systems ignore case
        plain = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}", clip_id) and clip_id.lower() not in taken
        name = f"{clip_id}.npy" if plain else f"clip-{number:08d}~.npy"
        np.save(folder / name, array)
        taken.add(clip_id.lower())
        files[clip_id] = name
    (folder / "index.json").write_text(json.dumps(files, indent=1, ensure_ascii=False) + "\n")
    return len(files)


def _write_kaldi(arrays: Arrays, folder: Path) -> int:
    kaldiio = _optional("kaldiio")
    count = 0
    ark, scp = folder / "feats.ark", folder / "feats.scp"
    with kaldiio.WriteHelper(f"ark,scp:{ark},{scp}") as writer:
        for clip_id, array in arrays:
            if re.search(r"\s", clip_id):
                raise StoreError(f"Kaldi keys hold no blanks, but a clip is called {clip_id!r}: choose another format.")
            writer(clip_id, array)
            count += 1
    # the scp names the archive by where it will lie
    final = (folder.parent / folder.name.removeprefix("tmp-") / ark.name).absolute()
    scp.write_text(scp.read_text().replace(f"{ark}:", f"{final}:"))
    return count


def _write_hdf5(arrays: Arrays, folder: Path) -> int:
    h5py = _optional("h5py")
    count = 0
    with h5py.File(folder / "features.h5", "w") as file:
        for clip_id, array in arrays:
            # a slash in a name would make groups, and a clip cannot be both a group and a data set
            data = file.create_dataset(clip_id.replace("%", "%25").replace("/", "%2F"), data=array)
            data.attrs["id"] = clip_id
            count += 1
    return count


def _write_webdataset(arrays: Arrays, folder: Path) -> int:
    count, archive = 0, None
    try:
        for clip_id, array in arrays:
            if count % 1000 == 0:
                if archive is not None:
                    archive.close()
                archive = tarfile.open(folder / f"features-{count // 1000:06d}.tar", "w")  # noqa: SIM115
            buffer = io.BytesIO()
            np.save(buffer, array)
            for suffix, content in (("json", json.dumps({"id": clip_id}).encode()), ("npy", buffer.getvalue())):
                member = tarfile.TarInfo(f"{count:08d}.{suffix}")
                member.size = len(content)
                assert archive is not None
                archive.addfile(member, io.BytesIO(content))
            count += 1
    finally:
        if archive is not None:
            archive.close()
    return count


def _write_parquet(arrays: Arrays, folder: Path) -> int:
    pyarrow, parquet = _optional("pyarrow"), _optional("pyarrow.parquet")
    columns = [("id", pyarrow.string()), ("shape", pyarrow.list_(pyarrow.int64()))]
    schema = pyarrow.schema([*columns, ("features", pyarrow.list_(pyarrow.float32()))])
    count = 0
    with parquet.ParquetWriter(folder / "features.parquet", schema) as writer:
        for clip_id, array in arrays:
            flat = pyarrow.array(array.astype(np.float32).reshape(-1))
            features = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(flat)], pyarrow.int32()), flat)
            shape = pyarrow.array([list(array.shape)], schema.field("shape").type)
            row = pyarrow.record_batch([pyarrow.array([clip_id]), shape, features], schema=schema)
            # one row group per clip: what is read of a clip is the clip
            writer.write_batch(row, row_group_size=1)
            count += 1
    return count


def _optional(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"This export needs the package {name}: pip install 'mmssl[export]'.") from error


KINDS: dict[str, Callable[[Arrays, Path], int]] = {
    "npy": _write_npy,
    "kaldi": _write_kaldi,
    "hdf5": _write_hdf5,
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
}
"""Export format -> what writes it."""
