"""Rows of the catalogue: models of pictures, video and sound that transformers, torchvision and timm hold."""

from __future__ import annotations

from mmssl.upstreams.catalog_av import EQUAL
from mmssl.upstreams.catalog_entry import Entry, Run
from mmssl.upstreams.catalog_hf import FOLDER

ONE_SIZE = "pictures of one size: no padding"
VISION = "pictures have one size; videos of equal length run together"
WINDOW = "every clip is padded to the model's window and trimmed to its own frames"


def _pictures(*runs: tuple[int, int], paper: str, licence: str = "") -> Entry:
    streams = {"image": tuple(Run(layers, width, None) for layers, width in runs)}
    return Entry(
        ("image",), streams, ("images",), None, invariance=VISION, paper=paper, licence=licence, checkpoints=FOLDER
    )


def _video(run: Run, video_fps: float, paper: str, licence: str = "") -> Entry:
    return Entry(("video",), {"video": (run,)}, ("video",), None, video_fps, VISION, paper, licence, FOLDER)


_VIT = (13, 768)
_STAGES = ((2, 96), (1, 192), (1, 384), (1, 768))
VISION_FAMILIES: dict[str, Entry] = {
    "beit": _pictures(_VIT, paper="Bao et al. 2022", licence="MIT (microsoft/unilm)"),
    "clip_vision_model": _pictures(_VIT, paper="Radford et al. 2021 (CLIP)", licence="MIT (openai/CLIP)"),
    "convnext": _pictures(*_STAGES, paper="Liu et al. 2022"),
    "data2vec-vision": _pictures(_VIT, paper="Baevski et al. 2022"),
    "deit": _pictures(_VIT, paper="Touvron et al. 2021", licence="Apache-2.0 (facebookresearch/deit)"),
    "dinov2": _pictures(_VIT, paper="Oquab et al. 2024", licence="Apache-2.0 (facebookresearch/dinov2)"),
    "dinov2_with_registers": _pictures(
        _VIT, paper="Darcet et al. 2024", licence="Apache-2.0 (facebookresearch/dinov2)"
    ),
    "dinov3_convnext": _pictures(
        (1, 96), (1, 192), (1, 384), (1, 768), paper="Siméoni et al. 2025", licence="DINOv3 License"
    ),
    "dinov3_vit": _pictures((13, 384), paper="Siméoni et al. 2025", licence="DINOv3 License"),
    "hiera": _pictures(*_STAGES, paper="Ryali et al. 2023"),
    "ijepa": _pictures(_VIT, paper="Assran et al. 2023", licence="CC BY-NC 4.0 (facebookresearch/ijepa)"),
    "pixio": _pictures((33, 1280), paper="Yang et al. 2025"),
    "resnet": _pictures((1, 64), (1, 256), (1, 512), (1, 1024), (1, 2048), paper="He et al. 2016"),
    "siglip_vision_model": _pictures(_VIT, paper="Zhai et al. 2023", licence="Apache-2.0"),
    "swin": _pictures((1, 96), (1, 192), (1, 384), (2, 768), paper="Liu et al. 2021", licence="MIT"),
    "vit": _pictures(_VIT, paper="Dosovitskiy et al. 2021", licence="Apache-2.0"),
    "vit_mae": _pictures(_VIT, paper="He et al. 2022", licence="CC BY-NC 4.0 (facebookresearch/mae)"),
    "vit_msn": _pictures(_VIT, paper="Assran et al. 2022", licence="CC BY-NC 4.0 (facebookresearch/msn)"),
    "timesformer": _video(
        Run(13, 768, 1066.667, 196), 0.9375, "Bertasius et al. 2021", "CC BY-NC 4.0 (facebookresearch/TimeSformer)"
    ),
    "videomae": _video(Run(13, 768, 266.667, 196), 7.5, "Tong et al. 2022", "CC BY-NC 4.0 (MCG-NJU/VideoMAE)"),
    "vivit": _video(Run(13, 768, 133.333, 196), 15.0, "Arnab et al. 2021"),
    "vjepa2": _video(Run(25, 1024, 500.0, 256), 4.0, "Assran et al. 2025", "MIT (facebookresearch/vjepa2)"),
}
"""transformers' model type -> its row."""

SOUND_FAMILIES: dict[str, Entry] = {
    "audio-spectrogram-transformer": Entry(
        ("audio", "speech"),
        {"audio": (Run(13, 768, 100.0, 12),)},
        invariance=WINDOW,
        paper="Gong et al. 2021",
        licence="BSD-3-Clause (YuanGongND/ast)",
        checkpoints=FOLDER,
    ),
    "pe_audio_encoder": Entry(
        ("audio", "speech"),
        {"audio": (Run(7, 1792, 40.0),)},
        sample_rate=48000,
        invariance=EQUAL,
        paper="Vyas et al. 2025 (PE-AV)",
        checkpoints=FOLDER,
    ),
    "clap_audio_model": Entry(
        ("audio",),
        {"audio": (Run(1, 96, 39.062), Run(1, 192, 78.125), Run(1, 384, 156.25), Run(2, 768, 312.5))},
        sample_rate=48000,
        invariance=WINDOW,
        paper="Wu et al. 2023 (LAION-CLAP)",
        checkpoints=FOLDER,
    ),
}
"""transformers' model type -> its row."""

AUDIO_VISUAL_FAMILIES: dict[str, Entry] = {
    "pe_audio_video_encoder": Entry(
        ("audio-visual", "audio", "video"),
        {
            "audio": (Run(7, 1792, 40.0),),
            "video": (Run(7, 1792, 40.0),),
            "fusion": (Run(7, 1792, 40.0),),
        },
        ("waveforms", "video"),
        48000,
        25.0,
        "clip by clip",
        "Vyas et al. 2025 (PE-AV)",
        checkpoints=FOLDER,
    ),
}
"""transformers' model type -> its row."""

_LOCAL = ("state dict of the network, with a prefix or without",)
LIBRARIES: dict[str, Entry] = {
    "hf_vision": Entry(("image", "video"), {}, ("images",), None, checkpoints=FOLDER, families=VISION_FAMILIES),
    "hf_audio": Entry(("audio",), {}, checkpoints=FOLDER, families=SOUND_FAMILIES),
    "hf_av": Entry(
        ("audio-visual",), {}, ("waveforms", "video"), None, checkpoints=FOLDER, families=AUDIO_VISUAL_FAMILIES
    ),
    "torchvision": Entry(
        ("image",), {}, ("images",), None, invariance=ONE_SIZE, paper="torchvision", checkpoints=_LOCAL
    ),
    "torchvision_video": Entry(
        ("video",),
        {
            "video": (
                Run(2, 64, 66.667),
                Run(1, 128, 133.333),
                Run(1, 256, 266.667),
                Run(1, 512, 533.333),
            )
        },
        ("video",),
        None,
        15.0,
        EQUAL,
        "Tran et al. 2018",
        checkpoints=_LOCAL,
    ),
    "timm": Entry(("image",), {}, ("images",), None, invariance=ONE_SIZE, paper="timm", checkpoints=_LOCAL),
}
"""Name -> its row."""
