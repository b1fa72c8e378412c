"""egs/debian_speech on a miniature of its packages: unpacked, as .deb files, and what goes wrong."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from mmssl.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe() -> Any:
    path = ROOT / "egs" / "debian_speech" / "ssl" / "local" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare_debian_speech", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def unpack(root: Path, package: str, names: list[str]) -> None:
    """A folder as `dpkg -x` leaves it."""
    copyright_file = root / package / "usr" / "share" / "doc" / package / "copyright"
    copyright_file.parent.mkdir(parents=True)
    copyright_file.write_text(f"licence of {package}\n")
    for name in names:
        path = root / package / "usr" / "share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * numpy.sin(numpy.arange(4000) / 7), 8000)


PROMPTS = ["asterisk/sounds/it/digits/1.wav", "asterisk/sounds/it/hello.wav"]
DIALOGUES = [f"games/fillets-ng/sound/city/nl/{name}.ogg" for name in ("vit-m-hlava", "vit-v-proc", "vit-hs-klid", "o")]
TWO = ["asterisk-prompt-it-menardi-wav", "fillets-ng-data-nl"]


def test_clips_have_speaker_language_and_licence(recipe: Any, tmp_path: Path) -> None:
    unpack(tmp_path / "root", TWO[0], PROMPTS)
    unpack(tmp_path / "root", TWO[1], DIALOGUES)
    clips = recipe.prepare(tmp_path / "root", tmp_path / "data", packages=TWO)
    assert [clip.id for clip in clips][:2] == ["it-asterisk-sounds-it-digits-1", "it-asterisk-sounds-it-hello"]
    assert [clip.speaker for clip in clips] == ["paola-dal-zot"] * 2 + [None, None, "nl-small-fish", "nl-big-fish"]
    assert {(clip.labels["language"], clip.labels["source"]) for clip in clips} == {("it", TWO[0]), ("nl", TWO[1])}
    for package in TWO:
        assert (tmp_path / "data" / "licences" / f"{package}.txt").read_text() == f"licence of {package}\n"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg on this machine")
def test_packages_are_unpacked_once(recipe: Any, tmp_path: Path) -> None:
    unpack(tmp_path / "tree", TWO[0], PROMPTS)
    control = tmp_path / "tree" / TWO[0] / "DEBIAN" / "control"
    control.parent.mkdir()
    control.write_text(
        f"Package: {TWO[0]}\nVersion: 1.0\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: d\n"
    )
    root = tmp_path / "root"
    root.mkdir()
    command = [
        "dpkg-deb",
        "--build",
        "--root-owner-group",
        str(control.parents[1]),
        str(root / f"{TWO[0]}_1.0_all.deb"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    first = recipe.prepare(root, tmp_path / "data", packages=TWO[:1])
    assert len(first) == 2
    assert not list(root.glob(".*"))
    (root / f"{TWO[0]}_1.0_all.deb").unlink()
    assert recipe.prepare(root, tmp_path / "data", packages=TWO[:1]) == first


def test_mistakes(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="holds neither asterisk-prompt-it-menardi-wav_VERSION"):
        recipe.prepare(tmp_path, tmp_path / "data", packages=TWO[:1])
    with pytest.raises(DataError, match="none of asterisk-core-sounds-en-g722"):
        recipe.prepare(tmp_path, tmp_path / "data", packages=["fillets"])
    (tmp_path / f"{TWO[0]}_1.0_all.deb").write_bytes(b"no archive")
    if shutil.which("dpkg"):
        with pytest.raises(DataError, match="dpkg -x"):
            recipe.prepare(tmp_path, tmp_path / "data", packages=TWO[:1])
        assert not list(tmp_path.glob(f"*{TWO[0]}*/")), "nothing half-unpacked is left"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="is not on this machine"):
        recipe.prepare(None, tmp_path / "data", packages=TWO[:1])
