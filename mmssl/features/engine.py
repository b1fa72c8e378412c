"""Decode, forward and write buckets of clips in one process: decoding runs ahead in threads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmssl.errors import InputError, MediaError
from mmssl.features.forward import forward_clips
from mmssl.features.long_audio import Chunks, encode_long
from mmssl.features.media import Feed, Media, forward_media, load_media
from mmssl.features.plan import FAULTS, Item, fault
from mmssl.lengths import samples_to_seconds
from mmssl.types import Clip, Representation, UpstreamSpec

if TYPE_CHECKING:
    from mmssl.features.writer import EncodedClip, StoreWriter
    from mmssl.media.streaming import AudioStream
    from mmssl.upstreams.base import Upstream

    Loaded = Tensor | AudioStream | Media
    """A decoded clip: a waveform, a stream of one that will be cut, or the media of an upstream that takes more."""

Report = Callable[[dict[str, Any]], None]
"""Receives events: {"event": "done", "clips", "seconds"} and {"event": "skipped", "id", "path", "reason"}."""

_BUCKETS_AHEAD = 2


def run_buckets(
    upstream: Upstream,
    buckets: Sequence[Sequence[Item]],
    writer: StoreWriter,
    report: Report,
    *,
    on_error: str = "raise",
    num_workers: int = 2,
    chunks: Chunks | None = None,
    feed: Feed | None = None,
) -> None:
    """Compute and store the features of all buckets.

    Args:
        upstream: in eval mode, on its device.
        buckets: clips to run together.
        writer: entered.
        report: called after every bucket and for every skipped clip.
        on_error: "raise", or "skip" to leave out a clip that cannot be read, is too short or too long for the
            upstream, or whose features are not finite.
        num_workers: threads that decode and resample.
        chunks: how longer clips are cut; None where they are not.
        feed: what is read of a clip, for an upstream that takes more than waveforms; None for waveforms.

    Raises:
        MediaError, InputError: a clip cannot be used and on_error is "raise".
        StoreError: writing failed.
    """
    # what is cut may be of any length
    spec = upstream.spec if chunks is None else dataclasses.replace(upstream.spec, max_length=None)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        ahead: deque[tuple[Sequence[Item], list[Future[Loaded]]]] = deque()
        remaining = iter(buckets)
        try:
            while True:
                while len(ahead) <= _BUCKETS_AHEAD and (bucket := next(remaining, None)) is not None:
                    ahead.append((bucket, [pool.submit(_load, item, spec, chunks, feed) for item in bucket]))
                if not ahead:
                    return
                bucket, futures = ahead.popleft()
                _run_bucket(upstream, bucket, futures, writer, report, on_error, chunks, feed)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def load_waveform(item: Item, spec: UpstreamSpec) -> Tensor:
    """Decode a clip at the upstream's sample rate, (T,) float32.

    Raises:
        MediaError: the file cannot be read, or the clip is shorter or longer than the upstream takes.
    """
    from mmssl.media.audio import load_audio

    clip = item.clip
    try:
        waveform, rate = load_audio(
            str(clip.audio), sample_rate=spec.sample_rate, start=clip.start, duration=clip.duration
        )
    except OSError as error:
        raise _unreadable(clip, error) from error
    _check_length(clip, len(waveform), rate, spec)
    return waveform


def load_clips(items: Sequence[Item], spec: UpstreamSpec, feed: Feed | None) -> list[Tensor | Media]:
    """Decode clips for an upstream: those that can be used and have the same inputs as the first of them."""
    waveforms: list[Tensor] = []
    media: list[Media] = []
    for item in items:
        with contextlib.suppress(*FAULTS):
            if feed is None:
                waveforms.append(load_waveform(item, spec))
            else:
                media.append(load_media(item.clip, spec, feed))
    return [*waveforms, *(found for found in media if found.kinds == media[0].kinds)]


def forward_loaded(upstream: Upstream, loaded: Sequence[Tensor | Media]) -> list[Representation]:
    """Representations of clips as `load_clips` gives them."""
    waveforms = [clip for clip in loaded if isinstance(clip, Tensor)]
    if waveforms:
        return forward_clips(upstream, waveforms)
    return forward_media(upstream, [clip for clip in loaded if isinstance(clip, Media)])


def _load(item: Item, spec: UpstreamSpec, chunks: Chunks | None, feed: Feed | None) -> Loaded:
    """A clip's waveform, a stream of it where it will be cut into chunks, or its media."""
    if feed is not None:
        return load_media(item.clip, spec, feed)
    clip, rate = item.clip, spec.sample_rate
    if chunks is None or rate is None or item.seconds * rate <= chunks.samples:
        return load_waveform(item, spec)
    from mmssl.media.streaming import AudioStream

    try:
        stream = AudioStream(str(clip.audio), sample_rate=rate, start=clip.start, duration=clip.duration)
    except OSError as error:
        raise _unreadable(clip, error) from error
    if stream.num_samples > chunks.samples:
        return stream
    # by a rounding of its length
    with stream:
        return stream.read(0, stream.num_samples)


def _unreadable(clip: Clip, error: OSError) -> MediaError:
    return MediaError(f"The audio file {clip.audio} of the clip {clip.id!r} cannot be read: {error}.")


def _check_length(clip: Clip, samples: int, rate: int, spec: UpstreamSpec) -> None:
    if samples < spec.min_length or (spec.max_length is not None and samples > spec.max_length):
        short = samples < spec.min_length
        limit = f"least {spec.min_length}" if short else f"most {spec.max_length}"
        raise MediaError(
            f"The clip {clip.id!r} of {clip.audio} has {samples} samples at {rate} Hz "
            f"({samples_to_seconds(samples, rate):.4f} s); the upstream takes at {limit}: "
            f"{'leave it out (on_error=skip lists it) or lengthen it' if short else 'cut it into shorter segments'}."
        )


def _run_bucket(
    upstream: Upstream,
    bucket: Sequence[Item],
    futures: Sequence[Future[Loaded]],
    writer: StoreWriter,
    report: Report,
    on_error: str,
    chunks: Chunks | None,
    feed: Feed | None,
) -> None:
    items: list[Item] = []
    loaded: list[Loaded] = []
    for item, future in zip(bucket, futures, strict=True):
        try:
            loaded.append(future.result())
            items.append(item)
        except FAULTS as error:
            _skip(item, error, on_error, report)
    if not items:
        return
    found = _forward_whole(upstream, loaded, chunks)
    encoded: list[EncodedClip] = []
    seconds = 0.0
    for number, (item, clip_media) in enumerate(zip(items, loaded, strict=True)):
        try:
            if isinstance(clip_media, Media):
                clip = _encode_media(upstream, item, clip_media, found.get(number), writer)
            elif number in found:
                clip = writer.encode(item.clip.id, found[number], input_key=item.input_key)
            else:
                assert chunks is not None
                clip = _encode_long(upstream, item, clip_media, chunks, writer)
            encoded.append(clip)
            seconds += item.seconds
        except FAULTS as error:
            _skip(item, error, on_error, report)
    writer.put(encoded)
    report({"event": "done", "clips": len(encoded), "seconds": seconds})


def _forward_whole(upstream: Upstream, loaded: Sequence[Loaded], chunks: Chunks | None) -> dict[int, Representation]:
    """Place in the bucket -> representation, of the clips that are not cut.

    Empty where the upstream refuses one of several clips with video: then each is run alone, to tell which.
    """
    whole: dict[int, Tensor | Media] = {}
    for number, clip in enumerate(loaded):
        if isinstance(clip, Media) or (isinstance(clip, Tensor) and (chunks is None or len(clip) <= chunks.samples)):
            whole[number] = clip
    try:
        return dict(zip(whole, forward_loaded(upstream, list(whole.values())), strict=True)) if whole else {}
    except InputError:
        if any(isinstance(clip, Media) for clip in loaded):
            return {}
        raise


def _encode_media(
    upstream: Upstream, item: Item, media: Media, found: Representation | None, writer: StoreWriter
) -> EncodedClip:
    if found is None:
        try:
            found = forward_media(upstream, [media])[0]
        except InputError as error:
            raise InputError(f"The clip {item.clip.id!r} cannot be used: {error}") from error
    lacking = len(media.kinds) < len(upstream.spec.inputs)
    return writer.encode(item.clip.id, found, input_key=item.input_key, partial=lacking)


def _encode_long(
    upstream: Upstream, item: Item, waveform: Tensor | AudioStream, chunks: Chunks, writer: StoreWriter
) -> EncodedClip:
    store = writer.store
    with contextlib.nullcontext() if isinstance(waveform, Tensor) else waveform:
        try:
            parts = encode_long(upstream, waveform, chunks, item.clip.id, store.fingerprint.fields, store.folder)
        except OSError as error:
            raise _unreadable(item.clip, error) from error
    return writer.seal(item.clip.id, *parts, input_key=item.input_key)


def _skip(item: Item, error: MediaError | InputError, on_error: str, report: Report) -> None:
    skipped = fault(item.clip, error, on_error)
    report({"event": "skipped", "id": skipped.id, "path": skipped.path, "reason": skipped.reason})
