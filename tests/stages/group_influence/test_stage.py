"""The embedding without a group, against the same from the remaining rows and dense solves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run import run
from krepes_ooc.stages.group_influence.effects import Embedding, effects
from krepes_ooc.stages.minimiser.minimise import minimise
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.preconditioners import KroneckerPath
from krepes_ooc.storage.workspace import Workspace
from tests.crash.compare import differences
from tests.small import seals
from tests.stages import audits, group_audits
from tests.stages.group_audits import RESOLVED


def reader(space: Workspace):
    return space.reader("group_influence")


def dense_resolve(space: Workspace, kept: np.ndarray) -> np.ndarray:
    """The same iteration on moments computed directly from the rows that are kept."""
    K, spectrum = group_audits.kernels(space), space.reader("spectrum")
    start, name = spectrum.array("start"), reader(space).attributes["objective"]

    def objective(rows):
        settings = registry.settings_type(name)()
        moments = group_audits.dense(rows).full()
        return registry.create(
            name, settings, moments=moments, start=start, offset=spectrum.array("offset")
        ), moments

    whole, moments = objective(K)
    at_start = whole.linearise(start)
    damping = RESOLVED["damping"] * float(at_start.mean_diagonal)
    model = KroneckerPath.build(at_start, moments)
    limits = {name: RESOLVED[name] for name in ("max_evaluations", "tolerance")}
    full = minimise(
        whole, start, damping, model=model, max_evaluations=50_000, tolerance=1e-11
    ).coefficients
    if kept.all():
        return full
    # The rest from the minimum of all samples.
    rest, _ = objective(K[:, kept])
    return minimise(rest, start, damping, model=model, point=full, **limits).coefficients


@pytest.mark.parametrize("objective", ["vicreg", "barlow-twins"])
def test_the_resolve_is_that_of_the_remaining_rows(objective: str):
    space = group_audits.finished(objective)
    store, names = reader(space), space.reader("groups").attributes["names"]
    assert store.attributes["converged"]
    assert store.attributes["method"] == "re-solve"
    everything = np.ones(audits.ROWS, dtype=bool)
    full = dense_resolve(space, everything)
    np.testing.assert_allclose(store.array("coefficients_full"), full, atol=1e-8)
    for group, name in enumerate(names):
        if name in store.attributes["reasons"]:
            continue
        assert store.array("gradient_norm")[group] <= RESOLVED["tolerance"]
        wanted = dense_resolve(space, ~group_audits.member(space, group))
        found = store.array("coefficients")[group]
        np.testing.assert_allclose(found, wanted, atol=1e-8 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("objective", ["vicreg", "barlow-twins"])
def test_the_floor_is_what_solving_on_changes(objective: str):
    """At a tight tolerance nothing is left; the effects of groups lie far above."""
    store = reader(group_audits.finished(objective))
    floor = store.attributes["floor"]["mean_effect"]
    assert 0 <= floor < 1e-8
    assert np.nanmin(store.array("mean_effect")) > 100 * floor


def test_solves_that_are_cut_short_leave_a_floor(tmp_path: Path):
    """With five evaluations the solution of all samples still moves."""
    audit = group_audits.audit(tmp_path, "barlow-twins", max_evaluations=5)
    store = reader(audit)
    assert not store.attributes["converged"]
    assert store.attributes["floor"]["mean_effect"] > 1e-6


def test_groups_that_cannot_be_left_out_are_nan_with_a_reason():
    space = group_audits.finished()
    store, names = reader(space), list(space.reader("groups").attributes["names"])
    reasons = store.attributes["reasons"]
    assert reasons["all"] == "all samples"
    assert "anchors are left" in reasons["most"]
    assert "one" not in reasons
    for name in reasons:
        group = names.index(name)
        assert np.isnan(store.array("effect")[group]).all()
        assert np.isnan(store.array("mean_effect")[group])
        assert store.array("iterations")[group] == 0
    left = [g for g, name in enumerate(names) if name not in reasons]
    assert np.isfinite(store.array("effect")[left]).all()
    assert (store.array("iterations")[left] > 0).all()


@pytest.mark.parametrize("objective", ["vicreg", "barlow-twins"])
def test_effects_are_those_of_the_stored_coefficients(objective: str):
    space = group_audits.finished(objective)
    store, audited = reader(space), space.reader("audited")
    rows = _clean_rows(space).astype(np.float64)
    K = group_audits.kernels(space)
    names = list(space.reader("groups").attributes["names"])
    sample_id, order = audited.array("sample_id"), space.reader("kernel").array("sample_id")
    anchors = store.array("anchor")
    assert (audited.array("role")[anchors] == 1).all()

    def embedding(A, rows):
        if objective == "barlow-twins":
            A = A / (rows @ A).reshape(-1, A.shape[1]).std(axis=0)
        return Embedding(A, rows.mean(axis=(0, 1)))

    full = embedding(store.array("coefficients_full"), K)
    for name in ("town = x", "few", "cluster 1"):
        group = names.index(name)
        member = group_audits.member(space, group)
        rest = embedding(store.array("coefficients")[group], K[:, ~member])
        outside = anchors[~np.isin(sample_id[anchors], order[member])]
        wanted = effects(rows, rows[outside], full, rest)
        np.testing.assert_allclose(store.array("effect")[group], wanted, atol=1e-9)
        inside = np.isin(sample_id, order[member])
        assert store.array("effect_by_group")[group, group] == pytest.approx(wanted[inside].mean())


def _clean_rows(space: Workspace) -> np.ndarray:
    from krepes_ooc.stages.kernel.landmark_kernel import read_landmark_kernel

    kernel, audited = space.reader("kernel").attributes, space.reader("audited")
    landmarks = read_landmark_kernel(
        space.reader("landmarks"), kernel["normalise"], kernel["scale"], 64
    )
    return landmarks.rows(audited.array("features"), audited.array("self_kernel"))


@pytest.mark.parametrize("objective", ["byol", "simclr"])
def test_the_first_order_step_against_dense_matrices(objective: str):
    space = group_audits.finished(objective)
    store, names = reader(space), list(space.reader("groups").attributes["names"])
    assert store.attributes["method"] == "first-order"
    K, newton = group_audits.kernels(space), space.reader("newton")
    A, spectrum = newton.array("coefficients"), space.reader("spectrum")
    np.testing.assert_array_equal(store.array("coefficients_full"), A)
    settings = registry.settings_type(objective)()
    if objective == "simclr":
        settings = replace(settings, batch=64)

    def create(rows):
        return registry.create(
            objective,
            settings,
            moments=group_audits.dense(rows).full(),
            stream=_Blocks(rows),
            start=spectrum.array("start"),
            offset=spectrum.array("offset"),
        )

    whole = create(K)
    identity = np.eye(A.size).reshape(*A.shape, A.size)
    H = whole.multiply(A, identity).reshape(A.size, A.size)
    damping = float(newton.attributes["damping"])
    assert store.attributes["damping"] == damping
    for name in ("town = x", "few", "one"):
        group = names.index(name)
        member = group_audits.member(space, group)
        own = _own_gradient(objective, create, whole, K, member, A)
        wanted = np.linalg.solve(H + damping * np.eye(A.size), own.ravel()).reshape(A.shape)
        found = store.array("coefficients")[group] - A
        assert np.linalg.norm(found - wanted) <= 2e-2 * np.linalg.norm(wanted), name
        assert store.array("gradient_norm")[group] <= 1e-3


class _Blocks:
    """Rows in blocks of 64, as the store's batches lie."""

    def __init__(self, kernels: np.ndarray) -> None:
        self.kernels, self.n_views, self.n_samples = kernels, len(kernels), kernels.shape[1]

    def reduce(self, function):
        from krepes_ooc.core.blocks import Block

        total = None
        for index, start in enumerate(range(0, self.n_samples, 64)):
            stop = min(start + 64, self.n_samples)
            part = function(tuple(self.kernels[:, start:stop]), Block(index, start, stop))
            both = zip(total or part, part, strict=True)
            total = tuple(a + b for a, b in both) if total else part
        return total


def _own_gradient(objective: str, create, whole, K, member, A) -> np.ndarray:
    """Gradient of the terms that go with the group, with the normalisation of all samples."""
    everything = np.asarray(whole.linearise(A).gradient)
    if objective == "byol":
        return np.asarray(create(K[:, member]).linearise(A).gradient) * member.mean()
    left = np.zeros_like(A)
    for start in range(0, K.shape[1], 64):
        kept = np.flatnonzero(~member[start : start + 64]) + start
        if len(kept) > 1:
            part = create(K[:, kept])
            left += np.asarray(part.linearise(A).gradient) * part.anchors / whole.anchors
    return everything - left


def copy_without(finished: Workspace, folder: Path) -> Path:
    """A copy in which the stage is not begun."""
    shutil.copytree(finished.root.parent, folder)
    workspace = folder / "w"
    shutil.rmtree(workspace / ".krepes" / "stages" / "group_influence")
    shutil.rmtree(workspace / "audit.zarr" / "group_influence")
    return workspace


@pytest.mark.parametrize("objective", ["vicreg", "byol"])
def test_shards_workers_and_stops_change_no_bit(tmp_path: Path, objective: str):
    finished = group_audits.finished(objective)
    workspace = copy_without(finished, tmp_path / "copy")
    recipe = audits.recipe_of(finished)
    if objective == "vicreg":
        for number in (2, 1):
            found = run(
                recipe, workspace, Options(only="group_influence", shard=(number, 2), workers=1)
            )
            assert found.shard == f"shard {number}/2 of group_influence"
    run(recipe, workspace, Options(until="group_influence", workers=3))
    assert differences(finished.root, workspace) == []
    assert seals(workspace) == seals(finished.root)
