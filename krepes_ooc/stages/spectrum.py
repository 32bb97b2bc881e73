"""Stage spectrum: eigenpairs of the landmark kernel and the start of the Newton step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from krepes_ooc.algebra import nystrom
from krepes_ooc.algebra.curvature import Moments
from krepes_ooc.engine.budget import Need
from krepes_ooc.settings import setting
from krepes_ooc.stages.base import Cost, Stage, StageContext, write_whole
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.contracts import StoreSpec, load_contract

AUTO_COMPONENTS = 64


@dataclass(frozen=True)
class SpectrumSettings:
    """Recipe key ``stages.spectrum``."""

    components: int | Literal["auto"] = setting(
        "auto",
        about="components h; auto: the network's outputs, at most 64 and the usable rank",
        minimum=1,
    )


def read_moments(context: StageContext) -> Moments:
    """The sealed moments."""
    reader = context.reader("moments")
    return Moments(
        reader.array("mean"), reader.array("second"), int(reader.attributes["n_samples"])
    )


def run(context: StageContext) -> None:
    """Decompose the landmark kernel, check the rank, seal."""
    context.progress.begin("spectrum", 1, 0)
    kernel, moments = context.reader("kernel"), read_moments(context)
    values, vectors = nystrom.eigenpairs(kernel.array("landmark_kernel"))
    second = moments.mean_uncentred()
    rms = float(np.sqrt(np.trace(second) / len(second)))
    dtype = kernel.info("values").dtype.name
    rank = nystrom.usable_rank(values, rms, len(values), dtype)
    components = _components(context, rank)
    nystrom.check_rank(components, rank)
    start = nystrom.start(values, vectors, components)
    arrays = {
        "eigenvalues": values,
        "eigenvectors": np.ascontiguousarray(vectors[:, :components]),
        "start": start,
        "offset": nystrom.offset(start, moments.mean.mean(axis=0)),
    }
    own = float(kernel.attributes["self_kernel_mean"])
    attributes = {
        "usable_rank": rank,
        "nystrom_error": nystrom.nystrom_error(own, second, values, vectors, rank),
        "effective_dimension": nystrom.effective_dimension(values, float(values.mean())),
    }
    spec = StoreSpec(load_contract("spectrum"), {"landmark": len(values), "component": components})
    write_whole(context, spec, arrays, attributes)


def _components(context: StageContext, rank: int) -> int:
    asked = context.settings.components
    if asked != "auto":
        return int(asked)
    features = context.reader("features").attributes["network"]
    outputs = len(features["outputs"]) if "outputs" in features else AUTO_COMPONENTS
    return max(1, min(AUTO_COMPONENTS, outputs, rank))


def predict(shape: AuditShape, settings: SpectrumSettings) -> Cost:
    """A dense eigendecomposition of the landmark kernel."""
    m, h = shape.n_landmarks, shape.n_components
    need = Need(8 * m * m * (5 + shape.n_views**2))
    return Cost(1, 8 * m * (2 * h + 1), need, 9.0 * m**3)


STAGE = Stage(
    name="spectrum",
    version=1,
    reads=("features", "kernel", "moments"),
    store="spectrum",
    settings=SpectrumSettings,
    run=run,
    predict=predict,
    about="eigenpairs of the landmark kernel and the start of the step",
)
