from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mmssl import registry as registry_module
from mmssl.errors import RegistryError
from mmssl.registry import Registry


@pytest.fixture
def parts() -> Registry:
    return Registry("part", "mmssl.test_parts", {"counter": "collections.Counter"}, file_base="collections.Counter")


def offer(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, "mmssl.test_parts") for name, value in points]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: found)


def test_a_builtin_is_loaded_by_name_and_by_dotted_path(parts: Registry) -> None:
    from collections import Counter, OrderedDict

    assert parts.resolve("counter") is Counter
    assert parts.resolve("collections.OrderedDict") is OrderedDict


def test_a_misspelt_name_is_told_the_close_one(parts: Registry) -> None:
    with pytest.raises(RegistryError, match=r"no part called 'countr'. Did you mean 'counter'\?"):
        parts.resolve("countr")


def test_a_registered_part_is_found_and_its_name_is_taken(parts: Registry) -> None:
    parts.register("mine", dict)
    assert parts.resolve("mine") is dict
    for taken in ("mine", "counter"):
        with pytest.raises(RegistryError, match="is taken by"):
            parts.register(taken, list)
    parts.unregister("mine")
    assert "mine" not in parts.names()


def test_an_entry_point_is_loaded_only_when_asked_for(parts: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import deque

    offer(monkeypatch, ("theirs", "collections:deque"), ("broken", "no_such_module_here:X"))
    assert parts.names() == ["broken", "counter", "theirs"]
    assert parts.resolve("theirs") is deque
    with pytest.raises(RegistryError, match=r"'broken' of package .* does not load .*no_such_module_here"):
        parts.resolve("broken")


def test_clashing_entry_points_are_named_and_leave_the_others_alone(
    parts: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, ("twice", "collections:deque"), ("twice", "collections:ChainMap"), ("once", "collections:deque"))
    assert set(parts.clashes()) == {"twice"}
    with pytest.raises(RegistryError, match=r"collections.deque or collections.ChainMap"):
        parts.resolve("twice")
    parts.resolve("once")


def test_an_entry_point_cannot_take_a_builtin_name(parts: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import Counter

    offer(monkeypatch, ("counter", "collections:deque"))
    assert parts.resolve("counter") is Counter
    assert "mmssl" in parts.clashes()["counter"]


def test_a_single_file_works_without_installation(parts: Registry, tmp_path: Path) -> None:
    file = tmp_path / "my_part.py"
    file.write_text("from collections import Counter\nclass Mine(Counter):\n    pass\nclass Other:\n    pass\n")
    assert parts.resolve(str(file)).__name__ == "Mine"
    assert parts.resolve(str(file)) is parts.resolve(f"{file}:Mine")
    assert parts.resolve(f"{file}:Other").__name__ == "Other"
    with pytest.raises(RegistryError, match=r"no class or function 'Minee'\. Did you mean 'Mine'"):
        parts.resolve(f"{file}:Minee")


def test_a_file_with_several_candidates_or_an_error_says_so(parts: Registry, tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text("from collections import Counter\nclass A(Counter):\n    pass\nclass B(Counter):\n    pass\n")
    with pytest.raises(RegistryError, match=r"defines 2 part classes \(A, B\); name the one to use, as in .*two.py:A"):
        parts.resolve(str(file))
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('inside')")
    with pytest.raises(RegistryError, match="does not load: ValueError: inside"):
        parts.resolve(str(broken))
    with pytest.raises(RegistryError, match="does not exist"):
        parts.resolve(str(tmp_path / "absent.py"))


def test_a_dotted_path_that_does_not_import_says_why(parts: Registry) -> None:
    with pytest.raises(RegistryError, match="cannot be imported: ModuleNotFoundError"):
        parts.resolve("no_such_package.module.Name")
    with pytest.raises(RegistryError, match="has no class or function 'Nothing'"):
        parts.resolve("collections.Nothing")
