"""Stage randomised: would a network with random weights give the same explanations?

Networks with the same architecture and permuted weights are audited on the same landmarks and
samples, each with its own kernel, step and ranking; the trained network is audited again on the
same rows. No store grows with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import setting
from krepes_ooc.errors import NetworkError, StageFailed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.writing import read_partial, write_partial, write_whole
from krepes_ooc.stages.features.featurizer import batch_term, input_terms
from krepes_ooc.stages.randomised.control_figures import (
    FIGURES,
    AuditRule,
    network_figures,
    read_audit_rule,
)
from krepes_ooc.stages.randomised.drawn_network import (
    TRAINED,
    DrawnNetwork,
    KernelRows,
    RandomisedInputs,
    keeps_view_rows,
)
from krepes_ooc.stages.randomised.embedding_health import EmbeddingHealth, embedding_health
from krepes_ooc.stages.randomised.fidelity_controls import CONTROLLED
from krepes_ooc.stages.randomised.ranking_overlap import (
    MIN_DRAWS,
    RankingComparison,
    compare_rankings,
    correlation_table,
    draws_reach,
    overlap_table,
    prediction_interval,
)
from krepes_ooc.storage.contracts import StoreSpec, load_contract

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class RandomisedSettings:
    """Recipe key ``stages.randomised``."""

    draws: int = setting(
        10, about="networks with permuted weights; each is audited", minimum=MIN_DRAWS, maximum=50
    )
    fit: int = setting(2000, about="fit samples that are used, at most", minimum=2)
    top: int = setting(10, about="landmarks of a sample that are compared", minimum=1)


def run(inputs: RandomisedInputs, context: StageContext) -> None:
    """Audit the network and every draw, compare their rankings, seal."""
    settings: RandomisedSettings = context.settings
    rule = read_audit_rule(inputs, settings.top, settings.fit, context.plan.block_rows)
    networks = range(settings.draws + 1)
    paths = [context.record.partials / f"network-{draw:03d}.npz" for draw in networks]
    pending = [draw for draw in networks if read_partial(context, paths[draw]) is None]
    context.progress.begin("randomised", len(networks), len(networks) - len(pending))
    for draw in pending:
        context.stop.check()
        arrays = _audit_network(DrawnNetwork(inputs, context, draw, settings.fit), rule, context)
        write_partial(context, paths[draw], arrays)
        context.progress.advance(1)
    arrays, attributes = _compare(list(_read(context, paths)), rule)
    for line in summary_lines(attributes):
        context.progress.note(line)
    count, explained, rank = arrays["top_landmark"].shape
    sizes = {
        "network": count,
        "explained": explained,
        "rank": rank,
        "figure": len(FIGURES),
        "column": len(rule.columns),
    }
    write_whole(context, StoreSpec(load_contract("randomised"), sizes), arrays, attributes)


def _audit_network(network: DrawnNetwork, rule: AuditRule, context: StageContext) -> Arrays:
    """Everything that is kept of one network; the reason if it cannot be audited."""
    try:
        rows = network.kernel_rows(context.executor(), rule.normalise)
        figures = network_figures(rule, rows)
    except StageFailed as error:
        # A draw may leave the range of its numbers; the audited network may not.
        if isinstance(error.__cause__, OSError) or (
            network.draw == TRAINED and isinstance(error, NetworkError)
        ):
            raise
        return {"reason": np.array(str(error))}
    # Empty where the network could be audited.
    found: dict[str, npt.NDArray[Any]] = {**vars(figures), "reason": np.array("")}
    if network.draw == TRAINED:
        health = _health(rows)
        found |= {f"health_{key}": np.array(value) for key, value in asdict(health).items()}
    return found


def _health(rows: KernelRows) -> EmbeddingHealth:
    first, second = (rows.view_embedding[view].astype(np.float64) for view in (0, -1))
    return embedding_health(rows.embedding.astype(np.float64), first, second)


def _read(context: StageContext, paths: list[Path]) -> Iterator[Arrays]:
    for path in paths:
        arrays = read_partial(context, path)
        assert arrays is not None
        yield arrays


def _compare(networks: list[Arrays], rule: AuditRule) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and attributes of the store from what every network gave."""
    audited = [i for i, arrays in enumerate(networks) if not str(arrays["reason"])]
    count = len(networks)

    # Likeness of all pairs of networks that could be audited: rankings, then kernel rows.
    tables = {
        "overlap": overlap_table([networks[i]["top_landmark"] for i in audited]),
        "kernel_overlap": overlap_table([networks[i]["top_kernel"] for i in audited]),
        "kernel_correlation": correlation_table([networks[i]["kernel"] for i in audited]),
    }
    matrices = {key: np.zeros((count, count)) for key in tables}
    for key, table in tables.items():
        matrices[key][np.ix_(audited, audited)] = table.mean(axis=2)

    # Draw 0 is the trained network.
    figures = _figures(networks, rule, audited)
    reasons = {f"draw {i}" if i else "network": str(networks[i]["reason"]) for i in range(count)}
    ranking = _verdict(tables["overlap"], audited)
    # Criteria, then every figure beside those of the draws.
    attributes = {
        "draws": count - 1,
        "measure": rule.measure,
        "top": figures["top_landmark"].shape[2],
        "distinguishable": ranking["distinguishable"],
        "ranking": ranking,
        "kernel_ranking": _verdict(tables["kernel_overlap"], audited),
        "kernel_rows": _verdict(tables["kernel_correlation"], audited),
        "figures": _beside_draws(FIGURES, figures["figure"], figures["figure_defined"]),
        "gaps": _beside_draws(
            {name: name for name in rule.columns}, figures["gap"], figures["gap_defined"]
        ),
        "fidelity": _fidelity_beside_draws(networks, audited),
        "figure_names": list(FIGURES),
        "columns": list(rule.columns),
        "health": _health_attributes(networks[TRAINED]),
        "notes": {name: reason for name, reason in reasons.items() if reason},
    }
    return figures | matrices, attributes


def _figures(networks: list[Arrays], rule: AuditRule, audited: list[int]) -> dict[str, Any]:
    """Figures, gaps and top landmarks of every network; 0 or -1 where they are not defined."""
    count = len(networks)
    explained = int(np.sum(rule.role == ROLES["audit"]))
    # NaN and -1 until a network gives a value.
    figure = np.full((len(FIGURES), count), np.nan)
    gap = np.full((len(rule.columns), count), np.nan)
    top_landmark = np.full((count, explained, rule.top), -1, dtype=np.int64)
    for i in audited:
        figure[:, i] = networks[i]["figure"]
        gap[:, i] = networks[i]["gap"]
        top_landmark[i] = networks[i]["top_landmark"]
    # Stores hold no NaN: a mask says what is defined.
    return {
        "audited_network": np.isin(np.arange(count), audited).astype(np.int64),
        "top_landmark": top_landmark,
        "figure": np.nan_to_num(figure),
        "figure_defined": np.isfinite(figure).astype(np.int64),
        "gap": np.nan_to_num(gap),
        "gap_defined": np.isfinite(gap).astype(np.int64),
    }


def _verdict(table: Float, audited: list[int]) -> dict[str, Any]:
    """The criterion as JSON; not distinguishable where it cannot be decided, with the reason."""
    try:
        if TRAINED not in audited:
            raise StageFailed("the network itself could not be audited", where="randomised")
        # The interval covers the draws as well as the samples.
        found = compare_rankings(table)
    except StageFailed as error:
        return {"decided": False, "distinguishable": False, "reason": str(error)}
    return {
        "decided": True,
        "distinguishable": found.distinguishable,
        "reason": _reason(found),
        **{key: value for key, value in asdict(found).items() if key != "interval"},
        "interval": list(found.interval),
    }


def _reason(found: RankingComparison) -> str:
    side = "below" if found.distinguishable else "not below"
    low, high = found.interval
    return (
        f"likeness to networks of random weights {found.with_draws:.3f}, among them "
        f"{found.among_draws:.3f}: {side} (difference {found.difference:+.3f}, "
        f"95 % interval {low:+.3f} to {high:+.3f})"
    )


def _beside_draws(labels: Mapping[str, str], values: Float, defined: Index) -> dict[str, Any]:
    """Every figure with those of the draws, and whether random weights reach it.

    Args:
        labels: in words, by key.
        values: [figure, network].
        defined: 1 where a value is defined [figure, network].
    """
    found: dict[str, Any] = {}
    for (key, label), row, known in zip(labels.items(), values, defined > 0, strict=True):
        # Draws without this figure are left out of the interval.
        draws = row[1:][known[1:]]
        found[key] = {"label": label, "value": None, "draws": [], "learned": None, "most": None}
        # A prediction interval needs several draws.
        if known[TRAINED] and len(draws) >= MIN_DRAWS:
            reached, most = draws_reach(float(row[TRAINED]), draws)
            found[key] |= {"value": float(row[TRAINED]), "draws": draws.tolist()}
            found[key] |= {"learned": not reached, "most": most}
    return found


def _fidelity_beside_draws(networks: list[Arrays], audited: list[int]) -> dict[str, Any]:
    """Figures of the stage fidelity with those of the draws; null where not defined.

    More is not always better here, so that no criterion goes with them.
    """
    found: dict[str, Any] = {}
    for place, key in enumerate(CONTROLLED):
        values = {i: float(networks[i]["fidelity"][place]) for i in audited}
        draws = [v for i, v in values.items() if i != TRAINED and np.isfinite(v)]
        trained = values.get(TRAINED, np.nan)
        found[key] = {"value": None, "draws": [], "low": None, "high": None}
        if np.isfinite(trained) and len(draws) >= MIN_DRAWS:
            low, high = prediction_interval(np.array(draws))
            found[key] = {"value": trained, "draws": draws, "low": low, "high": high}
    return found


def _health_attributes(network: Arrays) -> dict[str, Any]:
    """The health of the network's own embedding as JSON."""
    values = {
        key.removeprefix("health_"): value.item()
        for key, value in network.items()
        if key.startswith("health_")
    }
    if not values:
        return {"collapsed": False, "reason": str(network["reason"])}
    reason = EmbeddingHealth(**values).collapse
    return {**values, "collapsed": bool(reason), "reason": reason}


def summary_lines(attributes: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal.

    Args:
        attributes: of the store.
    """
    ranking = attributes["ranking"]
    verdict = "differs from" if ranking["distinguishable"] else "is NOT distinguishable from"
    lines = [f"the ranking of landmarks {verdict} random weights: {ranking['reason']}"]
    if attributes["health"]["collapsed"]:
        lines.append(f"the network has collapsed: {attributes['health']['reason']}")
    reached = [
        f"{figure['label']} ({figure['value']:.3f}; random weights up to {figure['most']:.3f})"
        for figure in attributes["figures"].values()
        if figure["learned"] is False
    ]
    if reached:
        lines.append("random weights do as well: " + "; ".join(reached))
    return lines + [f"{name}: {note}" for name, note in attributes["notes"].items()]


def estimate_cost(sizes: AuditSizes, settings: RandomisedSettings) -> Cost:
    """Rows and figures of every network, one network at a time.

    Rows of the fit samples' views pass through the network twice where they are not kept: for the
    centre, then for the kernel.
    """
    m, width, batch = sizes.n_landmarks, sizes.n_features, sizes.plan.forward_batch
    # Audited samples that are not explained have the role fit.
    fit = min(settings.fit, max(0, sizes.n_audited - sizes.n_explained))
    networks, view_rows = settings.draws + 1, fit * sizes.n_views
    audited = sizes.n_explained + fit
    kept = keeps_view_rows(view_rows, width)
    # Clean samples and landmarks once; the stores have those of the network itself.
    passed = (1 if kept else 2) * view_rows
    all_passed = networks * passed + settings.draws * (audited + m)
    worker = Quantity.of(
        batch_term(sizes),
        *input_terms(sizes, batch),
        Term("stored rows of a batch", f16(batch, width), 2),
        Term("kernel rows of a batch", f32(batch, m), 4),
    )
    return Cost(
        units=networks,
        disk=Quantity.of(
            Term("top landmarks", f64(networks, sizes.n_explained, settings.top)),
            Term("figures and attributes", 2**15),
        ),
        memory=_memory(sizes, fit, view_rows if kept else 0, worker),
        worker_memory=worker,
        parallel_tasks=max(1, -(-max(view_rows, audited) // batch)),
        flops=Quantity.of(
            Term(ROW_PASSES, sizes.row_operations * all_passed),
            Term("kernel rows", 2.0 * m * width * (view_rows + audited + m), networks),
            Term(
                "ridge and moments", 2.0 * (sizes.n_views**2 + 3) * (fit + 9 * m) * m**2, networks
            ),
        ),
        scratch=Quantity.of(
            Term("kernel rows of audit samples", f32(sizes.n_explained, m), networks)
        ),
        device_memory=Quantity.of(Term("landmark rows", f32(m, width), 2)),
        device_task_memory=Quantity.of(Term("rows of a batch", f32(batch, width + m), 4)),
    )


def _memory(sizes: AuditSizes, fit: int, kept_rows: int, worker: Quantity) -> Quantity:
    """Memory of one network: its rows, its step, its figures, one after the other.

    ``kept_rows``: feature rows of the fit samples' views that stay in memory; ``worker``: what a
    worker takes, none before the network is open.
    """
    m, width, views = sizes.n_landmarks, sizes.n_features, sizes.n_views
    audited = sizes.n_explained + fit
    # The permuted copy of the network is opened anew for every draw.
    network = Term("network with permuted weights", f32(sizes.n_weights))
    rows = (
        network,
        Term("kernel rows of the fit samples' views", f32(views, fit, m)),
        Term("clean kernel rows", f32(audited, m)),
        Term("landmark kernel", f64(m, m)),
        Term("embeddings", f32(views * fit + audited, sizes.n_outputs)),
    )
    return Quantity(
        {
            "opening": (
                network,
                Term("opening and self-check of the network, measured", sizes.opening_bytes),
                Term("memory of one worker", worker.bytes, -1),
            ),
            "rows": (
                *rows,
                Term("landmark rows as stored, in float32 and float64", f32(m, width), 5),
                Term("centre", f64(sizes.n_moments), 3),
                Term("rows while they are joined", f32(max(fit * views, audited), m)),
                Term("feature rows of the fit samples' views", f16(kept_rows, width)),
                Term("clean feature rows of the network itself", f16(sizes.n_audited, width), 2),
            ),
            "step": (
                *rows,
                Term("moments and their products", f64(m, m), 2 * views**2),
                Term("eigenvectors and workspaces", f64(m, m), 5),
                Term("iterates", f64(m, sizes.n_components), 24),
            ),
            "figures": (
                *rows,
                Term("moments", f64(m, m), 2),
                Term("rows of the ridge in float64", f64(audited, m), 4),
                Term("scores and agreement", f64(sizes.n_explained, m), 5),
            ),
            "fidelity": (
                *rows,
                Term("moments", f64(m, m), 2),
                Term("kernel rows in float64", f64(audited, m), 2),
                Term("scores", f64(sizes.n_explained, m), 4),
                Term("landmark kernel, its eigenvectors and workspaces", f64(m, m), 6),
            ),
        }
    )


STAGE = Stage(
    name="randomised",
    version=4,
    inputs=RandomisedInputs,
    store="randomised",
    settings=RandomisedSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="the audit again for networks with random weights",
    parallel="passes",
    uses_sklearn=True,
)
