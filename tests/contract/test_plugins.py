"""The three plug-in routes, each as its user goes it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmssl
from mmssl.testing import assert_upstream_contract

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to" / "plug-in-an-upstream.md"


@pytest.fixture(scope="session")
def how_to_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of the how-to page, written to a file as a reader would."""
    blocks = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    code = next(block for block in blocks if "class MyEncoder" in block)
    assert len(code.splitlines()) < 60
    file = tmp_path_factory.mktemp("plugin") / "my_encoder.py"
    file.write_text(code, encoding="utf-8")
    return file


def test_the_how_to_example_keeps_the_contract(how_to_file: Path) -> None:
    assert_upstream_contract(lambda: mmssl.load_upstream(str(how_to_file), hidden_size=8))


def test_a_file_is_checked_from_the_command_line(how_to_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmssl.stages.cli import main

    assert not main(["check-upstream", str(how_to_file), "hidden_size=8", "--longest", "1"])
    assert "0 failed" in capsys.readouterr().out


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which pip installed the example package, with the tools of this environment and no network."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no setuptools or pip to build the example package with")
    source = tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(ROOT / "tests" / "plugin_package", source)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=site
    )


def test_an_installed_package_is_found_by_its_entry_point(site: Path) -> None:
    code = (
        "import mmssl, torch\nup = mmssl.load_upstream('example_energy', hop=200)\n"
        "print(up(torch.ones(1, 800))['audio'].hidden_states[0].shape)\n"
        "print(type(mmssl.load_upstream('fbank')).__module__)"
    )
    done = run(site, "-c", code)
    assert done.stdout.split("\n")[:2] == ["torch.Size([1, 3, 2])", "mmssl.upstreams.spectral"], done.stderr


def test_a_clash_and_a_broken_plug_in_are_reported_and_disturb_nobody(site: Path) -> None:
    listed = run(site, "-m", "mmssl", "upstreams", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "example_energy" in json.dumps(json.loads(listed.stdout))
    text = run(site, "-m", "mmssl", "upstreams")
    assert "mmssl-example" in text.stdout + text.stderr
    assert re.search(r"fbank.*(mmssl and package mmssl-example)", text.stdout + text.stderr)
    broken = run(site, "-m", "mmssl", "check-upstream", "broken_example")
    assert broken.returncode == 1
    assert "does not load" in broken.stdout + broken.stderr
    assert "Traceback" not in broken.stderr
