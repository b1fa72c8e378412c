"""Ten mistakes, each through the real command line: one clear message on standard error and exit code 1."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
FBANK = ("upstream=fbank", "compare=[]")


def refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert code == 1, out
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err + out
    for part in parts:
        assert part in err


def test_missing_corpus_folder(run: Run, tmp_path: Path, copy_of: Callable[[str], Path]) -> None:
    emodb = copy_of("emodb")
    refused(run(tiny=False, folder=emodb), "data.root=FOLDER", "03a01Fa.wav")
    refused(
        run("data.root=no/such/place", tiny=False, folder=emodb), "no/such/place does not exist", "data.root=FOLDER"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").touch()
    refused(run(f"data.root={tmp_path / 'other'}", tiny=False, folder=emodb), "holds no *.wav", "it holds a.txt")


def test_misspelt_upstream(run: Run) -> None:
    refused(run("upstream=fbnak"), "no upstream 'fbnak'", "Did you mean 'fbank'?", "mel, mfcc")


def test_misspelt_override(run: Run, recipe: Path) -> None:
    refused(run(*FBANK, "train.learning_rate=[1e-3]"), "'train.learning_rate'", "Did you mean 'train.learning_rates'?")
    refused(run(*FBANK, "upstream.num_mel_bin=40"), "upstream.num_mel_bin", "Did you mean 'num_mel_bins'?")
    assert not (recipe / "exp").exists()


def test_stage_out_of_order(run: Run) -> None:
    refused(
        run("--stage", "train", *FBANK),
        "Stage 3 train needs data/manifest.jsonl",
        "stage 1 prepare writes",
        "--stage prepare",
    )
    refused(run("--stage", "4", "--stop_stage", "2", *FBANK), "4 score comes after --stop_stage 2 extract")
    refused(run("--stage", "tarin", *FBANK), "no stage 'tarin'", "Did you mean 'train'?")


def test_unreadable_file(run: Run, emodb: tuple[Path, Path]) -> None:
    folder, corpus = emodb
    broken = corpus / "08a01Wa.wav"
    content = broken.read_bytes()
    # cut in the middle: the header promises more than there is
    broken.write_bytes(content[: len(content) // 2])
    words = (f"data.root={corpus}", "train=quick", "protocol.dev_groups=1")
    refused(run(*words, tiny=False, folder=folder), "stopped", "08a01Wa.wav")
    code, out, err = run(*words, "data.on_error=skip", tiny=False, folder=folder)
    assert code == 0, err
    assert "1 clip was skipped" in out
    assert "08a01Wa" in (folder / "exp" / "fbank-weighted_sum-linear" / "RESULTS.md").read_text()


def test_wrong_label_name(run: Run) -> None:
    refused(run(*FBANK, "label=emotoin"), "No clip has the label 'emotoin'", "Did you mean 'emotion'?")
    # nothing was computed, so that the corrected command may use the same folder
    code, _, err = run(*FBANK, "--stop_stage", "1")
    assert code == 0, err


@pytest.mark.parametrize("module", ["stages/files.py", "data/files.py", "stages/exporting.py"])
def test_full_disk_while_writing(module: str, run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        import inspect

        # whoever has called mmssl.files.replace_file
        callers = (frame.filename for frame in inspect.stack(0)[1:])
        if next(f for f in callers if not f.endswith(("mmssl/files.py", "contextlib.py"))).endswith(f"mmssl/{module}"):
            name = str(Path(f"/proc/self/fd/{handle}").readlink())
            if "config.json" not in name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        refused(run(*FBANK), "No space left on device")
    leftovers = [p for p in recipe.rglob(".*") if p.name != ".stamps" and not p.name.startswith(".lock-")]
    assert leftovers == []
    code, _, err = run(*FBANK)
    assert code == 0, err


def test_results_folder_of_another_configuration(run: Run) -> None:
    words = (*FBANK, "exp=mine", "--stop_stage", "2")
    assert run(*words)[0] == 0
    refused(
        run(*words, "upstream.num_mel_bins=40"),
        "exp/mine holds results of another configuration",
        "upstream.num_mel_bins: 80 there, 40 now",
        "--overwrite",
    )
    assert run(*words, "upstream.num_mel_bins=40", "--overwrite")[0] == 0


def test_empty_split(run: Run, recipe: Path) -> None:
    refused(run(*FBANK, "protocol.dev_groups=4"), "dev_groups=4 asks for 4 of 4 training groups")
    prepare = recipe / "local" / "prepare.py"
    prepare.write_text(
        prepare.read_text().replace(
            "    return make_mini(", "    from dataclasses import replace\n\n    made = make_mini("
        )
        + "    return [replace(clip, split='train') for clip in made]\n"
    )
    words = ("protocol=predefined", "protocol.k=null", "protocol.dev_groups=2")
    refused(run(*FBANK, *words), "'train'", "nothing is left to train on or to test")


def test_a_text_file_named_wav(run: Run, emodb: tuple[Path, Path]) -> None:
    folder, corpus = emodb
    (corpus / "03a01Wb.wav").write_text("This is not sound.\n" * 50)
    words = (f"data.root={corpus}", "--stop_stage", "1")
    refused(run(*words, tiny=False, folder=folder), "Stage 1 prepare stopped", "03a01Wb.wav", "data.on_error=skip")
    code, out, err = run(*words, "data.on_error=skip", tiny=False, folder=folder)
    assert code == 0, err
    assert "1 unreadable files skipped" in out


def test_wrong_options_leave_with_two(run: Run) -> None:
    code, _, err = run("--stages", "3")
    assert code == 2
    assert "unknown option '--stages'. Did you mean '--stage'?" in err


def test_more_faults(run: Run, recipe: Path, tmp_path: Path) -> None:
    refused(run("--nj", "0", *FBANK), "--nj must be at least 1")
    refused(run("--ngpu", "2", *FBANK), "--ngpu must be 0 (the CPU) or 1, got 2")
    refused(run("upstream=hf", "compare=[]"), "upstream.path is not set")
    refused(run("upstream=hf", "compare=[]", "upstream.path=./nowhere"), "nowhere")
    refused(run(*FBANK, tiny=False, folder=tmp_path), "not the folder of a recipe")
    refused(run(*FBANK, "data.options.speakers=3"), "data.options.speakers", "num_speakers")
    refused(run(*FBANK, "protocol.group=speeker"), "protocol.group=speeker", "Did you mean 'speaker'?")
    refused(run(*FBANK, "features.stream=video"), "features.stream=video", "audio")
