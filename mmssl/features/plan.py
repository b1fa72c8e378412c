"""What has to be computed, and in which batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmssl.errors import DataError, InputError, MediaError, MmsslError
from mmssl.features.fingerprint import file_hash, input_key
from mmssl.files import is_url
from mmssl.types import Clip

if TYPE_CHECKING:
    from mmssl.features.media import Feed
    from mmssl.features.store import FeatureStore

T = TypeVar("T")
FAULTS = (MediaError, InputError)
"""Errors that concern one clip: `on_error` decides about them."""


@dataclass(frozen=True)
class Skipped:
    """A clip that was left out, its file, and why."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Item:
    """A clip to compute.

    Attributes:
        clip: the clip.
        seconds: its duration, for batching; what is decoded may differ slightly.
        input_key: what it is computed from, see `fingerprint.input_key`; empty as long as it is not known.
    """

    clip: Clip
    seconds: float
    input_key: str = ""


@dataclass
class Plan:
    """Batches to compute, number of clips that are in the store already, and clips that cannot be used."""

    buckets: list[list[Item]] = field(default_factory=list)
    reused: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def num_clips(self) -> int:
        """To compute."""
        return sum(len(bucket) for bucket in self.buckets)

    @property
    def seconds(self) -> float:
        """Of audio or video to compute."""
        return sum(item.seconds for bucket in self.buckets for item in bucket)


def check_clips(clips: Sequence[Clip], feed: Feed | None = None) -> None:
    """Refuse clips that a store cannot hold.

    Args:
        clips: of a manifest.
        feed: what is read of them; None for their audio files alone.

    Raises:
        DataError: there is none, two share an id, or one has no audio, or nothing of what is read.
    """
    if not clips:
        raise DataError("There is no clip to extract features of: the manifest or list of clips is empty.")
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise DataError(f"Two clips have the id {clip.id!r}: ids must be unique, since features are found by them.")
        seen.add(clip.id)
        if feed is not None:
            from mmssl.features.media import check_media

            check_media(clip, feed)
        elif clip.audio is None:
            raise DataError(f"The clip {clip.id!r} has no audio file: features of audio were asked for.")


def make_plan(
    clips: Sequence[Clip],
    store: FeatureStore,
    *,
    batch_seconds: float,
    rank: int = 0,
    world_size: int = 1,
    on_error: str = "raise",
    max_seconds: float | None = None,
    num_workers: int = 2,
    feed: Feed | None = None,
) -> Plan:
    """Deal all clips into batches, take this rank's, and leave out what the store has.

    The batches depend on all clips and not on what is done already or on the number of ranks, so that a clip meets the
    same others in its batch after a restart: even an upstream that rounds differently in each batch gives the same
    bits then. A clip is computed if it is not in the store, or was computed from other bytes or another stretch of
    its file.

    Args:
        clips: with what is read of them.
        store: what is there already.
        batch_seconds: see `make_buckets`.
        rank, world_size: which share of the batches.
        on_error: "raise", or "skip" to list what cannot be used; each such clip is listed by one rank.
        max_seconds: a longer clip is a fault; None for no limit.
        num_workers: threads that read files.
        feed: what is read; None for audio files alone.

    Raises:
        MediaError: a file cannot be read, or a clip is too long, and on_error is "raise".
    """
    plan = Plan()
    measured: list[Item] = []
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        seconds = _in_order(pool, lambda clip: _seconds(clip, max_seconds, feed), clips)
        for number, (clip, result) in enumerate(zip(clips, seconds, strict=True)):
            try:
                measured.append(Item(clip, result()))
            except FAULTS as error:
                skipped = fault(clip, error, on_error)
                if number % world_size == rank:
                    plan.skipped.append(skipped)
        own = make_buckets(measured, batch_seconds)[rank::world_size]
        key = _KeyOf(feed)
        keys = iter(_in_order(pool, key, [item.clip for bucket in own for item in bucket]))
        for bucket in own:
            todo: list[Item] = []
            for item in bucket:
                try:
                    found = Item(item.clip, item.seconds, next(keys)())
                except FAULTS as error:
                    plan.skipped.append(fault(item.clip, error, on_error))
                    continue
                if item.clip.id in store and store.entry(item.clip.id).input == found.input_key:
                    plan.reused += 1
                else:
                    todo.append(found)
            if todo:
                plan.buckets.append(todo)
    return plan


def fault(clip: Clip, error: MmsslError, on_error: str) -> Skipped:
    """Apply the policy to an error that concerns one clip: return what to list, or raise it."""
    if on_error == "raise":
        raise error
    return Skipped(clip.id, str(clip.audio or clip.video or clip.image), str(error))


def make_buckets(items: Iterable[Item], batch_seconds: float) -> list[list[Item]]:
    """Batches of clips of about the same length, longest first.

    The longest clip of a bucket times the number of its clips is at most `batch_seconds`, unless it is one clip alone:
    that is what a padded batch costs. The longest come first so that a lack of memory shows at once.
    """
    buckets: list[list[Item]] = []
    for item in sorted(items, key=lambda item: (-item.seconds, item.clip.id)):
        if buckets and (len(buckets[-1]) + 1) * buckets[-1][0].seconds <= batch_seconds:
            buckets[-1].append(item)
        else:
            buckets.append([item])
    return buckets


class _KeyOf:
    """Input key of a clip; a file that several clips are segments of is read once."""

    def __init__(self, feed: Feed | None = None) -> None:
        self._feed = feed
        self._hashes: dict[str, str] = {}

    def __call__(self, clip: Clip) -> str:
        paths = [str(clip.audio)]
        if self._feed is not None:
            from mmssl.features.media import files_of

            paths = files_of(clip, self._feed)
        return input_key("+".join(self._hash(path) for path in paths), clip.start, clip.duration)

    def _hash(self, path: str) -> str:
        from mmssl.media.remote import local_file

        if path not in self._hashes:
            try:
                with local_file(path) as file:
                    self._hashes[path] = file_hash(file)
            except OSError as error:
                kind = "audio" if self._feed is None else "media"
                raise MediaError(f"The {kind} file {path} cannot be read: {error.strerror or error}.") from error
        return self._hashes[path]


def _seconds(clip: Clip, max_seconds: float | None, feed: Feed | None) -> float:
    seconds = clip.duration
    if feed is not None:
        from mmssl.features.media import media_seconds

        seconds = media_seconds(clip, feed)
    elif seconds is None:
        from mmssl.media.audio import audio_info

        seconds = max(audio_info(str(clip.audio)).duration - clip.start, 0.0)
    if max_seconds is not None and seconds > max_seconds:
        raise MediaError(
            f"The clip {clip.id!r} of {clip.audio or clip.video} lasts {seconds:.1f} s, more than the {max_seconds:g} "
            f"s allowed by max_seconds: cut it into segments (start, duration), or raise the limit."
        )
    return seconds


def _in_order(pool: ThreadPoolExecutor, work: Callable[[Clip], T], clips: Sequence[Clip]) -> Iterable[Callable[[], T]]:
    """Results in the order of the clips, a bounded number of them ahead; each is a call that returns or raises."""
    ahead: deque[Future[T]] = deque()
    for clip in clips:
        ahead.append(pool.submit(work, clip))
        if len(ahead) >= 256:
            yield ahead.popleft().result
    for future in ahead:
        yield future.result


def item_to_record(item: Item) -> dict[str, Any]:
    """Plain values of an item, for a worker process."""
    clip = item.clip
    return {
        "id": clip.id,
        **{kind: _absolute(getattr(clip, kind)) for kind in ("audio", "video", "image")},
        "start": clip.start,
        "duration": clip.duration,
        "input_key": item.input_key,
        "seconds": item.seconds,
    }


def item_from_record(record: dict[str, Any]) -> Item:
    """Inverse of `item_to_record`; labels are not carried."""
    fields = ("id", "audio", "video", "image", "start", "duration")
    clip = Clip(**{name: record[name] for name in fields})
    return Item(clip, record["seconds"], record["input_key"])


def _absolute(path: str | None) -> str | None:
    return path if path is None or is_url(path) else str(Path(path).absolute())
