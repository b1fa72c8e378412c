"""The built-in audio-visual upstreams: rows of the catalogue, sizes with the default arguments."""

from __future__ import annotations

from collections.abc import Sequence

from mmssl.upstreams.catalog_entry import Entry, Run

EQUAL = "clips of equal length run together"
PACKED = "clips are packed end to end, without padding"
NON_COMMERCIAL = "CC BY-NC 4.0"
_BOTH = ("audio-visual", "audio", "video")


def _runs(widths: Sequence[int], frame_shifts: Sequence[float], first: int = 2) -> tuple[Run, ...]:
    """`first` layers of the first width, then one of each; frame shifts in milliseconds."""
    counts = (first, *(1,) * (len(widths) - 1))
    return tuple(Run(*run) for run in zip(counts, widths, frame_shifts, strict=True))


def _towers(
    audio: tuple[Run, ...],
    video: tuple[Run, ...],
    paper: str,
    licence: str,
    checkpoints: tuple[str, ...],
    *,
    sample_rate: int,
    video_fps: float,
) -> Entry:
    return Entry(
        _BOTH,
        {"audio": audio, "video": video},
        ("waveforms", "video"),
        sample_rate,
        video_fps,
        EQUAL,
        paper,
        licence,
        checkpoints,
    )


STAGES = (64, 128, 256, 512)
AUDIO_VISUAL: dict[str, Entry] = {
    "l3": _towers(
        _runs(STAGES, (5.0, 10.0, 20.0, 40.0), first=1),
        _runs(STAGES, (40.0,) * 4, first=1),
        "Arandjelovic and Zisserman 2017",
        "",
        ("its own weights",),
        sample_rate=48000,
        video_fps=25.0,
    ),
    "xdc": _towers(
        _runs(STAGES, (80.0, 160.0, 320.0, 640.0)),
        _runs(STAGES, (33.333, 66.667, 133.333, 266.667)),
        "Alwassel et al. 2020",
        "MIT",
        ("authors' video tower (.pth)",),
        sample_rate=16000,
        video_fps=30.0,
    ),
    "crisscross": _towers(
        _runs(STAGES, (40.0, 80.0, 160.0, 320.0)),
        _runs(STAGES, (62.5, 125.0, 250.0, 500.0)),
        "Sarkar and Etemad 2023",
        NON_COMMERCIAL,
        ("authors' files of one or both towers",),
        sample_rate=16000,
        video_fps=16.0,
    ),
    "avid": _towers(
        _runs((64, *STAGES), (20.0, 40.0, 80.0, 160.0, 160.0), first=1),
        _runs(STAGES, (62.5, 125.0, 250.0, 500.0)),
        "Morgado et al. 2021",
        NON_COMMERCIAL,
        ("authors' files (AVID, AVID-CMA)",),
        sample_rate=24000,
        video_fps=16.0,
    ),
    "av_hubert": Entry(
        (*_BOTH, "speech"),
        {
            "fusion": (Run(13, 768, 40.0),),
            "audio": (Run(1, 104, 40.0), Run(1, 768, 40.0)),
            "video": (Run(1, 512, 40.0), Run(1, 768, 40.0)),
        },
        ("waveforms", "video"),
        16000,
        25.0,
        PACKED,
        "Shi et al. 2022",
        "Meta's own: non-commercial research only, no biometric processing",
        ("fairseq",),
    ),
}
"""Name -> its row."""
