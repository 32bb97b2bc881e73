"""Trainings without a group: weights by the trainer, then the embedding of the samples.

A training is one unit of work with one file, whose name is the digest of all that the training
depends on: a prediction that is made in another way trains nothing again. torch's generator is that
of the process, so trainings run one after another in it; shards of the stage run beside each other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import canonical_digest
from krepes_ooc.core.files import remove_leftover
from krepes_ooc.core.partial_files import read_arrays, write_arrays
from krepes_ooc.core.settings import digest_mapping
from krepes_ooc.errors import NetworkError
from krepes_ooc.network import retrain
from krepes_ooc.stages.retraining.training_sets import RetrainingProblem, Unit, array_sha256
from krepes_ooc.storage.journal import Unit as JournalUnit
from krepes_ooc.views.spec import CLEAN
from krepes_ooc.views.subset import SourceSubset

FOLDER = "trainings"
VERSION = 1  # raised when a training gives other numbers
Float = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trainings:
    """The trainings of one stage and their partial results.

    Args:
        problem: groups and samples.
    """

    problem: RetrainingProblem

    def known(self, unit: Unit) -> dict[str, Any] | None:
        """The result of a training; None if it is missing or damaged."""
        path = self._path(unit)
        return read_arrays(path, path.stem)

    def note(self, unit: Unit) -> None:
        """Write the journal line of a training whose result is on disk."""
        record = self.problem.context.record
        numerics = self.problem.context.numerics
        record.journal.append(JournalUnit(f"training {unit.index}", {}, numerics=numerics))

    def train(self, unit: Unit) -> None:
        """Train one network, embed the samples, keep the result.

        Raises:
            NetworkError: the training failed, or its weights do not fit; names group and seed.
        """
        started = time.monotonic()
        positions = self.problem.left(unit.group)
        with _named(unit):
            weights = self._weights(unit, positions)
            result = self._embed(weights, unit, positions)
            if unit.index == 0:
                result["repeatable"] = np.array(self._is_repeatable(weights, unit, positions))
        result["seconds"] = np.array(time.monotonic() - started)
        path = self._path(unit)
        write_arrays(path, result, self.problem.context.record.temp, path.stem)
        remove_leftover(self._state_path(unit))
        self.note(unit)
        self.problem.context.progress.advance(1)

    def _weights(self, unit: Unit, positions: Int64) -> Any:
        """Weights of the demo trainer, or of the user's function."""
        context = self.problem.context
        recipe = self.problem.inputs.recipe
        subset = self._subset(unit, positions)
        if function := context.settings.train:
            return retrain.call_trainer(function, recipe.base, subset, unit.seed)

        def batch_views(index: Int64, epoch: int) -> tuple[Any, ...]:
            context.stop.check()
            return subset.views(index, epoch)

        return self._demo().train(
            *(unit.seed, len(positions), context.plan.n_samples, batch_views),
            self._state_path(unit),
        )

    def _demo(self) -> retrain.DemoTraining:
        recipe = self.problem.inputs.recipe
        settings = self.problem.pretrain_settings
        return retrain.DemoTraining(recipe.network_spec, settings, recipe.base)

    def _subset(self, unit: Unit, positions: Int64) -> SourceSubset:
        recipe = self.problem.inputs.recipe
        return SourceSubset(recipe.source, positions, recipe.views.with_seed(unit.seed))

    def _embed(self, weights: Any, unit: Unit, positions: Int64) -> dict[str, npt.NDArray[Any]]:
        """Outputs for the samples and the anchors, and the mean over view rows that are left."""
        problem = self.problem
        recipe = self.problem.inputs.recipe

        def example() -> Any:
            return recipe.encode(problem.sample_id[:1], CLEAN)[0]

        where = f"weights of {self.trainer}"
        network = retrain.network_of(recipe.network_spec, recipe.base, weights, where, example)

        def outputs(rows: Iterator[Any]) -> Iterator[npt.NDArray[np.float32]]:
            return (retrain.outputs_of(network, row, problem.outputs) for row in rows)

        centre = problem.centre_sample(positions)
        total = np.zeros(len(problem.outputs))
        for view in range(recipe.view_spec.count):
            for rows in outputs(problem.view_rows(centre, view)):
                total += rows.sum(axis=0, dtype=np.float64)
        embedding = np.concatenate(list(outputs(problem.clean_rows(problem.sample_id))))
        mean = total / (len(centre) * recipe.view_spec.count)
        return {"embedding": embedding, "mean": mean, "group": np.array(unit.group)}

    def _is_repeatable(self, weights: Any, unit: Unit, positions: Int64) -> bool:
        """Whether the same training gives the same weights: asked once."""
        first = retrain.state_sha256(weights)
        recipe = self.problem.inputs.recipe
        if self.problem.context.settings.train:
            return retrain.state_sha256(self._weights(unit, positions)) == first
        # The demo trainer has done it before: these weights are audited.
        return retrain.checkpoint_sha256(recipe.pretrained) == first

    @property
    def trainer(self) -> str:
        """The trainer in words."""
        return self.problem.context.settings.train or "the demo trainer"

    def _path(self, unit: Unit) -> Path:
        problem = self.problem
        context = self.problem.context
        # The samples that are left and embedded, not the names of groups: those may change.
        depends_on = {
            **self._fixed,
            "left": problem.left_sha256(unit.group),
            "seed": unit.seed,
            "checked": unit.index == 0,
        }
        return context.workspace.private / FOLDER / f"{canonical_digest(depends_on)}.npz"

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        """Dependencies of all trainings of the stage."""
        problem = self.problem
        context = self.problem.context
        fingerprint = context.fingerprint
        settings = context.settings
        inputs = {name: fingerprint["inputs"][name] for name in problem.inputs.parts()}
        code = {key: fingerprint["settings"].get(f"{key}: code") for key in settings.code}
        demo = {} if code else digest_mapping(problem.pretrain_settings)
        return {
            "version": VERSION,
            "inputs": inputs,
            "code": code,
            "demo": demo,
            "numerics": (context.record.begun() or {}).get("numerics", ""),
            "embedded": array_sha256(problem.sample_id),
            "forward_batch": context.plan.forward_batch,
            "outputs": problem.outputs.tolist(),
        }

    def _state_path(self, unit: Unit) -> Path:
        return self._path(unit).with_suffix(".pt")


def centred_embedding(known: dict[str, Any]) -> Float:
    """Embeddings of samples and anchors less the mean over view rows [sample, output]."""
    return np.asarray(known["embedding"].astype(np.float64) - known["mean"])


@contextlib.contextmanager
def _named(unit: Unit) -> Iterator[None]:
    """Add group and seed to the error of a training.

    Raises:
        NetworkError: as inside.
    """
    try:
        yield
    except NetworkError as error:
        raise NetworkError(
            error.what,
            where=f"{error.where} ({unit.text})",
            expected=error.expected,
            advice=error.advice,
        ) from error
