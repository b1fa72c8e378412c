from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmssl.stages.recipe import main

ROOT = Path(__file__).parents[2]
# 6 speakers, 4 emotions, 2 sentences: seconds instead of minutes
TINY = (
    "data.options.num_speakers=6",
    "data.options.num_sentences=2",
    "data.options.sentences_per_speaker=2",
    "protocol.k=3",
    "protocol.dev_groups=1",
    "train=quick",
    "train.max_steps=20",
)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wav files of a mini corpus of 6 speakers, made once."""
    from mmssl.media.mini import make_mini

    folder = tmp_path_factory.mktemp("tiny") / "mini"
    make_mini(folder, num_speakers=6, num_sentences=2, sentences_per_speaker=2)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny_corpus: Path) -> Path:
    """A copy of egs/mini/ser with its corpus made already."""
    return copy_recipe(tmp_path, "mini", tiny_corpus)


def copy_recipe(tmp_path: Path, corpus: str, data: Path | None = None) -> Path:
    """egs/<corpus>/ser below tmp_path, without data and results, beside the recipes."""
    folder = tmp_path / "egs" / corpus / "ser"
    source = ROOT / "egs" / corpus / "ser"
    for part in ("conf", "local"):
        shutil.copytree(source / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    if not (tmp_path / "recipes").exists():
        shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    if data is not None:
        shutil.copytree(data, folder / "data" / "mini")
    return folder


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[str], Path]:
    """copy_of("emodb") -> a copy of its recipe folder."""
    return lambda corpus: copy_recipe(tmp_path, corpus)


@pytest.fixture
def emodb(tmp_path: Path, copy_of: Callable[[str], Path]) -> tuple[Path, Path]:
    """The recipe folder of EmoDB and a corpus of 4 speakers, 7 emotions and 2 texts that looks like EmoDB."""
    import numpy
    import soundfile

    corpus = tmp_path / "corpus" / "wav"
    corpus.mkdir(parents=True)
    noise = numpy.random.default_rng(0)
    for speaker in ("03", "08", "09", "10"):
        for text in ("a01", "b02"):
            for k, letter in enumerate("WLEAFTN"):
                time = numpy.arange(8000) / 16000
                tone = 0.3 * numpy.sin(2 * numpy.pi * (200 + 300 * k + 5 * int(speaker)) * time)
                soundfile.write(
                    corpus / f"{speaker}{text}{letter}a.wav", tone + 0.01 * noise.standard_normal(8000), 16000
                )
    return copy_of("emodb"), corpus


@pytest.fixture
def run(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """run("--stage", "1", ...) -> exit code, output and errors of the tiny recipe."""
    monkeypatch.setenv("MMSSL_CALLER_DIR", str(recipe))

    def call(*words: str, tiny: bool = True, folder: Path = recipe) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(["--nj", "1", *(TINY if tiny else ()), *words], folder)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
