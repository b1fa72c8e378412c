"""The exported contract suite on every built-in upstream, at tiny size."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from mmssl import load_upstream
from mmssl.registry import UPSTREAMS
from mmssl.testing import check_upstream

TINY: dict[str, list[dict[str, Any]]] = runpy.run_path(str(Path(__file__).with_name("tiny.py")))["TINY"]
CASES = [(name, kwargs) for name, rows in TINY.items() for kwargs in rows]


def case_id(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value.get("config", {}).get("model_type", "-".join(map(str, value)) or "default"))


def test_no_builtin_is_missing() -> None:
    assert set(TINY) == set(UPSTREAMS.builtins), "add a row to tests/contract/tiny.py for every built-in upstream"
    assert all(TINY.values())


def test_every_wrapped_speech_family_is_there() -> None:
    from mmssl.upstreams.hf import FAMILIES

    assert {row["config"]["model_type"] for row in TINY["hf"]} == set(FAMILIES)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=case_id)
def test_contract(name: str, kwargs: dict[str, Any]) -> None:
    results = check_upstream(lambda: load_upstream(name, **kwargs), longest=2.5)
    assert [str(r) for r in results if not r.passed] == []
