"""The feature engine: clips -> upstream -> feature store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError, MediaError
from mmssl.features.engine import Report, forward_loaded, load_clips, run_buckets
from mmssl.features.fingerprint import make_fingerprint
from mmssl.features.header import HEADER, write_notes
from mmssl.features.jobs import check_can_be_built_elsewhere, run_jobs
from mmssl.features.locks import FolderLock
from mmssl.features.long_audio import Chunks, make_chunks
from mmssl.features.maintain import sweep
from mmssl.features.media import Feed, kept_streams, make_feed
from mmssl.features.plan import Item, Plan, Skipped, check_clips, make_plan
from mmssl.features.precision import check_precision, compare, with_precision
from mmssl.features.progress import Progress, duration
from mmssl.features.store import FeatureStore
from mmssl.types import Clip

if TYPE_CHECKING:
    import torch

    from mmssl.upstreams.base import Upstream


_ERROR_CLIPS, _ERROR_SECONDS = 4, 10.0
"""Clips, and seconds of each at most, on which the error of an arithmetic is measured."""


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did.

    Attributes:
        folder: of the store, or its URL.
        fingerprint: digest of the store's fingerprint.
        done: number of clips computed.
        reused: number of clips that were in the store already.
        skipped: clips that were left out, and why.
        audio_seconds: of audio or video computed; a picture counts as one.
        wall_seconds: that it took, with planning.
        precision_error: what another arithmetic than float32 changes, as it was measured; empty for float32.
    """

    folder: Path | str
    fingerprint: str
    done: int
    reused: int
    skipped: list[Skipped] = field(default_factory=list)
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    precision_error: str = ""

    def __str__(self) -> str:
        return f"{self._counts()} {self.precision_error}".rstrip()

    def _counts(self) -> str:
        text = f"{self.folder}: {self.done} clips computed, {self.reused} were there, {len(self.skipped)} skipped"
        if not self.done:
            return f"{text}; nothing to compute." if not self.skipped else f"{text}."
        speed = self.audio_seconds / max(self.wall_seconds, 1e-9)
        hours = self.audio_seconds / 3600
        return f"{text}; {hours:.3f} h of audio in {duration(self.wall_seconds)} ({speed:.1f}x real time)."


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How and where features are computed; what is kept of them are arguments of `extract`.

    Only `precision`, `int8` and, for upstreams that see a whole clip, `chunk_seconds` and `chunk_overlap` change
    features, and they are part of the store's fingerprint.

    Args:
        device: to compute on, where the upstream is built here.
        precision: to compute in, "fp32", "bf16" or "fp16" (a GPU's fast types; slow on most CPUs).
        int8: run linear layers on 8-bit integers with a scale per row: faster on CPUs, and the same in any batch.
            What it and `precision` change is measured on some clips, and noted in the store's header.
        chunk_seconds: cut longer clips into chunks of so many seconds, in memory of that size; None for no cut.
            Upstreams whose frames see a known stretch (spectral ones) are always cut, and exactly; others see nothing
            beyond a chunk and its overlap, so that the choice changes features and is part of the fingerprint.
        chunk_overlap: seconds that a chunk sees beyond both of its ends; frames there are not kept.
        max_seconds: a longer clip counts as one that cannot be read; None for no limit.
        batch_seconds: of audio in a batch, padding included; a longer clip makes a batch alone.
        shard_seconds: a shard is written at least so often, in s of wall time: the work that a kill can cost.
        jobs: processes, each with its own upstream. On few CPU cores one per core is faster than threads for
            transformers; an upstream that takes less time than starting a process (spectral ones) is faster with 1.
        num_workers: threads per process that decode and resample.
        rank, world_size: share of this call when several calls (torchrun, an array of jobs) fill one folder.
        progress: show a bar, or lines where standard error is no terminal.
    """

    device: str | torch.device = "cpu"
    precision: str = "fp32"
    int8: bool = False
    chunk_seconds: float | None = None
    chunk_overlap: float = 2.0
    max_seconds: float | None = None
    batch_seconds: float = 32.0
    shard_seconds: float = 60.0
    jobs: int = 1
    num_workers: int = 2
    rank: int = 0
    world_size: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_seconds <= 0 or self.jobs < 1:
            given = f"{self.batch_seconds} and {self.jobs}"
            raise ConfigError(f"batch_seconds must be > 0 and jobs >= 1, got {given}.")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must be from 0 to world_size - 1, got rank {self.rank} of {self.world_size}.")


def extract(
    upstream: Upstream | str,
    clips: Sequence[Clip] | str | Path,
    folder: str | Path,
    *,
    upstream_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    frames: bool = True,
    pooled: Sequence[str] = ("mean", "std"),
    dtype: str = "float32",
    stride: int = 1,
    streams: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    partial: bool = False,
    on_error: str = "raise",
    options: ExtractOptions | None = None,
) -> ExtractSummary:
    """Compute features of clips into a feature store; what is there already is not computed again.

    The features do not depend on batches, jobs, workers, ranks or the order of the clips. A process that is killed
    loses the clips of its unfinished shard; the same call again goes on from there.

    Args:
        upstream: a name, dotted path or .py file, as `mmssl.load_upstream` takes it; or a built upstream (jobs=1).
        clips: with what the upstream takes, or the path of a manifest: audio (a path, or a URL that fsspec knows),
            video, an image. A clip with video and no audio file has the sound of its video file.
        folder: of the store, or a URL that fsspec knows; made where it does not exist.
        upstream_kwargs: for the upstream's constructor, where it is built here.
        seed: for weights that are drawn.
        layers: numbers of the layers to keep, negative ones from the end; None keeps all.
        frames: keep all frames.
        pooled: statistics over time to keep per layer: "mean", "std" (population), "max"; always float32.
        dtype: of the frames in the store: "float32" is exact, "float16" halves the size and rounds to 11 bits
            (relative error at most 2^-11 between 6e-5 and 65,504).
        stride: keep every `stride`-th frame only; pooled statistics are over all frames.
        streams: names of the streams to keep; None keeps all.
        inputs: which of the upstream's inputs to give to it, of "waveforms", "video" and "images": features of sound
            alone, or of video alone, of an audio-visual upstream. None gives all.
        partial: store clips without sound or without video with the streams that can be computed of them.
        on_error: a clip that cannot be read, lacks sound or video (unless `partial`), or is too short or long for the
            upstream: "raise" stops, "skip" leaves it out and lists it. Nothing is ever put in its place.
        options: how to compute; None for the defaults.

    Raises:
        ConfigError: an argument is wrong.
        DataError: there is no clip, two share an id, or one has nothing that the upstream takes.
        MediaError: a clip cannot be used and on_error is "raise", or no clip at all could be used.
        StoreError: the folder belongs to another configuration, is in use, or cannot be written; a worker died.
    """
    started = time.monotonic()
    how = options or ExtractOptions()
    if on_error not in ("raise", "skip"):
        raise ConfigError(f'on_error must be "raise" or "skip", got {on_error!r}.')
    kwargs = dict(upstream_kwargs or {})
    if how.jobs > 1:
        check_can_be_built_elsewhere(upstream, kwargs)
    built, fingerprint_kwargs = _build(upstream, kwargs, seed, how.device)
    feed = make_feed(built.spec, inputs, partial)
    clips = _read_clips(clips, feed)
    if feed is not None and how.chunk_seconds is not None:
        raise ConfigError("chunk_seconds cuts audio alone: cut clips with video by start and duration instead.")
    outputs: dict[str, Any] = {"frames": frames, "pooled": list(pooled), "dtype": dtype}
    outputs |= {"layers": None if layers is None else list(layers), "stride": stride}
    outputs |= _selection(built, streams, feed)
    outputs |= check_precision(how.precision, how.int8)
    chunks = make_chunks(built, how.chunk_seconds, how.chunk_overlap, stride)
    if chunks is not None and not chunks.exact:
        outputs |= {"chunk_seconds": how.chunk_seconds, "chunk_overlap": how.chunk_overlap}
    fingerprint = make_fingerprint(built, kwargs=fingerprint_kwargs, **outputs)
    store = FeatureStore.create(folder, fingerprint)
    # what a worker needs to do the same
    task: dict[str, Any] = {"upstream": upstream, "kwargs": kwargs, "seed": seed, "outputs": outputs}
    task |= {"on_error": on_error, "chunks": None if chunks is None else asdict(chunks)}
    task |= {"feed": None if feed is None else asdict(feed)}
    # a single run excludes all others; ranks of one run let each other in
    with FolderLock(store.lock_folder, "run", shared=how.world_size > 1):
        sweep(store)
        plan, done, seconds = _run(store, clips, built, task, how, feed)
    if how.world_size == 1 and len(plan.skipped) == len(clips):
        first = plan.skipped[0]
        raise MediaError(f"None of the {len(clips)} clips could be used. The first, {first.id!r}: {first.reason}")
    error = str(store.notes.get("precision_error", ""))
    wall = time.monotonic() - started
    return ExtractSummary(store.location, fingerprint.digest, done, plan.reused, plan.skipped, seconds, wall, error)


def _run(
    store: FeatureStore,
    clips: Sequence[Clip],
    exact: Upstream,
    task: dict[str, Any],
    how: ExtractOptions,
    feed: Feed | None,
) -> tuple[Plan, int, float]:
    """Plan and compute; the plan with all skipped clips, and the number and the seconds of the clips done."""
    store.refresh()
    on_error = task["on_error"]
    plan = make_plan(
        clips,
        store,
        batch_seconds=how.batch_seconds,
        rank=how.rank,
        world_size=how.world_size,
        on_error=on_error,
        max_seconds=how.max_seconds,
        num_workers=how.num_workers,
        feed=feed,
    )
    running = with_precision(exact, how.precision, how.int8)
    if running is not exact and plan.buckets and how.rank == 0:
        _note_error(store, exact, running, plan.buckets, feed)
    with Progress(plan.num_clips, plan.seconds, show=how.progress and bool(plan.buckets)) as bar:
        report = _reporter(bar, plan.skipped)
        shares = _shares(plan.buckets, how.jobs, how.rank, how.world_size)
        if len(shares) == 1:
            name, buckets = shares[0]
            chunks = None if task["chunks"] is None else Chunks(**task["chunks"])
            with store.writer(name, max_seconds=how.shard_seconds, wait=10.0) as writer:
                options: dict[str, Any] = {"on_error": on_error, "num_workers": how.num_workers}
                run_buckets(running, buckets, writer, report, chunks=chunks, feed=feed, **options)
        elif shares:
            # the workers build their own
            del exact, running
            task |= {"folder": store.address, "device": str(how.device)}
            task |= {"precision": how.precision, "int8": how.int8}
            task |= {"num_workers": how.num_workers, "shard_seconds": how.shard_seconds}
            run_jobs(task, shares, report)
    return plan, bar.done, bar.done_seconds


def _read_clips(clips: Sequence[Clip] | str | Path, feed: Feed | None) -> list[Clip]:
    if isinstance(clips, str | Path):
        from mmssl.data.manifest import read_manifest

        clips = read_manifest(clips)
    check_clips(clips, feed)
    return list(clips)


def _selection(upstream: Upstream, streams: Sequence[str] | None, feed: Feed | None) -> dict[str, Any]:
    """Fields of the fingerprint for streams that are left out and inputs that are not given; empty for all."""
    kept = kept_streams(upstream.spec, streams, feed)
    fields: dict[str, Any] = {} if kept is None else {"streams": kept}
    if feed is not None and set(feed.inputs) != set(upstream.spec.inputs):
        fields["inputs"] = sorted(feed.inputs)
    return fields


def _build(
    upstream: Upstream | str, kwargs: dict[str, Any], seed: int, device: str | torch.device
) -> tuple[Upstream, dict[str, Any] | None]:
    """The upstream, and its arguments for the fingerprint: None where they are not known."""
    from mmssl.upstreams.base import load_upstream

    if isinstance(upstream, str):
        return load_upstream(upstream, seed=seed, device=device, **kwargs), kwargs
    if kwargs:
        raise ConfigError("upstream_kwargs go with an upstream's name; this one is built already.")
    if upstream.training:
        raise ConfigError("The upstream is in training mode: call eval() on it, so that its features are repeatable.")
    return upstream, None


def _note_error(
    store: FeatureStore, exact: Upstream, running: Upstream, buckets: list[list[Item]], feed: Feed | None
) -> None:
    """Measure what another arithmetic changes on a few clips, and note it in the store, if nobody has yet."""
    if "precision_error" in store.notes:
        return
    items = [bucket[-1] for bucket in buckets if bucket[-1].seconds <= _ERROR_SECONDS]
    if not items:
        # the beginning of a long clip does as well
        shortest = buckets[-1][-1]
        items = [replace(shortest, clip=replace(shortest.clip, duration=_ERROR_SECONDS), seconds=_ERROR_SECONDS)]
    # the run itself says what is wrong with a clip
    loaded = load_clips(items[:: -(-len(items) // _ERROR_CLIPS)], exact.spec, feed)
    if loaded:
        found = compare(forward_loaded(exact, loaded), forward_loaded(running, loaded))
        store.notes["precision_error"] = str(found)
        write_notes(store.folder, store.notes)
        store.publish(HEADER)


def _shares(buckets: list[list[Item]], jobs: int, rank: int, world_size: int) -> list[tuple[str, list[list[Item]]]]:
    """Writer's name and buckets of each process that has something to do."""
    total = jobs * world_size
    shares = [(f"rank-{rank * jobs + job}-of-{total}", buckets[job::jobs]) for job in range(jobs)]
    return [share for share in shares if share[1]]


def _reporter(bar: Progress, skipped: list[Skipped]) -> Report:
    def report(event: dict[str, Any]) -> None:
        if event["event"] == "skipped":
            skipped.append(Skipped(event["id"], event["path"], event["reason"]))
            bar.update(skipped=1)
        else:
            bar.update(event["clips"], event["seconds"])

    return report
