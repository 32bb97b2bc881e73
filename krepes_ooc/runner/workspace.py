"""Python interface of a workspace: stores, embedding and influence as lazy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.engine.lazy_arrays import lazy_rows, lazy_whole
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.influence import scores
from krepes_ooc.stages.influence.ranking import ranking_score
from krepes_ooc.stages.moments.stored_moments import second_moment
from krepes_ooc.storage import workspace

if TYPE_CHECKING:
    import xarray

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class Workspace(workspace.Workspace):
    """The folder of one audit; see ``krepes_ooc.storage.workspace.Workspace``.

    ``workspace["kernel"]`` is a store as a lazy, Dask-backed xarray.Dataset; ``embedding``,
    ``influence`` and ``spectrum`` are lazy too: nothing is computed before ``.compute()``.
    """

    def spectrum(self) -> xarray.Dataset:
        """Eigenvalues and eigenvectors of the landmark kernel, and the start of the step.

        Raises:
            WorkspaceError: the stage spectrum is not sealed.
        """
        return self["spectrum"]

    def embedding(self) -> xarray.DataArray:
        """The embedding f = K A + gamma [view, sample, component] of all stored rows.

        Raises:
            WorkspaceError: the kernel or the step is not sealed.
        """
        views, plan = self._kernel()
        coefficients = self._solution("coefficients")
        offset = self.reader("spectrum").array("offset")

        def block(view: int, index: int) -> Float:
            kernel = self._rows(plan, view, index)
            return np.asarray(scores.embedding(kernel, coefficients, offset))

        column = ("component", coefficients.shape[1])
        return lazy_rows(block, plan, views, column, "embedding")

    def influence(
        self,
        samples: Sequence[int],
        measure: Literal["aligned", "is", "unique", "kernel"] = "aligned",
    ) -> xarray.DataArray:
        """Influence of every landmark on every view of some samples [view, sample, landmark].

        Args:
            samples: positions in the source.
            measure: the score, as ``stages.influence.measure``.

        Raises:
            WorkspaceError: the kernel or the step is not sealed.
            UsageError: a position outside the source; raised when the values are computed.
        """
        views, plan = self._kernel()
        step = self._solution("step")
        wanted = np.asarray(samples, dtype=np.int64)

        def compute() -> Float:
            rows = self._find(wanted, plan)
            between = self.reader("kernel").array("landmark_kernel")
            second = second_moment(self.reader("moments"))
            score = ranking_score(measure, step, between @ step, second)
            out = np.empty((views, len(rows), len(step)))
            # One kernel row at a time: samples may lie in any blocks.
            for view in range(views):
                for place, row in enumerate(rows.tolist()):
                    index, inside = divmod(row, plan.block_rows)
                    kernel = self._rows(plan, view, index, slice(inside, inside + 1))
                    out[view, place] = score(kernel)[0]
            return out

        shape = (views, len(wanted), len(step))
        values = lazy_whole(compute, shape, ("view", "sample", "landmark"), "influence")
        return values.assign_coords(sample_id=("sample", wanted))

    def export(self, store: str, target: Path | str, kind: str = "parquet") -> None:
        """Copy one small store to a new file: ``parquet``, ``csv``, ``netcdf`` or ``zarr``.

        Raises:
            UsageError: no such store or format, or the target exists.
            WorkspaceError: the store is not sealed.
        """
        from krepes_ooc.storage.export import export_store

        export_store(self, store, Path(target), kind)

    def _kernel(self) -> tuple[int, BlockPlan]:
        self._refuse_unsealed("kernel")
        reader = self.reader("kernel")
        plan = BlockPlan.from_attributes(reader.attributes["block_plan"])
        return reader.info("values").shape[0], plan

    def _solution(self, name: str) -> Float:
        """Coefficients or step of the solution that explains."""
        self._refuse_unsealed("influence")
        return np.asarray(self.reader("influence").array(name))

    def _refuse_unsealed(self, store: str) -> None:
        self[store]  # raises with the name of what is missing

    def _rows(self, plan: BlockPlan, view: int, index: int, rows: slice = slice(None)) -> Float:
        stored_rows = self.reader("kernel").block("values", plan.block(index), view)[rows]
        return to_float32(stored_rows).astype(np.float64)

    def _find(self, samples: Ids, plan: BlockPlan) -> Ids:
        """Store rows of samples by their ids, in one pass over the stored ids.

        Raises:
            UsageError: a sample that the store does not have.
        """
        rows = np.full(len(samples), -1, dtype=np.int64)
        for block in plan.blocks():
            ids = np.asarray(self.reader("kernel").block("sample_id", block))
            # Binary search in the sorted ids of the block; equal ids are in it.
            order = np.argsort(ids)
            place = np.minimum(np.searchsorted(ids[order], samples), len(ids) - 1)
            in_block = ids[order][place] == samples
            rows[in_block] = block.start + order[place[in_block]]
        if len(missing := samples[rows < 0]):
            raise UsageError(
                f"no sample {missing[0]}",
                where=str(self.root),
                expected=f"0 to {plan.n_samples - 1}",
            )
        return rows
