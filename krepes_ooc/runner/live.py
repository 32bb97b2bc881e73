"""Audits of objects that a script or notebook holds: a network and a data set, no recipe file."""

from __future__ import annotations

import hashlib
import io
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.core import resources
from krepes_ooc.core.files import disk_errors, write_atomic
from krepes_ooc.core.live_objects import LIVE, LiveObjects
from krepes_ooc.engine.run_control import Progress
from krepes_ooc.errors import UsageError
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.explanation.explain import explain
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.run_history import Summary
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.views.spec import CLEAN

_FOLDER = "live"
_EXPECTED_DATA = (
    "a map-style data set (len and [i]), an array [sample, ...], a pair (array, labels), or a data "
    "frame with encoding"
)


class LiveAudit:
    """Audit of a network and a data set of the running script; public as ``krepes_ooc.Audit``.

    Run again with the same objects, it goes on where it stopped. The workspace can be read by every
    command; only the script can compute in it. Views, objective and all other settings are keys of
    a recipe.

    Args:
        model: a ``torch.nn.Module``; it is copied and never changed, its weights are saved.
        dataset: a map-style data set; an array [sample, ...]; a pair (array, labels [sample]); or,
            with ``encoding``, a data frame.
        views: number of views, keys of ``views``, or ``view(x, sample_id, view_id, seed)``.
        objective: the audited objective, ``stages.newton.objective``.
        workspace: folder of the audit.
        encoding: for a data frame: keys of a table, such as ``label`` and ``categorical``.
        source: further keys of ``source``, such as ``mean``, ``std`` and ``limit``.
        network: further keys of ``network``, such as ``module``, ``output`` and ``objective``.
        stages: settings of single stages by name.
        seed: key of every random draw.
        name: of the recipe; one workspace belongs to one name.

    Raises:
        UsageError: an object of another kind.
    """

    def __init__(
        self,
        model: Any,
        dataset: Any,
        *,
        workspace: Path | str,
        views: int | Mapping[str, Any] | Callable[..., Any] | None = None,
        objective: str | None = None,
        encoding: Mapping[str, Any] | None = None,
        source: Mapping[str, Any] | None = None,
        network: Mapping[str, Any] | None = None,
        stages: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
        name: str = LIVE,
    ) -> None:
        self.model = model
        self.dataset = _map_style(dataset, encoding)
        self.workspace = Workspace(workspace)
        self._encoding = encoding
        self._views, self._view = _view_keys(views)
        keys = {key: dict(value) for key, value in (stages or {}).items()}
        if objective is not None:
            keys.setdefault("newton", {})["objective"] = objective
        self._values: dict[str, Any] = {
            "recipe": name,
            "seed": seed,
            "source": dict(source or {}),
            "network": dict(network or {}),
            "views": self._views,
            "stages": keys,
        }

    @cached_property
    def recipe(self) -> Recipe:
        """The audit as a recipe; weights and data frame are saved in the workspace first.

        Raises:
            UsageError: a key or a value is not allowed.
            WorkspaceError: the workspace is of another recipe.
        """
        from krepes_ooc.network.live_module import name_factory, save_live

        root = self.workspace.root
        preflight.refuse_no_folder(root)
        preflight.refuse_other_recipe(self.workspace, self._values["recipe"])
        folder = self.workspace.private / _FOLDER
        with disk_errors(root):
            values = {**self._values, "source": self._source(folder)}
            # Weights lie in the workspace, whose copy of them has a digest.
            weights = save_live(self.model, folder)
        network = {"weights": str(weights), **values["network"]}
        values["network"] = {"factory": LIVE, **network}
        recipe = self._parse(values)
        if "factory" in network:
            return recipe
        # Named by import path, if what is built by it gives the same bits.
        example = Audit(recipe, self.workspace).inputs.encode(np.zeros(1, dtype=np.int64), CLEAN)[0]
        factory, arguments = name_factory(self.model, example)
        if factory == LIVE:
            return recipe
        values["network"] = {"factory": factory, "arguments": arguments, **network}
        return self._parse(values)

    def run(
        self,
        options: Options | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> Summary:
        """Run to the sealed end, or on from where it stopped.

        Args:
            options: of the run.
            progress: receives stages, units and notes.
            **changes: single options by name, such as ``workers=4`` and ``until="features"``.

        Raises:
            UsageError: an option is not allowed, or workers of a cluster are asked for.
            KrepesError: as ``krepes_ooc.run``.
        """
        options = replace(options or Options(), **changes)
        if options.cluster is not None:
            raise UsageError(
                "workers of a cluster cannot reach the objects of a script",
                where="cluster",
                expected="threads of this process",
                advice="name network and data in a recipe",
            )
        return run(self.recipe, self.workspace.root, options, progress)

    def plan(self, options: Options | None = None, **changes: Any) -> dict[str, Any]:
        """Expected cost of every stage, as ``krepes_ooc.plan`` gives it."""
        options = replace(options or Options(), **changes)
        return make_plan(self.recipe, self.workspace.root, options)

    def explain(
        self, *, sample: int | None = None, file: Path | str | None = None, top: int | None = None
    ) -> list[Explained]:
        """Explain a sample of the data set, or new ones of a file, as ``krepes_ooc.explain``."""
        root = self.workspace.root
        return explain(root, sample=sample, file=file, top=top, recipe=self.recipe)

    def __repr__(self) -> str:
        kinds = f"{type(self.model).__name__}, {type(self.dataset).__name__}"
        return f"Audit({kinds}, workspace={str(self.workspace.root)!r})"

    def _parse(self, values: dict[str, Any]) -> Recipe:
        # Files that the keys name lie where the script runs.
        recipe = Recipe.parse(resources.dump_yaml(values), Path.cwd(), "krepes_ooc.Audit")
        model = self.model if recipe.network.factory == LIVE else None
        dataset = self.dataset if recipe.source.factory == LIVE else None
        return replace(recipe, live=LiveObjects(model, dataset, self._view))

    def _source(self, folder: Path) -> dict[str, Any]:
        """Keys of the source: a live data set, or a table that is saved beside the weights."""
        given = self._values["source"]
        if self._encoding is None:
            return {"kind": "factory", "factory": LIVE, **given}
        path = _save_table(self.dataset, folder, self.workspace.private / "temp")
        return {"kind": "table", "path": str(path), **given, **self._encoding}


class ArrayDataset:
    """Samples of an array, with their labels in ``targets``, as a map-style data set.

    Args:
        samples: [sample, ...].
        labels: [sample], or None.
    """

    def __init__(self, samples: Any, labels: Any = None) -> None:
        self.samples = np.asarray(samples)
        if labels is not None:
            self.targets = np.asarray(labels)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]

    def content_sha256(self) -> str:
        """sha256 of all samples: of an array in memory each value counts."""
        digest = hashlib.sha256(f"{self.samples.dtype} {self.samples.shape} ".encode())
        # In parts: the array may fill half of the memory.
        for sample in self.samples:
            digest.update(sample.tobytes())
        return digest.hexdigest()


def _map_style(dataset: Any, encoding: Mapping[str, Any] | None) -> Any:
    """The samples as a map-style data set, or a data frame as it is.

    Raises:
        UsageError: an object of another kind.
    """
    if _is_frame(dataset):
        if encoding is None:
            raise UsageError(
                f"a {type(dataset).__name__} without encoding",
                where="dataset",
                expected='encoding={"label": "column of labels", ...}, the keys of a table',
                advice="encoding={} takes numbers as numbers and texts as categories",
            )
        return dataset
    if encoding is not None:
        raise UsageError(
            f"encoding means nothing for a {type(dataset).__name__}",
            where="encoding",
            expected="a data frame",
        )
    if _is_array(dataset):
        return ArrayDataset(dataset)
    is_pair = isinstance(dataset, tuple) and len(dataset) == 2 and _is_array(dataset[0])
    if is_pair and len(dataset[0]) == len(dataset[1]):
        return ArrayDataset(*dataset)
    kind = type(dataset)
    is_loader = hasattr(dataset, "dataset") and hasattr(dataset, "batch_size")
    map_style = hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
    if is_loader or not map_style or isinstance(dataset, str | Mapping | tuple):
        raise UsageError(
            f"a {kind.__name__} is no map-style data set",
            where="dataset",
            expected=_EXPECTED_DATA,
            advice="pass its dataset" if is_loader else "",
        )
    return dataset


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and bool(getattr(value, "shape", ()))


def _is_frame(value: Any) -> bool:
    """Whether it is a data frame (pandas, polars) or a table of Arrow."""
    return hasattr(value, "columns") and any(
        hasattr(value, name) for name in ("to_parquet", "write_parquet", "to_pandas")
    )


def _save_table(frame: Any, folder: Path, temp: Path) -> Path:
    """Write a data frame as parquet, named by its content; the index is no column.

    Raises:
        UsageError: a column that Arrow cannot hold.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if isinstance(frame, pa.Table):
            table = frame
        elif hasattr(frame, "to_arrow"):
            table = frame.to_arrow()
        else:
            table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise UsageError(
            f"the data frame cannot be saved: {str(error).splitlines()[0]}",
            where="dataset",
            expected="columns of numbers or of texts",
        ) from error
    buffer = io.BytesIO()
    # Without what a library notes on itself: equal columns are equal bytes.
    parquet.write_table(table.replace_schema_metadata(None), buffer)
    content = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    temp.mkdir(parents=True, exist_ok=True)
    path = folder / f"table-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    if not path.is_file():
        write_atomic(path, content, temp, sync=True)
    return path


def _view_keys(views: Any) -> tuple[dict[str, Any], Callable[..., Any] | None]:
    """Keys of ``views``, and the callable where it cannot be named by an import path.

    Raises:
        UsageError: neither a number, nor keys, nor a callable.
    """
    if views is None:
        return {}, None
    if isinstance(views, int) and not isinstance(views, bool):
        return {"count": views}, None
    if callable(views):
        views = {"function": views}
    if not isinstance(views, Mapping):
        raise UsageError(
            f"views of type {type(views).__name__}",
            where="views",
            expected="a number, keys of views, or view(x, sample_id, view_id, seed)",
        )
    keys = dict(views)
    function = keys.get("function")
    if not callable(function):
        return keys, None
    keys["function"] = _import_path(function)
    return keys, function if keys["function"] == LIVE else None


def _import_path(function: Any) -> str:
    """``module:callable`` of a callable that another process can import; else ``live``."""
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__qualname__", "")
    target: Any = sys.modules.get(module)
    for part in name.split(".") if isinstance(function, types.FunctionType) else ():
        target = getattr(target, part, None)
    is_importable = target is function and module != "__main__"
    return f"{module}:{name}" if is_importable else LIVE
