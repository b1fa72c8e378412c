"""Numbers that tell a representation that learns from one that has collapsed."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 512


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """Standard deviation over rows (N, D), mean over dimensions; 0 when all rows are equal.

    Returns:
        Scalar; 0 for a single row.
    """
    return rows.float().std(dim=0, correction=0).mean()


@torch.no_grad()
def size(rows: Tensor) -> Tensor:
    """Root mean square of all values of rows (N, D): spread over size is the share of them that tells rows apart.

    Returns:
        Scalar; at least the spread of the same rows.
    """
    return rows.float().square().mean().sqrt()


@torch.no_grad()
def effective_rank(rows: Tensor) -> Tensor:
    """Number of dimensions that centred rows (N, D) really use: exp of the entropy of the normalised singular values.

    Of more than 512 rows, 512 evenly spaced ones are looked at. The singular values are the roots of the eigenvalues of
    the smaller of the two Gram matrices, in float64: exact to 1e-7 of the largest, at a small share of the cost.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", equation 3.

    Returns:
        Scalar between 1 and min(N, D); 0 when all rows are equal, or when a value is not finite.
    """
    if len(rows) > _ROWS:
        rows = rows[torch.linspace(0, len(rows) - 1, _ROWS, device=rows.device).round().long()]
    values = rows.double()
    centred = values - values.mean(0)
    gram = centred @ centred.t() if centred.shape[0] < centred.shape[1] else centred.t() @ centred
    zero = torch.zeros((), device=rows.device)
    # rounding leaves tiny values where all rows are equal
    if not bool(torch.isfinite(gram).all()) or float(gram.trace()) <= 1e-10 * float(values.square().sum()):
        return zero
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return (-torch.xlogy(share, share).sum()).exp().float()


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
