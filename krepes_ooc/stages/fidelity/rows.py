"""What the fidelity figures are measured on, and the form in which a figure is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import NetworkError, StageFailed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.inputs import CLEAN
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features.featurizer import open_featurizer

MAX_INPUTS = 4096
Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Figure = dict[str, Any]


@dataclass(frozen=True)
class EvaluationRows:
    """Samples of one role, or the landmarks.

    Args:
        sample_id: position in the source [sample].
        label: class code, -1 for none [sample].
        kernel: [sample, landmark].
        start: embedding at the start [sample, component].
        step: embedding after the step [sample, component].
        coefficients_lm: embedding after further steps, if the newton stage took them.
        network: the network's embedding [sample, output].
        inputs: the network's input, flat [sample, input]; None if it is very long.
    """

    sample_id: Ids
    label: Ids
    kernel: Float
    start: Float
    step: Float
    coefficients_lm: Float | None
    network: Float
    inputs: Float | None

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Which samples have a label [sample]."""
        return self.label >= 0


def audited_rows(context: StageContext, role: str) -> EvaluationRows:
    """The samples of one role."""
    audited, influence = context.reader("audited"), context.reader("influence")
    # Samples lie sorted by role, so that their kernel rows are a part of the map: not copied.
    code = ROLES[role]
    here = slice(*np.searchsorted(audited.array("role"), [code, code + 1]))
    return _rows(
        context,
        audited.array("sample_id")[here],
        audited.array("label")[here],
        influence.whole("kernel")[here],
        audited.array("network_embedding")[here].astype(np.float64),
    )


def landmark_rows(context: StageContext) -> EvaluationRows:
    """The landmarks; their network embedding is computed here."""
    landmarks = context.reader("landmarks")
    sample_id = landmarks.array("sample_id")
    featurizer, size = open_featurizer(context), context.plan.sub_rows
    parts = [
        featurizer.rows(sample_id[start : start + size], CLEAN)[1]
        for start in range(0, len(sample_id), size)
    ]
    network = np.concatenate(parts).astype(np.float64)
    kernel = context.reader("kernel").whole("landmark_kernel")
    return _rows(context, sample_id, landmarks.array("label"), kernel, network)


def _rows(
    context: StageContext, ids: Ids, label: Ids, kernel: Float, network: Float
) -> EvaluationRows:
    newton, spectrum = context.reader("newton"), context.reader("spectrum")
    offset = spectrum.array("offset")
    further = newton.array("coefficients_lm") if newton.has("coefficients_lm") else None
    return EvaluationRows(
        ids,
        label,
        kernel,
        kernel @ spectrum.array("start") + offset,
        kernel @ newton.array("coefficients") + offset,
        None if further is None else kernel @ further + offset,
        network,
        flat_inputs(context, ids),
    )


def flat_inputs(context: StageContext, ids: Ids) -> Float | None:
    """The network's inputs of some samples [sample, input]; None if they are very long."""
    if int(np.prod(context.recipe.source.input_shape)) > MAX_INPUTS or not len(ids):
        return None
    size = context.plan.block_rows
    parts = [context.recipe.encode(ids[i : i + size], CLEAN)[0] for i in range(0, len(ids), size)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts]).astype(np.float64)


def figure(
    value: float,
    words: str,
    note: str,
    controls: Mapping[str, float | None],
    interval: tuple[float, float] | None = None,
) -> Figure:
    """A figure beside its controls."""
    return {
        "value": value,
        "controls": dict(controls),
        "order": list(controls),
        "words": words,
        "note": note,
        "interval": None if interval is None else list(interval),
    }


@contextlib.contextmanager
def skip_undefined() -> Iterator[None]:
    """Pass over what is not defined here; what cannot be read is no such thing, and is raised.

    Raises:
        StageFailed: the network cannot be loaded, or a disk fails.
    """
    try:
        yield
    except StageFailed as error:
        refuse_failing(error)


def refuse_failing(error: StageFailed) -> None:
    """Raise an error again that says nothing of the data: another run would give another result.

    Raises:
        StageFailed: the network cannot be loaded, or a disk fails.
    """
    if isinstance(error, NetworkError) or isinstance(error.__cause__, OSError):
        raise error


def figure_or_reason(measure: Callable[[], Figure], words: str = "") -> Figure:
    """A figure, or why it is not defined here: a reduced result, never a silent NaN."""
    try:
        return measure()
    except StageFailed as error:
        refuse_failing(error)
        nothing: Figure = {"controls": {}, "order": [], "interval": None}
        return {"value": None, "words": words, "note": str(error), **nothing}


def control_or_none(measure: Callable[[], float]) -> float | None:
    """A control, or None where it is not defined."""
    try:
        return measure()
    except StageFailed as error:
        refuse_failing(error)
        return None


def curve(
    words: str,
    axes: tuple[str, str],
    x: Any,
    lines: Mapping[str, Any],
    note: str,
    *,
    log_x: bool = True,
) -> dict[str, Any]:
    """A curve as JSON."""
    return {
        "words": words,
        "x_words": axes[0],
        "y_words": axes[1],
        "x": [float(value) for value in x],
        "lines": {name: [float(value) for value in values] for name, values in lines.items()},
        "order": list(lines),
        "log_x": log_x,
        "note": note,
    }


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and ``most``."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
