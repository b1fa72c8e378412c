"""Metrics of classification, all computed from a confusion matrix.

scikit-learn gives the same numbers (a test compares them). They are computed here because the bootstrap needs them
for thousands of matrices at once, and training needs them often, without the second that importing scikit-learn takes.

The functions named `..._from` take counts (..., C, C) with the truth along rows and return (...).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError

Ints = npt.ArrayLike
Floats = npt.NDArray[np.float64]


def confusion_matrix(truth: Ints, prediction: Ints, num_classes: int | None = None) -> npt.NDArray[np.int64]:
    """Count clips by true and predicted class.

    Args:
        truth: (n,) class indices.
        prediction: (n,) class indices.
        num_classes: C; None for the largest index + 1.

    Returns:
        (C, C) int64, rows the truth, columns the prediction.

    Raises:
        InputError: the arrays are empty, differ in shape, or hold something else than indices in [0, C).
    """
    true, predicted = np.asarray(truth), np.asarray(prediction)
    if true.ndim != 1 or true.shape != predicted.shape or true.size == 0:
        raise InputError(f"Truth and prediction must be (n,) with n >= 1, got {true.shape} and {predicted.shape}.")
    if true.dtype.kind not in "iu" or predicted.dtype.kind not in "iu":
        raise InputError(f"Truth and prediction must be integer class indices, got {true.dtype} and {predicted.dtype}.")
    lowest, highest = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    classes = int(highest) + 1 if num_classes is None else num_classes
    if lowest < 0 or highest >= classes:
        raise InputError(f"Class indices must lie in 0 to {classes - 1}, got {lowest} to {highest}.")
    cells = true.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _share(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """Part / whole, NaN where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def per_class_recall_from(counts: npt.NDArray[np.int64]) -> Floats:
    """(..., C) recall of each class, NaN for a class that the truth does not hold."""
    return _share(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def uar_from(counts: npt.NDArray[np.int64]) -> Floats:
    """Unweighted average recall, over the classes that the truth holds."""
    return np.nanmean(per_class_recall_from(counts), axis=-1)


def weighted_accuracy_from(counts: npt.NDArray[np.int64]) -> Floats:
    """Share of clips that are right."""
    return _share(np.diagonal(counts, axis1=-2, axis2=-1).sum(-1), counts.sum((-2, -1)))


def macro_f1_from(counts: npt.NDArray[np.int64]) -> Floats:
    """Mean F1 over the classes that the truth or the prediction holds."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    # F1 = 2 hits / (clips of the class + clips said to be of it): 0 / 0 only where a class occurs in neither
    return np.nanmean(_share(2 * hits, counts.sum(-1) + counts.sum(-2)), axis=-1)


def weighted_f1_from(counts: npt.NDArray[np.int64]) -> Floats:
    """Mean F1 over classes, each weighing as many clips as the truth holds of it."""
    hits, true = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1)
    f1 = _share(2 * hits, true + counts.sum(-2))
    return _share(np.where(true > 0, np.nan_to_num(f1) * true, 0.0).sum(-1), true.sum(-1))


def per_class_recall(truth: Ints, prediction: Ints, num_classes: int | None = None) -> Floats:
    """(C,) share of each class's clips that are right, NaN for a class that the truth does not hold.

    Args and errors as `confusion_matrix`.
    """
    return per_class_recall_from(confusion_matrix(truth, prediction, num_classes))


def uar(truth: Ints, prediction: Ints, num_classes: int | None = None) -> float:
    """Unweighted average recall in [0, 1]: the mean of the classes' recalls, each class counting the same.

    The measure of the INTERSPEECH challenges on emotion (Schuller et al. 2009), also called UA or balanced accuracy.
    Classes without a clip in the truth are left out, as scikit-learn's balanced_accuracy_score does.

    Args and errors as `confusion_matrix`.
    """
    return float(uar_from(confusion_matrix(truth, prediction, num_classes)))


def weighted_accuracy(truth: Ints, prediction: Ints, num_classes: int | None = None) -> float:
    """Share of clips that are right, in [0, 1]: accuracy, called WA where recalls are weighted by class size.

    Args and errors as `confusion_matrix`.
    """
    return float(weighted_accuracy_from(confusion_matrix(truth, prediction, num_classes)))


def macro_f1(truth: Ints, prediction: Ints, num_classes: int | None = None) -> float:
    """Mean over classes of F1, the harmonic mean of precision and recall, in [0, 1].

    Classes that neither truth nor prediction holds are left out; a class that is only predicted, or never, counts as
    0, as in scikit-learn's f1_score.

    Args and errors as `confusion_matrix`.
    """
    return float(macro_f1_from(confusion_matrix(truth, prediction, num_classes)))


def weighted_f1(truth: Ints, prediction: Ints, num_classes: int | None = None) -> float:
    """Mean of the classes' F1, weighted by their numbers of clips in the truth, in [0, 1]: the WF1 of MER and AVCAFFE.

    Args and errors as `confusion_matrix`.
    """
    return float(weighted_f1_from(confusion_matrix(truth, prediction, num_classes)))
