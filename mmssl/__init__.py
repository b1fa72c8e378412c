"""mmssl: self-supervised learning on speech, audio, images, video and audio-visual data.

Importing the package imports nothing heavy; what the names below need is imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "load_upstream": "mmssl.upstreams.base",
    "register_upstream": "mmssl.registry",
    "load_predictor": "mmssl.stages.predictor",
    "load_speaker": "mmssl.speaker",
    "extract": "mmssl.features.extract",
    "ExtractOptions": "mmssl.features.extract",
    "FeatureStore": "mmssl.features.store",
    "read_manifest": "mmssl.data.manifest",
    "load_audio": "mmssl.media.audio",
}

if TYPE_CHECKING:
    from mmssl.data.manifest import read_manifest
    from mmssl.features.extract import ExtractOptions, extract
    from mmssl.features.store import FeatureStore
    from mmssl.media.audio import load_audio
    from mmssl.registry import register_upstream
    from mmssl.speaker import load_speaker
    from mmssl.stages.predictor import load_predictor
    from mmssl.upstreams.base import load_upstream

__all__ = [
    "ExtractOptions",
    "FeatureStore",
    "extract",
    "load_audio",
    "load_predictor",
    "load_speaker",
    "load_upstream",
    "read_manifest",
    "register_upstream",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mmssl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
