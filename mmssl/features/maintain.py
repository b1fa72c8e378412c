"""Looking after a store: what a dead run left, what the disk has damaged, what is superseded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmssl.errors import StoreError
from mmssl.features.locks import FolderLock
from mmssl.features.shards import Entry, content_crc, explain_write_errors, file_crc, write_part
from mmssl.features.store import FeatureStore
from mmssl.features.writer import remove_leftovers


@dataclass
class VerifyReport:
    """What `verify` found.

    Attributes:
        checked: number of clips looked at.
        damaged: id -> what is wrong; these clips must be computed again.
        damaged_parts: file name of an index part -> what is wrong; its clips count as missing.
    """

    checked: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    damaged_parts: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.damaged_parts


def verify(store: FeatureStore) -> VerifyReport:
    """Read every byte of a store and compare it with the checksums of the index."""
    report = VerifyReport(damaged_parts=dict(store.damaged_parts))
    for part in store.parts.values():
        live = [entry for entry in part.entries if store.entry(entry.id) is entry]
        report.checked += len(live)
        try:
            path = store.fetch(part.shard, fresh=True)
            size, crc = file_crc(path)
        except OSError as error:
            report.damaged |= {entry.id: f"{part.shard} cannot be read: {error.strerror or error}" for entry in live}
            continue
        if (size, crc) == (part.size, part.crc32):
            store.forget(part.shard)
            continue
        whole = f"{part.shard} has {size} bytes instead of {part.size}" if size != part.size else ""
        found = {entry.id: whole or _entry_fault(path, entry) for entry in live}
        damaged = {clip_id: reason for clip_id, reason in found.items() if reason}
        # the fault lies outside of all tensors that are in use: in the header, or in a superseded clip
        report.damaged |= damaged or dict.fromkeys(found, f"{part.shard} has another checksum than when written")
        store.forget(part.shard)
    return report


def remove(store: FeatureStore, clip_ids: Collection[str]) -> None:
    """Take clips out of a store, so that the next extraction computes them again.

    Older entries of the same clips go too. Damaged index parts are deleted with their shards.

    Raises:
        StoreError: another process is writing into the folder.
    """
    gone = set(clip_ids)
    with FolderLock(store.lock_folder, "run"), explain_write_errors(store.folder):
        store.refresh()
        for name in store.damaged_parts:
            store.delete(name)
        for name, part in list(store.parts.items()):
            kept = [entry for entry in part.entries if entry.id not in gone]
            if len(kept) == len(part.entries):
                continue
            if kept:
                size, crc = part.size, part.crc32
                with contextlib.suppress(FileNotFoundError):
                    path = store.fetch(part.shard)
                    # what is kept is whole: from now on the file is right as it is, with the damage nobody looks at
                    if not any(_entry_fault(path, entry) for entry in kept):
                        size, crc = file_crc(path)
                write_part(store.folder / name, size, crc, kept)
                store.publish(name)
                store.forget(part.shard)
            else:
                store.delete(name)
            del store.parts[name]
        store.refresh()


def gc(store: FeatureStore) -> int:
    """Delete shards in which every clip is superseded, and what dead runs left.

    Behind a URL only runs of this machine are locked out: nobody else must write meanwhile.

    Returns:
        Bytes set free.

    Raises:
        StoreError: another process is writing into the folder.
    """
    with FolderLock(store.lock_folder, "run"), explain_write_errors(store.folder):
        before = _size(store)
        sweep(store)
        store.refresh()
        for name, part in store.parts.items():
            if all(store.entry(entry.id) is not entry for entry in part.entries):
                store.delete(name)
        if store.remote is not None:
            # shards of which a dead run has not uploaded the index part
            names = set(store.remote.names())
            for name in names:
                if name.endswith(".safetensors") and f"{name.removesuffix('.safetensors')}.jsonl" not in names:
                    store.remote.delete(name)
        store.refresh()
        return before - _size(store)


def merge(sources: Sequence[FeatureStore], folder: str | Path) -> FeatureStore:
    """Put stores of one fingerprint together in one folder or behind one URL; of a clip's entries the latest counts.

    Shards are linked where the file system can, and copied elsewhere; the sources stay as they are.

    Args:
        sources: at least one, with equal fingerprints.
        folder: new, or a store of the same fingerprint.

    Raises:
        StoreError: fingerprints differ (the differences are listed), a source is damaged or is the target, or writing
            fails.
    """
    target = FeatureStore.create(folder, sources[0].fingerprint)
    for source in sources:
        differences = sources[0].fingerprint.differences(source.fingerprint)
        if differences:
            listed = "\n  ".join(differences)
            raise StoreError(f"{source.location} holds other features than {sources[0].location}:\n  {listed}")
        if (
            source.damaged_parts
            or source.address == target.address
            or source.folder.resolve() == target.folder.resolve()
        ):
            raise StoreError(f"{source.location} is damaged or is the target: verify it, or name another folder.")
    lock = target.lock_folder
    with FolderLock(lock, "run"), FolderLock(lock, "merge"), explain_write_errors(target.folder):
        number = remove_leftovers(target.folder, "merge")
        for source in sources:
            for part in source.parts.values():
                number += 1
                shard = target.folder / f"shard-merge-{number:06d}.safetensors"
                _link(source.fetch(part.shard), shard)
                source.forget(part.shard)
                target.publish(shard.name)
                entries = [dataclasses.replace(entry, shard=shard.name) for entry in part.entries]
                write_part(shard.with_suffix(".jsonl"), part.size, part.crc32, entries)
                target.publish(f"{shard.stem}.jsonl")
                target.forget(shard.name)
    target.refresh()
    return target


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        temporary = target.with_name(target.name.replace("shard-", "tmp-", 1))
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)


def sweep(store: FeatureStore) -> None:
    """Delete unfinished files of writers that are no longer alive; needs the lock "run"."""
    folder, names = store.folder, set()
    if store.remote is not None:
        # only this process writes into its working copy
        return
    for path in folder.iterdir():
        match = re.fullmatch(r"(?:tmp|shard)-(.+)-\d+\.(?:safetensors|jsonl)", path.name)
        if match:
            names.add(match[1])
    for name in names:
        with contextlib.suppress(StoreError), FolderLock(folder, name):
            remove_leftovers(folder, name)


def _entry_fault(path: Path, entry: Entry) -> str:
    """What is wrong with the tensors of one clip; an empty string where nothing is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as shard:
            # the whole name is matched, because one clip's id may be the start of another's
            streams = "|".join(re.escape(stream) for stream in entry.lengths)
            own = re.compile(rf"{re.escape(entry.id)}/({streams})/[a-z]+(/\d+)?")
            names = [name for name in shard.keys() if own.fullmatch(name)]  # noqa: SIM118
            tensors = {name: shard.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        return f"{path.name} does not open: {error}"
    return "" if content_crc(tensors) == entry.crc32 else f"its bytes in {path.name} have changed"


def _size(store: FeatureStore) -> int:
    if store.remote is not None:
        return store.remote.size()
    return sum(path.stat().st_size for path in store.folder.iterdir() if path.is_file())
