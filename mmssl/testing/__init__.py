"""Contract suites that authors of plug-ins run in their own tests."""

from __future__ import annotations

from typing import Any

__all__ = ["CheckResult", "assert_upstream_contract", "check_upstream"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mmssl.testing' has no attribute {name!r}")
    # imported on use, so that listing the package does not import torch
    from mmssl.testing import upstream_contract

    return getattr(upstream_contract, name)
