"""Python interface of a workspace: stores, embedding and influence as lazy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.core.landmark_rows import rows_of_each
from krepes_ooc.core.option_values import path_text, positions
from krepes_ooc.engine.lazy_arrays import lazy_rows, lazy_whole
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.runner.coordinates import with_coordinates
from krepes_ooc.stages.influence import scores
from krepes_ooc.stages.influence.ranking import ranking_score
from krepes_ooc.stages.moments.stored_moments import second_moment
from krepes_ooc.storage import workspace
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.stage_record import StageRecord

if TYPE_CHECKING:
    import xarray

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class UnknownStoreError(UsageError, KeyError):
    """A workspace has no such store."""

    __str__ = UsageError.__str__


class Workspace(Mapping[str, "xarray.Dataset"]):
    """One audit on disk: a mapping of its sealed stores.

    ``workspace["kernel"]`` is a store as a lazy, Dask-backed xarray.Dataset with coordinates:
    ``sample`` is the position in the source, so ``.sel(sample=17)`` is sample 17. ``embedding``,
    ``influence`` and ``spectrum`` are lazy too: nothing is computed before ``.compute()``.

    Args:
        root: the folder.

    Raises:
        WorkspaceError: the folder is no workspace, or one of another format.
    """

    def __init__(self, root: os.PathLike[str] | str) -> None:
        self._space = workspace.Workspace(Path(path_text(root, "workspace")))
        if not (self._space.private.is_dir() or self._space.stores()):
            raise WorkspaceError(
                "no workspace there",
                where=str(self.root),
                expected="a folder that `krepes run` made",
            )

    @property
    def root(self) -> Path:
        """The folder."""
        return self._space.root

    @property
    def recipe(self) -> str | None:
        """Name of the recipe that wrote it."""
        return self._space.recipe()

    def __fspath__(self) -> str:
        return str(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workspace, (self.root,)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in self._space.stores() if self._record(name).is_sealed()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, store: object) -> bool:
        return store in list(self)

    def __getitem__(self, store: str) -> xarray.Dataset:
        if store not in self._space.stores():
            raise UnknownStoreError(
                f"no store {store!r}",
                where=str(self.root),
                expected=", ".join(self) or "a sealed store: krepes status shows what is missing",
            )
        return with_coordinates(self._space[store], store, self._space)

    def __repr__(self) -> str:
        lines = [f"krepes_ooc.Workspace {self.recipe or '(no recipe)'}, {self.root}"]
        lines += [f"  {name:<16} {sizes}" for name, sizes, _ in self._listed()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(sizes)}</td><td>{escape(about)}</td></tr>"
            for name, sizes, about in self._listed()
        )
        head = f"<b>krepes_ooc.Workspace</b> {escape(str(self.recipe))}, {escape(str(self.root))}"
        return f"{head}<table><tr><th>store</th><th>dims</th><th>about</th></tr>{rows}</table>"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def _listed(self) -> Iterator[tuple[str, str, str]]:
        """Name, dims with their sizes, and meaning of every sealed store."""
        for name in self:
            reader = self._space.reader(name)
            sizes: dict[str, int] = {}
            for array in reader.names():
                info = reader.info(array)
                sizes |= dict(zip(info.dims, info.shape, strict=True))
            text = ", ".join(f"{dim} {size:,}" for dim, size in sizes.items())
            yield name, text, load_contract(name).about

    def _record(self, store: str) -> StageRecord:
        return self._space.record(load_contract(store).writer, store)

    def spectrum(self) -> xarray.Dataset:
        """Eigenvalues and eigenvectors of the landmark kernel, and the start of the step.

        Raises:
            WorkspaceError: the stage spectrum is not sealed.
        """
        return self["spectrum"]

    def embedding(self, order: Literal["stored", "source"] = "stored") -> xarray.DataArray:
        """The embedding f = K A + gamma [view, sample, component] of all samples.

        The coordinate ``sample`` is the position in the source, 8 bytes of memory a sample.

        Args:
            order: of the samples: as they are stored, block by block, or by position, which reads
                any block for any range.

        Raises:
            WorkspaceError: the kernel or the step is not sealed.
            UsageError: another order.
        """
        if order not in ("stored", "source"):
            raise UsageError(f"order {order!r}", expected="stored or source")
        views, plan = self._kernel()
        coefficients = self._solution("coefficients")
        offset = self._space.reader("spectrum").array("offset")

        def block(view: int, index: int) -> Float:
            kernel = self._rows(plan, view, index)
            return np.asarray(scores.embedding(kernel, coefficients, offset))

        column = ("component", coefficients.shape[1])
        values = lazy_rows(block, plan, views, column, "embedding")
        ids = self._space.reader("kernel").array("sample_id")
        values = values.assign_coords(sample=("sample", ids), view=np.arange(views))
        solution = self._space.reader("influence").attributes["solution"]
        values.attrs = {
            "long_name": "embedding f = K A + gamma",
            "solution": solution,
            "units": "1",
        }
        return values if order == "stored" else values.sortby("sample")

    def influence(
        self,
        samples: int | Sequence[int],
        measure: Literal["aligned", "is", "unique", "kernel"] = "aligned",
    ) -> xarray.DataArray:
        """Influence of every landmark on every view of some samples [view, sample, landmark].

        Args:
            samples: positions in the source, or one.
            measure: the score, as ``stages.influence.measure``.

        Raises:
            WorkspaceError: the kernel or the step is not sealed.
            UsageError: a position outside the source; raised when the values are computed.
        """
        views, plan = self._kernel()
        step = self._solution("step")
        wanted = np.asarray(positions(samples), dtype=np.int64)
        # Landmarks with several rows have one score, and are named by their first rows.
        ids = np.asarray(self._space.reader("landmarks").array("sample_id"))
        rows_each = rows_of_each(ids)
        n_landmarks = len(ids) // rows_each

        def compute() -> Float:
            rows = self._find(wanted, plan)
            between = self._space.reader("kernel").array("landmark_kernel")
            second = second_moment(self._space.reader("moments"))
            score = ranking_score(measure, step, between @ step, second, rows_each)
            out = np.empty((views, len(rows), n_landmarks))
            # One kernel row at a time: samples may lie in any blocks.
            for view in range(views):
                for place, row in enumerate(rows.tolist()):
                    index, inside = divmod(row, plan.block_rows)
                    kernel = self._rows(plan, view, index, slice(inside, inside + 1))
                    out[view, place] = score(kernel)[0]
            return out

        shape = (views, len(wanted), n_landmarks)
        values = lazy_whole(compute, shape, ("view", "sample", "landmark"), "influence")
        values = values.assign_coords(
            sample=("sample", wanted),
            view=np.arange(views),
            landmark=np.arange(n_landmarks),
            landmark_sample=("landmark", ids[:n_landmarks]),
        )
        values.attrs = {"long_name": "influence score", "measure": measure, "units": "1"}
        return values

    def export(self, store: str, target: Path | str, kind: str = "parquet") -> None:
        """Copy one small store to a new file.

        Args:
            store: its name.
            target: the new file.
            kind: ``parquet``, ``csv``, ``netcdf`` or ``zarr``.

        Raises:
            UsageError: no such store or format, or the target exists.
            WorkspaceError: the store is not sealed.
        """
        from krepes_ooc.storage.export import export_store

        export_store(self._space, store, Path(target), kind)

    def _kernel(self) -> tuple[int, BlockPlan]:
        self._refuse_unsealed("kernel")
        reader = self._space.reader("kernel")
        plan = BlockPlan.from_attributes(reader.attributes["block_plan"])
        return reader.info("values").shape[0], plan

    def _solution(self, name: str) -> Float:
        """Coefficients or step of the solution that explains."""
        self._refuse_unsealed("influence")
        return np.asarray(self._space.reader("influence").array(name))

    def _refuse_unsealed(self, store: str) -> None:
        self._space[store]  # raises with the name of what is missing

    def _rows(self, plan: BlockPlan, view: int, index: int, rows: slice = slice(None)) -> Float:
        stored_rows = self._space.reader("kernel").block("values", plan.block(index), view)[rows]
        return to_float32(stored_rows).astype(np.float64)

    def _find(self, samples: Ids, plan: BlockPlan) -> Ids:
        """Store rows of samples by their ids, in one pass over the stored ids.

        Raises:
            UsageError: a sample that the store does not have.
        """
        rows = np.full(len(samples), -1, dtype=np.int64)
        for block in plan.blocks():
            ids = np.asarray(self._space.reader("kernel").block("sample_id", block))
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
