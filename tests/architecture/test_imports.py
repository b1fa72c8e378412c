"""Which package may import which: docs/architecture.md, "Rules that a test enforces"."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mmssl"
CORE = ("types", "errors", "registry", "lengths", "random", "files")
TIERS = (
    CORE,
    ("nn", "media", "data", "metrics", "augment"),
    ("upstreams", "objectives", "interfaces", "downstream", "faces"),
    ("features", "training", "probing", "analysis"),
    ("report", "stages", "testing", "hear", "speaker", "compat"),
)
TIER_OF = {name: level for level, tier in enumerate(TIERS) for name in tier}
# (importing package, imported package) pairs of one tier that are allowed, and why
SAME_TIER = {
    ("augment", "media"): "noise and impulse responses are read from files",
    ("objectives", "upstreams"): "objectives train an Encoder",
    ("probing", "training"): "a batched run gives what the ordinary trainer gives, which trains what cannot be stacked",
    ("probing", "features"): "probes read stores",
    ("stages", "report"): "the report stage writes the report",
    ("stages", "speaker"): "mmssl embed, mmssl verify and mmssl export-onnx",
    ("stages", "testing"): "mmssl check-upstream runs the contract suite",
    **{(a, b): "the core is one" for a in CORE for b in CORE},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def owner(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports anywhere, inside functions too, but for the type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it whole"
            module = node.module or ""
            found.update(f"mmssl.{a.name}" if module == "mmssl" else module for a in node.names)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    here = owner(path)
    if here in ("__init__", "__main__"):
        return
    assert here in TIER_OF, f"{path}: a new package; give it a tier here and in docs/architecture.md"
    for module in imported_modules(path):
        if not module.startswith("mmssl.") or module == "mmssl.__version__":
            continue
        there = module.split(".")[1]
        if there == here:
            continue
        assert there in TIER_OF, f"{path} imports {module}: no such package"
        allowed = TIER_OF[there] < TIER_OF[here] or (here, there) in SAME_TIER
        assert allowed, f"{path} imports {module}: {here} (tier {TIER_OF[here]}) may not import {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_stages_reads_config(path: Path) -> None:
    heads = {module.split(".")[0] for module in imported_modules(path)}
    if owner(path) != "stages":
        assert not heads & {"hydra", "omegaconf"}, f"{path} imports hydra or omegaconf"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_config_object_enters_a_constructor(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                bad = argument.arg in ("cfg", "conf", "args", "hparams") or any(
                    name in annotation for name in ("DictConfig", "Namespace", "PretrainedConfig", "PreTrainedConfig")
                )
                assert not bad, f"{path}:{node.lineno}: constructor takes {argument.arg}: {annotation}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path} has {lines} lines: split it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_runs_foreign_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), f"{path}:{node.lineno}: {called}"
        if called == "torch.load":
            safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            assert safe, f"{path}:{node.lineno}: torch.load without weights_only=True"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


HEAVY = "{'torch', 'transformers', 'hydra', 'omegaconf', 'numpy', 'lightning', 'sklearn', 'matplotlib'}"


def test_import_mmssl_imports_nothing_heavy() -> None:
    assert run(f"import sys, mmssl; print(sorted({HEAVY} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["upstreams"], ["--version"]])
def test_the_command_line_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, contextlib, io\nfrom mmssl.stages.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    try: main({arguments!r})\n    except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    assert run(code) == "[]"


def test_every_public_name_of_the_package_resolves() -> None:
    import mmssl

    for name in mmssl.__all__:
        assert callable(getattr(mmssl, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mmssl.nothing
