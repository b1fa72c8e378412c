"""LibriSpeech: SPLIT/SPEAKER/CHAPTER/*.flac with *.trans.txt, and a pronunciation lexicon."""

from __future__ import annotations

from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

SPLITS = {"train-clean-100": "train", "dev-clean": "dev", "test-clean": "test"}
LEXICON = "librispeech-lexicon.txt"
LAYOUT = (
    f"the folder LibriSpeech with {', '.join(SPLITS)} and {LEXICON} (openslr.org/11) beside them; another lexicon: "
    "data.options.lexicon=FILE."
)


def prepare(root: Path | None, folder: Path, lexicon: str | None = None, stress: bool = True) -> list[Clip]:
    """The utterances of the three parts, each word spelt by its first pronunciation in the lexicon.

    Args:
        root: of the corpus.
        folder: not used.
        lexicon: file of lines "WORD PHONEME PHONEME ..."; None for the one in the corpus's folder.
        stress: keep the stress of vowels (AH0, AH1); without, they are one phoneme.
    """
    tables = [
        path for split in SPLITS for path in corpus_files(root, "LibriSpeech", [f"{split}/*/*/*.trans.txt"], LAYOUT)
    ]
    assert root is not None  # corpus_files has checked it
    sounds = _lexicon(root / LEXICON if lexicon is None else Path(lexicon), stress)
    clips, missing = [], set()
    for table in tables:
        split, speaker = table.parts[-4], table.parts[-3]
        for line in table.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            words = text.split()
            missing |= {word for word in words if word not in sounds}
            phonemes = " ".join(sounds.get(word, "") for word in words)
            clips.append(
                Clip(
                    id=name,
                    audio=str(table.parent / f"{name}.flac"),
                    labels={"phonemes": phonemes, "text": text},
                    speaker=speaker,
                    split=SPLITS[split],
                )
            )
    if missing:
        raise DataError(
            f"{len(missing)} words are not in the lexicon, among them {', '.join(sorted(missing)[:5])}. Add lines such "
            "as 'WORD  W ER1 D' to it (a grapheme-to-phoneme tool writes them), and name it: data.options.lexicon=FILE."
        )
    return clips


def _lexicon(path: Path, stress: bool) -> dict[str, str]:
    if not path.is_file():
        raise DataError(f"There is no lexicon {path}. LibriSpeech is expected as {LAYOUT}")
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split()
        if not stress:
            phonemes = [phoneme.rstrip("012") for phoneme in phonemes]
        found.setdefault(word, " ".join(phonemes))
    return found
