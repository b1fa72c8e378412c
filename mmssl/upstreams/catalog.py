"""What each built-in upstream is for, with its default arguments, as data that is read without importing torch.

A new built-in adds its row here (`tests/contract/test_upstream_table.py` says what the row has to state) and one to
`tests/contract/tiny.py`; `tools/make_upstream_table.py` then writes it into `docs/upstreams.md`.
"""

from __future__ import annotations

from mmssl.upstreams.catalog_av import AUDIO_VISUAL, EQUAL, PACKED
from mmssl.upstreams.catalog_entry import MODALITIES, SOUND, SPEECH, Entry, audio
from mmssl.upstreams.catalog_hf import FOLDER, MICROSOFT, SPEECH_FAMILIES
from mmssl.upstreams.catalog_mae import MASKED_AUTOENCODERS
from mmssl.upstreams.catalog_vision import LIBRARIES

__all__ = ["CATALOG", "MODALITIES", "Entry"]

_WINDOWS = "every frame from its clip's own samples"
_SPEECH_FILES = ("transformers folder (safetensors, bin)", "fairseq", "S3PRL", "torchaudio")
_FACEBOOK = "Apache-2.0 (hub), MIT (fairseq)"
_S3PRL = "Apache-2.0 (S3PRL)"


def _spectral(width: int, paper: str = "") -> Entry:
    return Entry(SOUND, audio((1, width, 10.0)), invariance=_WINDOWS, paper=paper)


def _transformer(layers: int, paper: str, licence: str) -> Entry:
    streams = audio((layers, 768, 20.0))
    return Entry(SPEECH, streams, invariance=PACKED, paper=paper, licence=licence, checkpoints=_SPEECH_FILES)


def _clipwise(
    *runs: tuple[int, int, float],
    paper: str,
    checkpoints: tuple[str, ...],
    licence: str = "",
    modalities: tuple[str, ...] = SPEECH,
) -> Entry:
    return Entry(modalities, audio(*runs), invariance=EQUAL, paper=paper, licence=licence, checkpoints=checkpoints)


CATALOG: dict[str, Entry] = {
    "fbank": _spectral(80, "Kaldi's filterbank"),
    "mfcc": _spectral(13, "Kaldi's MFCC"),
    "mel": _spectral(80),
    "spectrogram": _spectral(257, "Kaldi's spectrogram"),
    "wav2vec2": _transformer(13, "Baevski et al. 2020", _FACEBOOK),
    "hubert": _transformer(13, "Hsu et al. 2021", _FACEBOOK),
    "hubert_nano": Entry(
        SPEECH,
        audio((5, 192, 20.0)),
        invariance=PACKED,
        paper="Hsu et al. 2021, Lin et al. 2023",
        licence="see its model card",
        shipped=True,
    ),
    "wavlm": _transformer(13, "Chen et al. 2022", MICROSOFT),
    "data2vec_audio": _transformer(13, "Baevski et al. 2022", _FACEBOOK),
    "unispeech_sat": _transformer(13, "Chen et al. 2021", MICROSOFT),
    "distilhubert": _transformer(3, "Chang et al. 2022", _S3PRL),
    "speech_student": _transformer(3, "Heo et al. 2023", "of its teacher's checkpoint"),
    "cpc": _clipwise(
        (2, 256, 10.0),
        paper="van den Oord et al. 2018; Rivière et al. 2020",
        checkpoints=("CPC_audio",),
        licence="MIT (CPC_audio)",
    ),
    "wav2vec1": _clipwise(
        (13, 512, 10.0), paper="Schneider et al. 2019", checkpoints=("fairseq", "S3PRL"), licence="MIT (fairseq)"
    ),
    "vq_wav2vec": _clipwise(
        (14, 512, 10.0), paper="Baevski et al. 2020 (vq)", checkpoints=("fairseq", "S3PRL"), licence="MIT (fairseq)"
    ),
    "discrete_bert": Entry(
        SPEECH,
        audio((13, 768, 10.0)),
        invariance="tokens clip by clip, then clips are packed end to end",
        paper="Baevski et al. 2020 (vq)",
        licence="MIT (fairseq)",
        checkpoints=("fairseq (RoBERTa and vq-wav2vec)", "S3PRL"),
    ),
    "apc": _clipwise((3, 512, 10.0), paper="Chung et al. 2019", checkpoints=("S3PRL (apc, vq_apc)",), licence=_S3PRL),
    "mockingjay": _clipwise((13, 768, 10.0), paper="Liu et al. 2020", checkpoints=("S3PRL",), licence=_S3PRL),
    "tera": _clipwise((4, 768, 10.0), paper="Liu et al. 2021", checkpoints=("S3PRL",), licence=_S3PRL),
    "pase_plus": _clipwise(
        (2, 512, 10.0), (1, 256, 10.0), paper="Ravanelli et al. 2020", checkpoints=("authors' encoder (FE_e199.ckpt)",)
    ),
    "byol_a": _clipwise(
        (1, 512, 80.0),
        (2, 2048, 80.0),
        paper="Niizumi et al. 2021",
        checkpoints=("authors' v1 encoder",),
        licence="LICENSE of nttcslab/byol-a",
        modalities=("audio", "speech"),
    ),
    "ecapa_tdnn": _clipwise(
        (4, 1024, 10.0),
        (1, 1536, 10.0),
        paper="Desplanques et al. 2020",
        checkpoints=("TaoRuijie/ECAPA-TDNN",),
        licence="LICENSE of TaoRuijie/ECAPA-TDNN",
    ),
    "xvector": _clipwise((4, 512, 10.0), (1, 1500, 10.0), paper="Snyder et al. 2018", checkpoints=("its own weights",)),
    **MASKED_AUTOENCODERS,
    **AUDIO_VISUAL,
    "hf": Entry(SPEECH, {}, checkpoints=FOLDER, families=SPEECH_FAMILIES),
    **LIBRARIES,
    "torchaudio": Entry(
        SPEECH,
        {},
        invariance=PACKED,
        paper="torchaudio.pipelines",
        licence="of each bundle, in torchaudio's documentation",
        checkpoints=("state dict of the bundle",),
    ),
}
"""Name of each built-in upstream -> its row."""
