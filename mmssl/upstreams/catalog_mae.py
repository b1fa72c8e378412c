"""The built-in masked autoencoders: rows of the catalogue, sizes with the default arguments."""

from __future__ import annotations

from mmssl.upstreams.catalog_av import NON_COMMERCIAL
from mmssl.upstreams.catalog_entry import Entry, Run

MASKED = "whole patches of valid frames, masked attention"
_FILES = ("authors' files (pretrained, fine-tuned)",)

MASKED_AUTOENCODERS: dict[str, Entry] = {
    "mae": Entry(
        ("image",),
        {"image": (Run(13, 768, None),)},
        ("images",),
        None,
        invariance="pictures of one size: no padding",
        paper="He et al. 2022",
        licence=NON_COMMERCIAL,
        checkpoints=_FILES,
    ),
    "audio_mae": Entry(
        ("audio", "speech"),
        {"audio": (Run(13, 768, 160.0, 8),)},
        invariance=MASKED,
        paper="Huang et al. 2022",
        licence=f"{NON_COMMERCIAL} (LICENSE file; its README says CC BY 4.0)",
        checkpoints=_FILES,
    ),
    "video_mae": Entry(
        ("video",),
        {"video": (Run(13, 768, 266.667, 196),)},
        ("video",),
        None,
        7.5,
        invariance=MASKED,
        paper="Tong et al. 2022",
        licence=NON_COMMERCIAL,
        checkpoints=_FILES,
    ),
    "cav_mae": Entry(
        ("audio-visual", "audio", "video"),
        {
            "audio": (Run(13, 768, 160.0, 8),),
            "video": (Run(13, 768, 1000.0, 196),),
            "fusion": (Run(2, 768, None),),
        },
        ("waveforms", "video"),
        16000,
        1.0,
        invariance=MASKED,
        paper="Gong et al. 2023",
        licence="BSD-2-Clause",
        checkpoints=_FILES,
    ),
    "hicmae": Entry(
        ("audio-visual", "audio", "video", "speech"),
        {
            "audio": (Run(11, 512, 160.0, 8),),
            "video": (Run(11, 512, 320.0, 100),),
            "fusion": (Run(3, 512, None),),
        },
        ("waveforms", "video"),
        16000,
        6.25,
        invariance=MASKED,
        paper="Sun et al. 2024",
        licence="MIT",
        checkpoints=("authors' files (pretrained)",),
    ),
    "time_steps": Entry(
        ("audio", "speech", "video", "audio-visual"),
        {"audio": (Run(13, 6144, 160.0),)},
        invariance="that of the upstream whose tokens it joins",
        paper="Niizumi et al. 2022 (joining the patches of a time step)",
        licence="that of the upstream",
    ),
}
"""Name -> its row."""
