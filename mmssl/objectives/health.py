"""Numbers that tell a representation that learns from one that has collapsed."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """Standard deviation over rows (N, D), mean over dimensions; 0 when all rows are equal.

    Returns:
        Scalar; 0 for a single row.
    """
    return rows.float().std(dim=0, correction=0).mean()


@torch.no_grad()
def effective_rank(rows: Tensor) -> Tensor:
    """Number of dimensions that centred rows (N, D) really use: exp of the entropy of the normalised singular values.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", equation 3. At most 1024
    rows, evenly spaced, are looked at.

    Returns:
        Scalar between 1 and min(N, D); 0 when all rows are equal.
    """
    rows = rows[:: max(1, len(rows) // _ROWS)][:_ROWS].float()
    centred = rows - rows.mean(0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    # rounding leaves tiny values where all rows are equal
    if float(total) <= 1e-5 * max(float(rows.norm()), 1e-30):
        return torch.zeros((), device=rows.device)
    share = values / total
    return (-torch.xlogy(share, share).sum()).exp()


@torch.no_grad()
def usage_entropy(codes: Tensor) -> Tensor:
    """Entropy in nats of how often codes occur, mean over G codebooks; ln V when all V are used equally, 0 for one.

    Args:
        codes: (N,) or (N, G) int64.
    """
    columns = codes[:, None] if codes.dim() == 1 else codes
    entropies = []
    for column in columns.unbind(1):
        share = torch.bincount(column).float() / len(column)
        entropies.append(-torch.xlogy(share, share).sum())
    return torch.stack(entropies).mean()
