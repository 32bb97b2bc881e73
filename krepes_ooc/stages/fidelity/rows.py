"""Samples that the fidelity figures are measured on, and what becomes of an undefined figure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figures import Figure, undefined_figure
from krepes_ooc.core.landmark_rows import rows_of_each
from krepes_ooc.errors import NetworkError, StageFailed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features.featurizer import open_featurizer
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

# Longer inputs would make the controls slower than the audit
MAX_INPUTS = 4096
# Bounds the memory of encoding, whatever the number of samples
ENCODED_ROWS = 1024
Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class RowInputs(Protocol):
    """The declared inputs of a stage that reads evaluation rows."""

    @property
    def features(self) -> StoreReader:
        """Store features."""
        ...

    @property
    def landmarks(self) -> StoreReader:
        """Store landmarks."""
        ...

    @property
    def audited(self) -> StoreReader:
        """Store audited."""
        ...

    @property
    def kernel(self) -> StoreReader:
        """Store kernel."""
        ...

    @property
    def spectrum(self) -> StoreReader:
        """Store spectrum."""
        ...

    @property
    def newton(self) -> StoreReader:
        """Store newton."""
        ...

    @property
    def influence(self) -> StoreReader:
        """Store influence."""
        ...

    @property
    def recipe(self) -> RecipeInputs:
        """Source and network."""
        ...


@dataclass(frozen=True)
class EvaluationRows:
    """Samples of one role, or the landmarks.

    Args:
        sample_id: position in the source [sample].
        label: class code, -1 for none [sample].
        kernel: [sample, landmark].
        embedding_start: embedding at the start [sample, component].
        embedding: the audit's embedding, of the solution [sample, component].
        embedding_step: embedding after one Newton step [sample, component].
        embedding_lm: embedding after further steps, if the newton stage took them.
        network: the network's embedding [sample, output].
        inputs: the network's input, flat [sample, input]; None if it is very long.
    """

    sample_id: Ids
    label: Ids
    kernel: Float
    embedding_start: Float
    embedding: Float
    embedding_step: Float
    embedding_lm: Float | None
    network: Float
    inputs: Float | None

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Mask of the samples with a label [sample]."""
        return self.label >= 0

    def first(self, count: int) -> EvaluationRows:
        """The first samples; all of them are not copied.

        Args:
            count: samples.
        """
        return self.take(np.arange(len(self.sample_id)) < count)

    def take(self, chosen: npt.NDArray[np.bool_]) -> EvaluationRows:
        """Some of the samples; all of them are not copied.

        Args:
            chosen: [sample].
        """
        taken: dict[str, Any] = {
            name: value if value is None else take_rows(value, chosen)
            for name, value in vars(self).items()
        }
        return EvaluationRows(**taken)


def take_rows(values: npt.NDArray[Any], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Some of the rows; all of them are not copied."""
    return values if chosen.all() else values[chosen]


def audited_rows(inputs: RowInputs, role: str) -> EvaluationRows:
    """The audited samples of one role."""
    audited = inputs.audited
    # Samples lie sorted by role, so that their kernel rows are a part of the map: not copied.
    code = ROLES[role]
    rows = slice(*np.searchsorted(audited.array("role"), [code, code + 1]))
    return _evaluation_rows(
        inputs,
        audited.array("sample_id")[rows],
        audited.array("label")[rows],
        inputs.influence.whole("kernel")[rows],
        audited.array("network_embedding")[rows].astype(np.float64),
    )


def landmark_rows(inputs: RowInputs, context: StageContext) -> EvaluationRows:
    """The rows of the landmarks; the network's embedding of the clean samples is computed here."""
    sample_id = inputs.landmarks.array("sample_id")
    n_views = rows_of_each(sample_id)
    clean = sample_id[: len(sample_id) // n_views]
    network = landmark_embedding(inputs.features, inputs.recipe, clean, context)
    network = np.tile(network, (n_views, 1))
    label = inputs.landmarks.array("label")
    kernel = inputs.kernel.whole("landmark_kernel")
    return _evaluation_rows(inputs, sample_id, label, kernel, network)


def landmark_embedding(
    features: StoreReader, recipe: RecipeInputs, sample_id: Ids, context: StageContext
) -> Float:
    """The network's embedding of clean samples [sample, output], in short row ranges.

    Args:
        features: the store ``features``.
        recipe: source and network.
        sample_id: position in the source [sample].
        context: the running stage.
    """
    featurizer = open_featurizer(features, recipe, context)
    size = context.plan.sub_rows
    starts = range(0, len(sample_id), size)
    parts = [featurizer.embedding(sample_id[i : i + size]) for i in starts]
    return np.concatenate(parts).astype(np.float64)


def _evaluation_rows(
    inputs: RowInputs, ids: Ids, label: Ids, kernel: Float, network: Float
) -> EvaluationRows:
    newton = inputs.newton
    offset = inputs.spectrum.array("offset")
    # f = K A + gamma at the start, of the solution, after one step and after further steps
    embedding_lm = None
    if newton.has("coefficients_lm"):
        embedding_lm = kernel @ newton.array("coefficients_lm") + offset
    return EvaluationRows(
        ids,
        label,
        kernel,
        kernel @ inputs.spectrum.array("start") + offset,
        kernel @ inputs.influence.array("coefficients") + offset,
        kernel @ newton.array("coefficients") + offset,
        embedding_lm,
        network,
        flat_inputs(inputs.recipe, ids),
    )


def flat_inputs(recipe: RecipeInputs, ids: Ids) -> Float | None:
    """The network's inputs of some samples [sample, input]; None if they are very long."""
    if int(np.prod(recipe.source.input_shape)) > MAX_INPUTS or not len(ids):
        return None
    starts = range(0, len(ids), ENCODED_ROWS)
    parts = [recipe.encode(ids[i : i + ENCODED_ROWS], CLEAN)[0] for i in starts]
    return np.concatenate([part.reshape(len(part), -1) for part in parts]).astype(np.float64)


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


def figure_or_reason(key: str, measure: Callable[[], Figure]) -> Figure:
    """A figure, or why it is not defined here: a reduced result, never a silent NaN.

    Args:
        key: of the figure.
        measure: measures it.
    """
    try:
        return measure()
    except StageFailed as error:
        refuse_failing(error)
        return undefined_figure(key, str(error))


def control_or_none(measure: Callable[[], float]) -> float | None:
    """A control, or None where it is not defined."""
    try:
        return measure()
    except StageFailed as error:
        refuse_failing(error)
        return None


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and ``most``."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
