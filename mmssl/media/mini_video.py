"""The pictures of the corpus `mini`: a drawn talking head to every clip, in an mp4 with its sound.

Rendering is divided among worker processes, each of which is this module run as a script: it takes a JSON list of jobs
on standard input, writes the files, and answers with their checksums. What a file holds depends on its job alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import MediaError
from mmssl.lengths import frames_on_screen
from mmssl.media.paths import write_atomically
from mmssl.types import Clip

if TYPE_CHECKING:
    import numpy

    from mmssl.media.face import Colour, Expression, Pose
    from mmssl.media.talking import Actor

FPS = 25
SIZE = 96
STAMP = "mini_video.json"
# Raised when the pictures of a given seed change, so that folders made before are made anew.
_VERSION = 1
_FACE_STREAM, _CLIP_STREAM = 3, 4
# What looks at a half-size copy of the pictures is off: x264 reads past the edge of copies as small as these, and its
# choices then differ from run to run.
_STEADY = "bframes=0:weightp=0:mbtree=0:rc-lookahead=0:sync-lookahead=0:scenecut=0"
# Below it, starting processes costs more than it saves.
_CLIPS_PER_WORKER = 12
_MOST_WORKERS = 16


@dataclass(frozen=True)
class Job:
    """All that determines a video: numbers for the generators, what is said how, and where it lies."""

    root: str
    clip_id: str
    gender: str
    emotion: str
    duration: float
    seed: int
    speaker: int
    sentence: int


def add_videos(root: Path, clips: Sequence[Clip], seed: int, sound: dict[str, str]) -> list[Clip]:
    """Draw `video/<id>.mp4` for every clip of a finished corpus, or find them there complete.

    Args:
        root: folder of the corpus.
        clips: its clips.
        seed: of the corpus.
        sound: checksum of each clip's sound; videos made for another sound are made anew.

    Returns:
        The clips with their `video`.

    Raises:
        MediaError: a worker fails.
    """
    made_by = {"version": _VERSION, "encoder": _encoder_versions(), "sound": sound}
    if not _finished(root, made_by, clips):
        remove_videos(root)
        (root / "video").mkdir(exist_ok=True)
        sums = _render_all([job_of(root, clip, seed) for clip in clips])
        stamp = {"settings": made_by, "sha256": sums}
        write_atomically(root / STAMP, json.dumps(stamp, indent=1).encode())
    return [replace(clip, video=str(root / "video" / f"{clip.id}.mp4")) for clip in clips]


def remove_videos(root: Path) -> None:
    """Take away the stamp and then the videos of a corpus made before."""
    stamp = _read_stamp(root)
    (root / STAMP).unlink(missing_ok=True)
    for clip_id in stamp["sha256"] if stamp else ():
        (root / "video" / f"{clip_id}.mp4").unlink(missing_ok=True)


def draw_frames(job: Job) -> Iterator[numpy.ndarray]:
    """Pictures of a clip, (96, 96, 3) uint8 each, 25 per second, until the sound is over."""
    import numpy as np

    from mmssl.media.face import backdrop, draw_face

    actor, rng, frames = performance(job)
    # the room and its light say nothing about who speaks or how
    colour = rng.uniform(70, 215, 3)
    light = rng.uniform(0.6, 1.0)
    ground = backdrop(_rounded(colour), _rounded(colour * light), SIZE)
    gain = np.exp(0.07 * rng.standard_normal()) * np.exp(0.03 * rng.standard_normal(3))
    for expression, pose in frames:
        picture = draw_face(ground, actor.identity, expression, pose)
        yield np.clip(np.round(picture * gain), 0, 255).astype(np.uint8)


def performance(job: Job) -> tuple[Actor, numpy.random.Generator, list[tuple[Expression, Pose]]]:
    """Who speaks, the generator of what else is drawn of the clip, and expression and pose of each picture."""
    import numpy as np

    from mmssl.media.mini import EMOTIONS, read_phones
    from mmssl.media.talking import make_actor, perform

    actor = make_actor(np.random.default_rng((job.seed, _FACE_STREAM, job.speaker)), job.gender)
    stream = (job.seed, _CLIP_STREAM, job.speaker, job.sentence, EMOTIONS.index(job.emotion))
    rng = np.random.default_rng(stream)
    phones = read_phones(Path(job.root) / "phones" / f"{job.clip_id}.tsv")
    num_frames = frames_on_screen(Fraction(repr(job.duration)), Fraction(FPS), Fraction(0))
    return actor, rng, perform(rng, actor, job.emotion, phones, num_frames, FPS)


def _rounded(colour: numpy.ndarray) -> Colour:
    red, green, blue = (round(float(value)) for value in colour)
    return red, green, blue


def render(job: Job) -> str:
    """Draw and write one clip; returns the SHA-256 of its file."""
    content = _encode(draw_frames(job), Path(job.root) / "wav" / f"{job.clip_id}.wav")
    write_atomically(Path(job.root) / "video" / f"{job.clip_id}.mp4", content)
    return hashlib.sha256(content).hexdigest()


def job_of(root: Path, clip: Clip, seed: int) -> Job:
    """What determines the video of a clip of the corpus in `root`."""
    speaker, sentence = int(str(clip.speaker)[3:]), int(clip.labels["sentence"][1:])
    labels, duration = clip.labels, float(clip.duration or 0.0)
    return Job(str(root), clip.id, labels["gender"], labels["emotion"], duration, seed, speaker, sentence)


def _encode(frames: Iterator[numpy.ndarray], sound_file: Path) -> bytes:
    import av
    import soundfile

    samples, rate = soundfile.read(sound_file, dtype="float32")
    buffer = io.BytesIO()
    # one thread and no time of day: the bytes depend on the content alone
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        try:
            video: Any = container.add_stream(
                "libx264", rate=FPS, options={"preset": "veryfast", "qp": "21", "x264-params": _STEADY}
            )
        except av.codec.codec.UnknownCodecError:
            video = container.add_stream("mpeg4", rate=FPS, options={"qscale": "3"})
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = FPS
        video.codec_context.thread_count = 1
        sound: Any = container.add_stream("aac", rate=rate, layout="mono")
        sound.bit_rate = 64_000
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode())
        whole = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        whole.sample_rate, whole.pts = rate, 0
        size = sound.codec_context.frame_size or 1024
        pieces = av.AudioResampler(format="fltp", layout="mono", rate=rate, frame_size=size)
        for piece in (*pieces.resample(whole), *pieces.resample(None)):
            container.mux(sound.encode(piece))
        container.mux(sound.encode())
    return buffer.getvalue()


def _render_all(jobs: Sequence[Job]) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, _MOST_WORKERS, len(jobs) // _CLIPS_PER_WORKER)
    if count < 2:
        return {job.clip_id: render(job) for job in jobs}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    workers = []
    try:
        for index in range(count):
            worker = subprocess.Popen(
                [sys.executable, "-m", "mmssl.media.mini_video"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
            workers.append(worker)
            assert worker.stdin is not None
            worker.stdin.write(json.dumps([asdict(job) for job in jobs[index::count]]).encode())
            worker.stdin.close()
            worker.stdin = None
        sums: dict[str, str] = {}
        for worker in workers:
            output, complaint = worker.communicate()
            if worker.returncode != 0:
                reason = complaint.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
                raise MediaError(f"A process that draws the videos of mini failed: {reason[-1]}")
            sums.update(json.loads(output))
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()
    return {job.clip_id: sums[job.clip_id] for job in jobs}


def _encoder_versions() -> dict[str, str]:
    import av
    import numpy as np
    import PIL

    return {"av": av.__version__, "pillow": PIL.__version__, "numpy": np.__version__}


def _read_stamp(root: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((root / STAMP).read_text(encoding="utf-8"))
        return stamp if {"settings", "sha256"} <= stamp.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _finished(root: Path, made_by: dict[str, Any], clips: Sequence[Clip]) -> bool:
    stamp = _read_stamp(root)
    if stamp is None or stamp["settings"] != made_by or set(stamp["sha256"]) != {clip.id for clip in clips}:
        return False
    for clip_id, expected in stamp["sha256"].items():
        file = root / "video" / f"{clip_id}.mp4"
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            return False
    return True


def _work() -> int:
    jobs = [Job(**fields) for fields in json.load(sys.stdin)]
    json.dump({job.clip_id: render(job) for job in jobs}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(_work())
