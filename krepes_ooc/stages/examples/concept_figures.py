"""Figures of discovered concepts: precision on labels, share of the network's embedding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def best_class_precision(activation: Float, label: Index) -> float | None:
    """Average precision of each concept's best-matching class, mean over the concepts.

    Args:
        activation: [sample, concept].
        label: class code, -1 for none [sample].

    Returns:
        None with fewer than two classes.
    """
    known = label >= 0
    classes = np.unique(label[known])
    if len(classes) < 2:
        return None
    member = label[known][:, None] == classes
    best = [average_precision(scores, member).max() for scores in activation[known].T]
    return float(np.mean(best)) if best else None


def average_precision(scores: Float, member: npt.NDArray[np.bool_]) -> Float:
    """Average precision of a ranking for every class [class].

    Args:
        scores: largest first [sample].
        member: whether a sample belongs to a class [sample, class].
    """
    hits = member[np.argsort(-scores, kind="stable")].astype(np.float64)
    precision = np.cumsum(hits, axis=0) / np.arange(1, len(hits) + 1)[:, None]
    return np.asarray((precision * hits).sum(axis=0) / np.maximum(hits.sum(axis=0), 1.0))


def winner_r_squared(
    winners_fit: Index, fit: Float, winners_audit: Index, audit: Float
) -> float | None:
    """R^2 of an embedding predicted by the mean over the fit samples of the same concept.

    Args:
        winners_fit: concept of the fit samples [sample].
        fit: their embedding [sample, output].
        winners_audit: concept of the audit samples.
        audit: their embedding.

    Returns:
        None without fit samples, or where the audit samples do not vary.
    """
    spread = float(np.sum((audit - audit.mean(axis=0)) ** 2)) if len(audit) else 0.0
    if not len(fit) or not spread > 0:
        return None
    count = int(max(winners_fit.max(), winners_audit.max())) + 1
    number = np.bincount(winners_fit, minlength=count)
    sums = np.zeros((count, fit.shape[1]))
    np.add.at(sums, winners_fit, fit)
    # A concept that no fit sample shows predicts the mean of all.
    means = np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], fit.mean(axis=0))
    return 1.0 - float(np.sum((audit - means[winners_audit]) ** 2)) / spread
