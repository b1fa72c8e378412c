"""The speech model types of transformers that the hf upstream wraps; sizes are those of transformers' defaults."""

from __future__ import annotations

from mmssl.upstreams.catalog_av import EQUAL
from mmssl.upstreams.catalog_entry import SPEECH, Entry, audio

FOLDER = ("transformers folder or hub name (safetensors, bin)",)
CONVOLUTIONS = "group norm over valid frames, zeros before each padded convolution, masked attention"
MICROSOFT = "LICENSE of microsoft/UniSpeech"


def _model(
    layers: int, width: int, paper: str, licence: str, invariance: str = CONVOLUTIONS, frame_shift: float = 20.0
) -> Entry:
    streams = audio((layers, width, frame_shift))
    return Entry(SPEECH, streams, invariance=invariance, paper=paper, licence=licence, checkpoints=FOLDER)


SPEECH_FAMILIES: dict[str, Entry] = {
    "data2vec-audio": _model(13, 768, "Baevski et al. 2022", "Apache-2.0 (hub), MIT (fairseq)"),
    "hubert": _model(13, 768, "Hsu et al. 2021", "Apache-2.0 (hub), MIT (fairseq)"),
    "moonshine": _model(7, 288, "Jeffries et al. 2024", "MIT", "group norm over valid frames, masked attention", 24.0),
    "sew": _model(13, 768, "Wu et al. 2021", "Apache-2.0 (hub), MIT (asappresearch/sew)", EQUAL, 40.0),
    "sew-d": _model(13, 768, "Wu et al. 2021", "Apache-2.0 (hub), MIT (asappresearch/sew)", EQUAL, 40.0),
    "speecht5": _model(13, 768, "Ao et al. 2022", "MIT (microsoft/SpeechT5)"),
    "unispeech": _model(13, 768, "Wang et al. 2021", MICROSOFT),
    "unispeech-sat": _model(13, 768, "Chen et al. 2021", MICROSOFT),
    "wav2vec2": _model(13, 768, "Baevski et al. 2020", "Apache-2.0 (hub), MIT (fairseq)"),
    "wav2vec2-bert": _model(
        25,
        1024,
        "Barrault et al. 2023 (w2v-BERT 2.0)",
        "MIT",
        "filterbank scaled over valid frames, causal convolutions, masked attention",
    ),
    "wav2vec2-conformer": _model(13, 768, "Wang et al. 2020 (fairseq S2T)", "Apache-2.0 (hub), MIT (fairseq)"),
    "wavlm": _model(13, 768, "Chen et al. 2022", MICROSOFT),
    "whisper": _model(
        5,
        384,
        "Radford et al. 2022",
        "Apache-2.0 (hub), MIT (openai/whisper)",
        "every clip is padded to the model's window of 30 s and trimmed to its own frames",
    ),
}
"""transformers' model type -> its row."""
