"""How well clusters of frames go with known labels, and how evenly they are used.

Sources: Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units",
section IV.D (phone purity, cluster purity, phone-normalized mutual information).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmssl.errors import DataError


@dataclass(frozen=True)
class ClusterQuality:
    """What clusters tell of labels.

    Attributes:
        phone_purity: share of frames whose label is the most frequent one of their cluster, in [0, 1].
        cluster_purity: share of frames whose cluster is the most frequent one of their label, in [0, 1].
        pnmi: mutual information of labels and clusters over the entropy of the labels, in [0, 1].
        frames: that were counted.
    """

    phone_purity: float
    cluster_purity: float
    pnmi: float
    frames: int


def contingency(labels: np.ndarray, clusters: np.ndarray, num_labels: int, num_clusters: int) -> np.ndarray:
    """How often each label meets each cluster.

    Args:
        labels: (N,) integers from 0 to num_labels - 1; negative ones are frames without a label, which are left out.
        clusters: (N,) integers from 0 to num_clusters - 1.
        num_labels, num_clusters: size of the table.

    Returns:
        (num_labels, num_clusters) int64.

    Raises:
        DataError: other shapes, or numbers out of range.
    """
    labels, clusters = np.asarray(labels, dtype=np.int64), np.asarray(clusters, dtype=np.int64)
    if labels.shape != clusters.shape or labels.ndim != 1:
        raise DataError(f"Labels and clusters must be two (N,) arrays, got {labels.shape} and {clusters.shape}.")
    known = labels >= 0
    labels, clusters = labels[known], clusters[known]
    if len(labels) and (labels.max() >= num_labels or clusters.min() < 0 or clusters.max() >= num_clusters):
        raise DataError(f"A label or cluster is outside of the table of {num_labels} labels x {num_clusters} clusters.")
    counts = np.bincount(labels * num_clusters + clusters, minlength=num_labels * num_clusters)
    return counts.reshape(num_labels, num_clusters)


def quality(table: np.ndarray) -> ClusterQuality:
    """Purities and PNMI of a table of counts, labels (rows) by clusters (columns).

    PNMI is 0 where all frames have one label: nothing can be told then.

    Raises:
        DataError: the table is empty.
    """
    total = int(table.sum())
    if total == 0:
        raise DataError("No frame has both a label and a cluster: check that the alignment belongs to these clips.")
    joint = table / total
    of_labels, of_clusters = joint.sum(1), joint.sum(0)
    outer = of_labels[:, None] * of_clusters[None, :]
    met = joint > 0
    information = float((joint[met] * np.log(joint[met] / outer[met])).sum())
    uncertainty = -float((of_labels[of_labels > 0] * np.log(of_labels[of_labels > 0])).sum())
    return ClusterQuality(
        phone_purity=float(joint.max(0).sum()),
        cluster_purity=float(joint.max(1).sum()),
        pnmi=max(information, 0.0) / uncertainty if uncertainty > 0 else 0.0,
        frames=total,
    )


def usage(counts: np.ndarray) -> tuple[float, int]:
    """How evenly clusters are used.

    Args:
        counts: (K,) frames of each cluster.

    Returns:
        Entropy over ln(K), in [0, 1] where 1 is even, and the number of clusters that are used at all.

    Raises:
        DataError: no frame at all.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.sum() <= 0:
        raise DataError("No frame was assigned to any cluster.")
    shares = counts[counts > 0] / counts.sum()
    entropy = -float((shares * np.log(shares)).sum())
    return (entropy / float(np.log(len(counts))) if len(counts) > 1 else 0.0), int((counts > 0).sum())
