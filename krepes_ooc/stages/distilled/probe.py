"""Linear probe with its weights, for the sum over landmarks behind a logit.

The same regression as that of the fidelity figures: multinomial logistic regression on standardised
columns, with the same regularisation. Its weights are brought back to plain columns,

    logit_c(f) = w_c . f + b_c,    w_c = v_c / s,  b_c = b'_c - v_c . mean / s,

with v_c and b'_c those on standardised columns and s their deviations. Logits sum to 0 over
classes; of two classes each one's is its log-odds.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.distilled.terms import LinearReadout

# Inverse regularisation of the fidelity stage's probes.
PROBE_C = 1.0
MAX_ITERATIONS = 5000
TOLERANCE = 1e-6
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ExplainedProbe:
    """A fitted linear probe.

    Args:
        readout: weights and biases, one column for each class that was fitted.
        classes: class codes, in the order of the columns [class].
        n_fit: samples that it was fitted on.
        converged: whether the solver reached its tolerance.
    """

    readout: LinearReadout
    classes: Index
    n_fit: int
    converged: bool

    def column(self, code: int) -> int | None:
        """Column of a class; None if no fitted sample has it."""
        found = np.flatnonzero(self.classes == code)
        return int(found[0]) if found.size else None

    def decisions(self, embedding: Float) -> Index:
        """Class codes of the largest logit [sample]."""
        return np.asarray(self.classes[self.readout.decisions(embedding)])

    def probability(self, embedding: Float) -> Float:
        """Class probabilities [sample, class]."""
        logits = self.readout.logits(embedding)
        # Of two classes the logits are the log-odds and their negatives, twice apart.
        logits = logits / 2 if logits.shape[1] == 2 else logits
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def fit_probe(rows: Float, label: Index) -> ExplainedProbe:
    """Fit a probe on samples with labels.

    Args:
        rows: embeddings [sample, output].
        label: class codes [sample]; those below 0 are left out.

    Raises:
        StageFailed: fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning  # on first use: a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    known = label >= 0
    classes = np.unique(label[known])
    if len(classes) < 2:
        raise StageFailed(
            f"{len(classes)} classes among {int(known.sum())} fit samples with labels",
            where="--probe",
            expected="at least two classes",
            advice="name source.label, or raise stages.audited.fit",
        )
    scaler = StandardScaler().fit(rows[known])
    model = LogisticRegression(C=PROBE_C, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ``converged`` says it
        model.fit(scaler.transform(rows[known]), label[known])
    # One row of weights for two classes, else one for each.
    v = model.coef_ if len(classes) > 2 else np.vstack([-model.coef_, model.coef_])
    b = model.intercept_ if len(classes) > 2 else np.append(-model.intercept_, model.intercept_)
    weight = (v / scaler.scale_).T
    bias = b - scaler.mean_ @ weight
    converged = bool(model.n_iter_[0] < MAX_ITERATIONS)
    return ExplainedProbe(LinearReadout(weight, bias), classes, int(known.sum()), converged)
