"""The contract of an upstream as checks that run, for the command line and for the tests of plug-in authors.

from mmssl import load_upstream
from mmssl.testing.upstream_contract import assert_upstream_contract

def test_my_upstream():
    assert_upstream_contract(lambda: load_upstream("my_pkg.MyUpstream", size=64))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmssl.testing.upstream_case import BrokenRuleError, Case, SkippedError
from mmssl.testing.upstream_checks import CHECKS
from mmssl.upstreams.base import Upstream, load_upstream


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes:
        name: of the check.
        passed: True also where the check was skipped.
        detail: what was measured, why it failed, or why it was skipped.
        skipped: the check does not apply here.
    """

    name: str
    passed: bool
    detail: str
    skipped: bool = False

    def __str__(self) -> str:
        mark = "skip" if self.skipped else "ok" if self.passed else "FAIL"
        return f"{mark:4s}  {self.name}: {self.detail}"


def check_upstream(
    build: str | Callable[[], Upstream], *, longest: float = 10.0, tolerance: float = 1e-5
) -> list[CheckResult]:
    """Run the whole contract on an upstream.

    Args:
        build: what returns the upstream ready for feature extraction, as `lambda: load_upstream(...)` does; or a name,
            a dotted path or a path to a .py file, which is loaded by `load_upstream`. It is called several times.
        longest: seconds of the longest clip to run.
        tolerance: largest difference between a clip alone and the clip in a batch, in parts of a layer's scale (the
            root mean square of its values).

    Returns:
        One result per check, in a fixed order. A check that raises counts as failed.
    """
    make = (lambda: load_upstream(build)) if isinstance(build, str) else build
    case = Case(make, longest, tolerance)
    results = []
    for name, check in CHECKS.items():
        try:
            detail, passed, skipped = check(case), True, False
        except SkippedError as reason:
            detail, passed, skipped = str(reason), True, True
        except Exception as error:  # a plug-in may raise anything
            broken = isinstance(error, BrokenRuleError)
            detail, passed, skipped = (str(error) if broken else f"{type(error).__name__}: {error}"), False, False
        results.append(CheckResult(name, passed, detail, skipped))
        if not passed and name == "loads":
            break
    return results


def assert_upstream_contract(
    build: str | Upstream | Callable[[], Upstream], *, longest: float = 10.0, tolerance: float = 1e-5
) -> None:
    """Raise an AssertionError that lists every broken rule; see `check_upstream`.

    Args:
        build: as for `check_upstream`, or an upstream, which leaves what happens while loading unchecked.
        longest, tolerance: as for `check_upstream`.
    """
    make = (lambda: build) if isinstance(build, Upstream) else build
    failed = [str(result) for result in check_upstream(make, longest=longest, tolerance=tolerance) if not result.passed]
    if failed:
        raise AssertionError("The upstream breaks its contract:\n" + "\n".join(failed))
