"""Fidelity figures and their controls: the table of keys, with their labels for people.

Code, stores and ``report.json`` use keys. A label is looked up here when something is shown, so it
can be reworded without any effect on a verdict or a stored byte. The order of every table is the
reading order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

START, STEP, LM_STEPS = "start", "step", "lm_steps"
# The coefficients that explain; one of the two above, or the damped minimiser.
SOLUTION = "solution"
NETWORK = "network"

# Paired differences: the solution minus the plain kernel, the figure minus raw inputs.
STEP_AGAINST_KERNEL, AGAINST_INPUTS = "step_against_kernel", "against_inputs"
VALUE = "value"
NOISE_CEILING = "noise_ceiling"


@dataclass(frozen=True)
class FigureSpec:
    """One figure.

    Args:
        label: title for people.
        note: definition, and how to read it.
        controls: label of every control by its key.
        optional: controls that some audits cannot have: they need further steps, short inputs,
            labels of landmarks, or another measure.
        paired: differences over the same audit samples by their key: what is subtracted from what,
            each a control, or ``VALUE`` for the figure itself.
        ceiling: the control that the figure cannot be expected to exceed.
    """

    label: str
    note: str
    controls: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    paired: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ceiling: str = ""


@dataclass(frozen=True)
class CurveSpec:
    """One curve.

    Args:
        label: title for people.
        x_label: what runs along x.
        y_label: what runs along y, with its unit.
        note: how to read it.
        lines: label of every line by its key.
    """

    label: str
    x_label: str
    y_label: str
    note: str
    lines: Mapping[str, str]


# What linear probes are fitted on; the network's probe is the reference, the solution's the figure.
SPACES = {
    NETWORK: "network",
    SOLUTION: "audit's embedding",
    STEP: "after one Newton step",
    START: "embedding at the start",
    "kernel_rows": "kernel rows",
    "ridge_ceiling": "ridge ceiling",
    "uniform_landmarks": "kernel rows of as many uniform landmarks",
    LM_STEPS: "after further steps",
    "raw_inputs": "raw inputs",
    "fourier_features": "random Fourier features of the inputs",
}
_CONTROL_SPACES = {key: label for key, label in SPACES.items() if key not in (NETWORK, SOLUTION)}
_OPTIONAL_SPACES = frozenset({"uniform_landmarks", LM_STEPS, "raw_inputs", "fourier_features"})

# The measures of stage influence.
MEASURES = {
    "aligned": "aligned influence, max(k, 0) cos",
    "paper": "the paper's influence score",
    "unique": "unique influence (leave-one-out kernel)",
    "kernel": "plain kernel",
}
# Their keys here, by their names in a recipe.
MEASURE_KEYS = {"aligned": "aligned", "is": "paper", "unique": "unique", "kernel": "kernel"}
# Every way to rank the landmarks of a sample; the measure of the audit is not its own control.
RANKINGS = {
    **MEASURES,
    "contribution": "signed contribution <k A_l, f_t>",
    "network_cosine_centred": "cosine of network embeddings, centred",
    "network_cosine": "cosine of network embeddings",
    "input_cosine": "cosine of inputs",
    "representer_values": "representer values of a probe (labels)",
    "influence_functions": "influence functions of a probe (labels)",
}
RANKED_BY = "ranked_by_"
_OPTIONAL_RANKINGS = frozenset(
    {*MEASURES, "input_cosine", "representer_values", "influence_functions"}
)

# Predictions of the effect of leaving out a group; the first is the figure, the others controls.
GROUP_INFLUENCE = "group_influence"
PREDICTORS = {
    GROUP_INFLUENCE: "re-solve without the group",
    "group_size": "size of the group",
    "own_group": "whether the sample belongs to the group",
    "kernel_components": "principal components of kernel rows, solved again",
    "input_components": "principal components of inputs, solved again",
    "landmark_scores": "sum of the paper's score over the group's landmarks",
    "landmark_kernels": "sum of |k| over the group's landmarks",
}
# What limits any prediction: trainings differ by their seeds.
SEEDS = {
    "single_seed": "one training against one of another seed",
    "attainable": "bound of the mean over seeds (Spearman-Brown)",
}
_PREDICTION_CONTROLS = {
    **{key: label for key, label in PREDICTORS.items() if key != GROUP_INFLUENCE},
    **SEEDS,
}
_SUBSET_CONTROLS = {k: v for k, v in _PREDICTION_CONTROLS.items() if k != "group_size"}
_LONG_INPUTS = frozenset({"input_components"})
_RETRAINED = (
    "The truth is the effect in networks that were trained again without the group, mean over "
    "seeds. The interval is a bootstrap over groups and samples."
)
# Rankings without labels; the centred cosine is the network's own likeness once more.
_LABEL_FREE_RANKINGS = {
    key: label
    for key, label in RANKINGS.items()
    if key not in ("network_cosine_centred", "representer_values", "influence_functions")
}


def _against(kernel: str, inputs: str) -> dict[str, tuple[str, str]]:
    """The figure minus its controls by the plain kernel and by raw inputs."""
    return {STEP_AGAINST_KERNEL: (VALUE, kernel), AGAINST_INPUTS: (VALUE, inputs)}


FIGURES: Mapping[str, FigureSpec] = {
    "ridge_ceiling": FigureSpec(
        "Variance of the network's embedding that kernel rows explain (ridge ceiling)",
        "Held-out R squared of a ridge regression. The ceiling is what any coefficients could "
        "reach; start, solution and step are what embeddings of the audit reach.",
        {
            START: "embedding at the start",
            SOLUTION: "audit's embedding",
            STEP: "embedding after one Newton step",
            LM_STEPS: "embedding after further steps",
            "raw_inputs": "raw inputs",
            "fourier_features": "random Fourier features of the inputs",
            "uniform_landmarks": "as many uniform landmarks",
        },
        frozenset({LM_STEPS, "raw_inputs", "fourier_features"}),
        # The figure itself is the plain kernel's
        {STEP_AGAINST_KERNEL: (SOLUTION, VALUE), AGAINST_INPUTS: (VALUE, "raw_inputs")},
    ),
    "kendall_tau": FigureSpec(
        "Rank agreement with the network's probe (Kendall tau-b)",
        "Over audit samples, of the probability that a linear probe gives to the true class: "
        "probe on the audit's embedding against probe on the network's.",
        {
            **_CONTROL_SPACES,
            NOISE_CEILING: "noise ceiling: network, two halves of the fit samples",
            "noise_ceiling_regularisation": "noise ceiling: network, other regularisation",
        },
        _OPTIONAL_SPACES,
        _against("kernel_rows", "raw_inputs"),
        NOISE_CEILING,
    ),
    "accuracy_gap": FigureSpec(
        "Accuracy gap to the network's probe, in percentage points",
        "Accuracy of a linear probe on the audit's embedding minus that on the network's; "
        "the same samples, the same regularisation. The interval is over audit samples.",
        {
            **_CONTROL_SPACES,
            "majority_class": "always the most frequent class",
            "network_accuracy": "accuracy of the network's probe, percent",
            NOISE_CEILING: "noise ceiling: network, refitted on half of the fit samples",
        },
        _OPTIONAL_SPACES,
        _against("kernel_rows", "raw_inputs"),
        NOISE_CEILING,
    ),
    "cka": FigureSpec(
        "Similarity of the audit's embedding and the network's (linear CKA)",
        "1 means the same geometry up to rotation and scale.",
        {
            START: "embedding at the start",
            STEP: "embedding after one Newton step",
            "kernel_rows": "kernel rows",
            "raw_inputs": "raw inputs",
        },
        frozenset({"raw_inputs"}),
        _against("kernel_rows", "raw_inputs"),
    ),
    "neighbour_overlap": FigureSpec(
        "Top-10 landmarks that are the network's own nearest",
        "Share of a sample's ten first landmarks that are among the ten nearest by the distance of "
        "the network's embeddings, mean over audit samples. No label is used.",
        {**_LABEL_FREE_RANKINGS, "random": "random landmarks"},
        frozenset({*MEASURES, "input_cosine"}),
        _against("kernel", "input_cosine"),
    ),
    "precision_at_1": FigureSpec(
        "First landmark has the sample's label (Precision@1)",
        "Share of audit samples with labels. Those marked (labels) are trained on the "
        "landmarks' labels; nothing else has seen a label.",
        {
            **RANKINGS,
            "majority_class": "always the most frequent class",
            "random": "a random landmark",
        },
        _OPTIONAL_RANKINGS,
        _against("kernel", "input_cosine"),
    ),
    "confidence_drop": FigureSpec(
        "Confidence lost without the top landmarks",
        "k-NN over the 50 nearest fit samples; the share of the class predicted before, minus "
        "its share after. Removal is from the representer sum, unless a control says "
        "otherwise; in the exact refit the other landmarks are fitted to what they can express "
        "of the embedding by least squares over all samples.",
        {
            "random": "random",
            "random_two_standard_errors": "random, two standard errors",
            "kernel_only": "largest |k| (no step)",
            "kernel_times_coefficients": "largest |k| |A_l|",
            "reference_set_removal": "from the k-NN reference set of landmarks",
            "reference_set_removal_random": "from the reference set, random ones",
            "exact_refit": "with an exact refit",
            "exact_refit_random": "with an exact refit, random ones",
            **{f"{RANKED_BY}{key}": f"ranked by {label}" for key, label in RANKINGS.items()},
        },
        frozenset(f"{RANKED_BY}{key}" for key in _OPTIONAL_RANKINGS),
        _against("kernel_only", f"{RANKED_BY}input_cosine"),
    ),
    "drop_ratio": FigureSpec(
        "Drop without the top landmarks over the drop without random ones",
        "Quote it with its interval: the random drop is close to its own noise.",
        {
            "kernel_only": "largest |k| (no step)",
            "kernel_times_coefficients": "largest |k| |A_l|",
        },
        paired={STEP_AGAINST_KERNEL: (VALUE, "kernel_only")},
    ),
    "decision_flips": FigureSpec(
        "Decisions that change without ten landmarks",
        "Share of audit samples whose class, by a linear probe on the audit's embedding, changes "
        "when the landmarks of largest term k_lt <A_l, w> in its logit leave the representer sum.",
        {
            "own_ranking": "top landmarks of the audit's ranking",
            "kernel_only": "largest |k| (no step)",
            f"{RANKED_BY}input_cosine": "largest cosine of inputs",
            "random": "random landmarks",
        },
        frozenset({f"{RANKED_BY}input_cosine"}),
        {STEP_AGAINST_KERNEL: (VALUE, "kernel_only")},
    ),
    "coverage": FigureSpec(
        "Landmarks needed to cover all classes (kappa)",
        "In descending order of |dA_l|. If it is no better than random orders, the size of a "
        "landmark's step says nothing about the classes.",
        {"random": "random order"},
    ),
    "nystrom_error": FigureSpec(
        "Share of the kernel that the landmarks miss (Nystrom error)",
        "Mean of k(x, x) - k_x K_mm^+ k_x over all samples and views, over the mean k(x, x).",
        {
            "usable_rank_share": "usable rank over landmarks",
            "audit_samples": "on the audit samples",
            "uniform_landmarks": "on the audit samples, as many uniform landmarks",
        },
    ),
    "spectral_entropy": FigureSpec(
        "Spectral entropy of the coefficients",
        "1 means that all directions are used alike, 0 that a single one is.",
        {START: "start", STEP: "step"},
    ),
    "stability": FigureSpec(
        "Top-10 landmarks that survive the next larger damping",
        "Mean overlap under the paper's influence score; low: the damping decides the ranking.",
        {"lowest": "lowest over the sweep"},
    ),
    "retraining_pairs": FigureSpec(
        "Group influence against training again: all pairs of group and sample (Spearman)",
        _RETRAINED,
        _PREDICTION_CONTROLS,
        _LONG_INPUTS,
    ),
    "retraining_within": FigureSpec(
        "Group influence against training again: within a group over samples (Spearman)",
        "Mean over groups; a prediction that knows the group alone is not defined. " + _RETRAINED,
        _PREDICTION_CONTROLS,
        _LONG_INPUTS,
    ),
    "retraining_centred": FigureSpec(
        "Group influence against training again: pairs without the mean of each group (Spearman)",
        "Which samples a group affects more than it affects others. " + _RETRAINED,
        _PREDICTION_CONTROLS,
        _LONG_INPUTS,
    ),
    "retraining_margin": FigureSpec(
        "Group influence above the best control, all pairs of group and sample",
        "Difference of the correlations, its interval paired over the same draws of groups and "
        "samples; an interval with 0 in it means that the control predicts as well.",
        {"within": "within a group over samples", "centred": "without the mean of each group"},
    ),
    "retraining_halves": FigureSpec(
        "Random halves against training again (linear datamodeling score)",
        "Spearman over random halves of the samples, mean over samples. " + _RETRAINED,
        _SUBSET_CONTROLS,
        _LONG_INPUTS,
    ),
}

_OVER_COMPONENTS = {START: "start", STEP: "after the step", LM_STEPS: "after further steps"}
ALL_SAMPLES, AUDIT_SAMPLES, UNIFORM_LANDMARKS = "all_samples", "audit_samples", "uniform_landmarks"
_SOLVED_ANEW = " of an audit with h components; its steps are solved anew. "
_SUBSETS = "Random subsets of the landmarks, each holding the one before."
# Added to a curve over h of which only the start is known.
STREAMED = "The objective streams the kernel, so only the start is shown."

CURVES: Mapping[str, CurveSpec] = {
    "tau_over_components": CurveSpec(
        "Rank agreement against the number of components",
        "components h",
        "Kendall tau-b",
        "Linear probe on the embedding" + _SOLVED_ANEW,
        _OVER_COMPONENTS,
    ),
    "gap_over_components": CurveSpec(
        "Accuracy gap against the number of components",
        "components h",
        "gap to the network's probe, percentage points",
        "Linear probe on the embedding" + _SOLVED_ANEW,
        _OVER_COMPONENTS,
    ),
    "ceiling_over_components": CurveSpec(
        "Held-out R² of the network's embedding from h components",
        "components h",
        "held-out R squared",
        "Ridge regression from the embedding" + _SOLVED_ANEW,
        _OVER_COMPONENTS,
    ),
    "nystrom_error_over_landmarks": CurveSpec(
        "Share of the kernel that is missed, against the number of landmarks",
        "landmarks m",
        "Nystrom error",
        _SUBSETS + " Where the curve is still falling at its end, more landmarks would help. "
        "Over all samples and views, over the audit samples, and for as many uniform landmarks "
        "over the same audit samples.",
        {
            ALL_SAMPLES: "all samples",
            AUDIT_SAMPLES: "audit samples",
            UNIFORM_LANDMARKS: "uniform landmarks",
        },
    ),
    "effective_dimension_over_landmarks": CurveSpec(
        "Effective dimension against the number of landmarks",
        "landmarks m",
        "effective dimension",
        "Sum of Lambda / (Lambda + mean k(x, x)). " + _SUBSETS + " It levels off once the "
        "landmarks span the data.",
        {ALL_SAMPLES: "all samples", UNIFORM_LANDMARKS: "uniform landmarks"},
    ),
    "spectral_entropy": CurveSpec(
        "Spectral entropy over the damping",
        "relative damping",
        "entropy of A, 1 = all directions alike",
        "Each point is a step of its own; the chosen damping is in the panel of the step.",
        {"coefficients": "start + step", START: "start"},
    ),
}
