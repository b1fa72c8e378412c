"""A watcher of pretraining runs: warns once of each thing that goes wrong, names the likely cause and what to do.

Collapse looks like success: the loss of a run that gives every clip the same vector is perfect. What is looked at are
the rows of the history alone, so that a finding can be made again from `history.jsonl`. A loss that is not a number
needs no watcher: it stops the run.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mmssl.errors import ConfigError
from mmssl.files import replace_file
from mmssl.training.pretrain_rows import learnable_loss

if TYPE_CHECKING:
    from mmssl.training.pretrain_module import PretrainModule

WARNINGS = "warnings.jsonl"
_LOG = logging.getLogger("mmssl")
_ROWS = 5
_ABSOLUTE = 0.01
_FLAT = 0.99

Row = Mapping[str, float]


@dataclass(frozen=True)
class Warned:
    """Something that goes wrong in a run.

    Attributes:
        step: of the row in which it was seen.
        kind: representation_collapse, target_collapse, code_collapse, flat_target, no_context, stuck or rising.
        term: of the objective; "" for the whole.
        message: what is seen, the likely cause, and what to do.
    """

    step: int
    kind: str
    term: str
    message: str


class CollapseWatcher(Callback):
    """Looks at every new row of the history; see `find`.

    What was warned of is in the checkpoint, so that a resumed run neither repeats nor forgets it.

    Args:
        folder: of the run; gets `warnings.jsonl`, whole or not at all, once there is a warning.
        share: see `find`.
        settle: see `find`.

    Attributes:
        warned: what was found, in order.

    Raises:
        ConfigError: a share outside (0, 1), or settle below 1.
    """

    def __init__(self, folder: str | Path, share: float = 0.1, settle: int = 200) -> None:
        if not 0 < share < 1 or settle < 1:
            raise ConfigError(f"share must be in (0, 1) and settle at least 1, got {share} and {settle}.")
        self.folder, self.share, self.settle = Path(folder), share, settle
        self.warned: list[Warned] = []
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the file to where the run stands: warnings of steps that are done again are dropped."""
        if trainer.is_global_zero and (self.warned or (self.folder / WARNINGS).is_file()):
            self._write()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Look at the history if it has a new row."""
        module: PretrainModule = pl_module  # type: ignore[assignment]
        if len(module.history) == self._seen:
            return
        self._seen = len(module.history)
        known = {(w.kind, w.term) for w in self.warned}
        new = [w for w in find(module.history, self.share, self.settle) if (w.kind, w.term) not in known]
        self.warned += new
        if new and trainer.is_global_zero:
            for warned in new:
                _LOG.warning("step %d: %s", warned.step, warned.message)
            self._write()

    def state_dict(self) -> dict[str, Any]:
        """What was warned of."""
        return {"warned": [asdict(w) for w in self.warned], "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.warned = [Warned(**row) for row in state_dict["warned"]]
        self._seen = int(state_dict["seen"])

    def _write(self) -> None:
        lines = [json.dumps(asdict(w)) + "\n" for w in self.warned]
        with replace_file(self.folder / WARNINGS) as file:
            file.write("".join(lines).encode())


def read_warnings(folder: str | Path) -> list[Warned]:
    """Warnings of the run in a folder; none where it has no `warnings.jsonl`."""
    path = Path(folder) / WARNINGS
    if not path.is_file():
        return []
    return [Warned(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def find(history: Sequence[Row], share: float = 0.1, settle: int = 200) -> list[Warned]:
    """What is wrong at the last row of a history; something must show in the last two rows that have its numbers.

    Args:
        history: rows from the first step on.
        share: what must be left of the spread (relative to the size of the vectors) and of the rank (beyond 1) that
            the run began with.
        settle: steps after which a loss must have left ln(N), and from which on it must not rise.
    """
    if not history:
        return []
    step, terms = int(history[-1]["step"]), dict.fromkeys(n.split("/")[0] for r in history for n in r if "/" in n)
    found: list[tuple[str, str, str]] = []
    for term in terms:
        rows = [{n.removeprefix(f"{term}/"): v for n, v in row.items() if n.startswith(f"{term}/")} for row in history]
        steps = [int(row["step"]) for row in history]
        for kind, message in (
            ("representation_collapse", _collapse(rows, "representation", share)),
            ("target_collapse", _collapse(rows, "target", share)),
            ("code_collapse", _code_collapse(rows)),
            ("flat_target", _flat_target(rows, steps, settle)),
            ("no_context", _no_context(rows, steps, settle)),
            ("stuck", _stuck(rows, steps, settle)),
        ):
            if message:
                found.append((kind, term, f"{term}: {message}"))
    message = _rising(history, settle)
    if message:
        found.append(("rising", "", message))
    return [Warned(step, kind, term, text) for kind, term, text in found]


def _collapse(rows: Sequence[Row], what: str, share: float) -> str:
    """Of the representation or of a target: too little of its spread or rank is left."""
    if what == "representation":
        cause = (
            "Likely causes: no stop-gradient or predictor where two views are pulled together, a learning rate that is "
            "far too high, or a loss without negatives or variance term. Lower the learning rate (by 3 or more) first"
        )
    else:
        cause = (
            "Likely causes: a teacher that follows too fast, without centring or normalisation of its output, or a "
            "learning rate that is far too high. Raise the teacher's decay, centre or normalise its targets"
        )
    seen = _having(rows, f"{what}_spread", f"{what}_rank", f"{what}_size")
    if len(seen) < 3:
        return ""
    first = seen[0]
    start = _relative(first, what)
    if all(
        _relative(row, what) < share * start or row[f"{what}_spread"] < _ABSOLUTE * first[f"{what}_spread"]
        for row in seen[-2:]
    ):
        now = _relative(seen[-1], what)
        return (
            f"all clips get nearly the same {what}: its spread is {now:.1e} of its size, {start:.1e} at the start. "
            f"{cause}, and start again from a checkpoint before this step."
        )
    dimensions = [row[f"{what}_rank"] - 1 for row in (first, *seen[-2:])]
    if dimensions[0] > 1 and max(dimensions[1:]) < share * dimensions[0]:
        return (
            f"the {what} uses {dimensions[2] + 1:.1f} dimensions, {dimensions[0] + 1:.1f} at the start: a collapse of "
            f"dimensions. {cause}, and start again from a checkpoint before this step."
        )
    return ""


def _code_collapse(rows: Sequence[Row], least: float = 0.1) -> str:
    seen = [row["code_usage_entropy"] for row in _having(rows, "code_usage_entropy")]
    if len(seen) < 2 or max(seen[-2:]) >= least:
        return ""
    return (
        f"nearly all targets are one code: the entropy of their use is {seen[-1]:.3f} nats. The task is then solved "
        "without looking. Likely causes: a codebook that collapsed (raise the diversity penalty or the temperature), "
        "clusters of features that do not differ, or a teacher without centring."
    )


def _flat_target(rows: Sequence[Row], steps: Sequence[int], settle: int) -> str:
    seen = _having(rows, "teacher_entropy", "ln_n")
    if steps[-1] < settle or len(seen) < 2 or any(r["teacher_entropy"] < _FLAT * r["ln_n"] for r in seen[-2:]):
        return ""
    return (
        "the teacher gives every output the same probability, so that there is nothing to learn. Likely cause: too "
        "little sharpening. Lower the teacher's temperature, or the momentum of the centre."
    )


def _no_context(rows: Sequence[Row], steps: Sequence[int], settle: int) -> str:
    seen = _having(rows, "accuracy", "visible_accuracy")
    if steps[-1] < settle or len(seen) < 2:
        return ""
    # the commonest code has at least the share exp(-entropy): to guess it needs no context, and is no finding
    guess = max(math.exp(-row.get("code_usage_entropy", math.inf)) for row in seen[-2:])
    if any(
        row["accuracy"] < max(0.5, 1.5 * guess) or row["accuracy"] < 0.98 * row["visible_accuracy"] for row in seen[-2:]
    ):
        return ""
    return (
        f"hidden frames are predicted as well as visible ones (accuracy {seen[-1]['accuracy']:.3f} and "
        f"{seen[-1]['visible_accuracy']:.3f}): the task needs no context. Likely causes: masked spans that are too "
        "short for targets that change slowly, or hidden frames that leak. Mask longer spans or a larger share, use "
        "more clusters, and check that the encoder does not see what is hidden."
    )


def _stuck(rows: Sequence[Row], steps: Sequence[int], settle: int) -> str:
    seen = _having(rows, "loss", "ln_n")[-2:]
    if steps[-1] < settle or len(seen) < 2 or any(not _FLAT < row["loss"] / row["ln_n"] < 1.01 for row in seen):
        return ""
    return (
        f"the loss is at ln(N) = {seen[-1]['ln_n']:.3f} after {steps[-1]} steps, what guessing gives. Likely causes: a "
        "learning rate that is too low or too high, targets that have nothing to do with the input (label files of "
        "other clips, another frame rate), or equal negatives. Try a learning rate 3 times higher and lower."
    )


def _rising(history: Sequence[Row], settle: int) -> str:
    """The loss lost more than half of what it had gained, or is clearly above its start; see `learnable_loss`."""
    losses = [learnable_loss(row) for row in history if "loss" in row]
    if int(history[-1]["step"]) < settle or len(losses) < 3 * _ROWS:
        return ""
    means = [sum(losses[k : k + _ROWS]) / _ROWS for k in range(len(losses) - _ROWS + 1)]
    start, lowest, now = means[0], min(means), means[-1]
    noise = max(losses[-_ROWS:]) - min(losses[-_ROWS:])
    gained = start - lowest
    above = now - start > max(0.1 * abs(start), noise)
    lost = gained > 0.05 * abs(start) and now - lowest > max(0.5 * gained, noise)
    if not above and not lost:
        return ""
    return (
        f"the loss rises: {start:.4f} at the start, {lowest:.4f} at its lowest, {now:.4f} now. Likely causes: a "
        "learning rate that is too high, or no warm-up. Lower the learning rate, clip gradients, or start again from a "
        "checkpoint before the rise."
    )


def _relative(row: Row, what: str) -> float:
    return row[f"{what}_spread"] / max(row[f"{what}_size"], 1e-30)


def _having(rows: Sequence[Row], *names: str) -> list[Row]:
    return [row for row in rows if all(name in row for name in names)]
