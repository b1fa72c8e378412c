"""InfoNCE over pairs: the other half of a pair against those of the batch, of all ranks, and of a queue.

Sources: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", equation 4; symmetric
over two streams as in CLIP (Radford et al. 2021) and HiCMAE (Sun et al. 2024); the queue of MoCo (He et al. 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.losses.base import Loss, LossOutput, both_rows, require_positive, require_rows
from mmssl.objectives.losses.gather import gather_rows


class InfoNCE(Loss):
    """Cross entropy of cosines / temperature between the rows of two batches; row i belongs to row i.

    Args:
        temperature: divides the cosines.
        symmetric: mean of both directions, prediction to target and back; False for the first alone.
        gather: negatives from all ranks, not only from this one.
        queue_size: targets of earlier steps that serve as negatives too, for the first direction; 0 for none.

    Raises:
        ConfigError: a temperature that is not positive, or a queue for a symmetric loss.
    """

    compares_rows = True
    queue: Tensor

    def __init__(
        self, temperature: float = 0.07, symmetric: bool = True, gather: bool = False, queue_size: int = 0
    ) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        if queue_size < 0 or (queue_size and symmetric):
            raise ConfigError(
                f"queue_size must be at least 0, and a queue holds targets only: set symmetric=False with it "
                f"(got queue_size = {queue_size}, symmetric = {symmetric})."
            )
        self.temperature, self.symmetric, self.gather, self.queue_size = temperature, symmetric, gather, queue_size
        self.register_buffer("queue", torch.empty(0, 0))
        self._pending: list[Tensor] = []

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean over rows; logs "accuracy", "negatives" (their number for each row) and "ln_n" = ln(negatives + 1).

        Args:
            prediction, target: (B, D) clips, or (B, T, D) frames, of which all selected ones are contrasted.
            where: as `Loss.forward`.
            generator: not used.
        """
        queries, keys = (F.normalize(x.float(), dim=-1) for x in both_rows(prediction, target, where))
        # for the second direction, the queries of all ranks too
        wanted = [keys, queries] if self.symmetric else [keys]
        (all_keys, *others), first = gather_rows(*wanted) if self.gather else (wanted, 0)
        queue = self._filled_queue(keys)
        require_rows(len(all_keys) + len(queue), self)
        labels = torch.arange(first, first + len(queries), device=queries.device)
        logits = queries @ torch.cat([all_keys, queue]).t() / self.temperature
        loss = F.cross_entropy(logits, labels)
        if self.symmetric:
            loss = (loss + F.cross_entropy(keys @ others[0].t() / self.temperature, labels)) / 2
        if self.queue_size and torch.is_grad_enabled():
            self._pending.append(all_keys.detach())
        negatives = logits.shape[1] - 1
        logs = {
            "accuracy": (logits.detach().argmax(1) == labels).float().mean(),
            "negatives": torch.tensor(float(negatives)),
            "ln_n": torch.tensor(math.log(negatives + 1)),
        }
        return LossOutput(loss, len(queries), logs)

    def _filled_queue(self, keys: Tensor) -> Tensor:
        if self.queue.numel() and self.queue.shape[1] != keys.shape[1]:
            raise InputError(f"The queue holds targets of width {self.queue.shape[1]}, got {keys.shape[1]}.")
        return self.queue.to(keys) if self.queue.numel() else keys.new_empty(0, keys.shape[1])

    def after_step(self) -> None:
        """Put the targets of the step into the queue, the newest first."""
        if self._pending:
            old = [self.queue] if self.queue.numel() else []
            self.queue = torch.cat([*reversed(self._pending), *old])[: self.queue_size].clone()
            self._pending.clear()

    def after_skipped_step(self) -> None:
        """Leave the queue as it is; see `Loss.after_skipped_step`."""
        self._pending.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """A queue grows while it fills: take over the size that was saved."""
        saved = state_dict.get(prefix + "queue")
        if saved is not None:
            self.queue = torch.empty_like(saved, device=self.queue.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
