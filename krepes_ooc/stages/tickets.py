"""Tickets: everything that a stage's result depends on, and what became of each stage.

A ticket holds the stage's version, its settings and the digests of what it reads; its own digest is
sha256 over its canonical JSON. It is written before the first block. A stage whose ticket on disk
differs from the one the recipe asks for is stale, and the difference is the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from krepes_ooc.network.digests import canonical_digest, remembered_sha256
from krepes_ooc.network.modelspec import FACTORY, PRETRAIN, factory_sha256, resolve_weights
from krepes_ooc.settings import to_mapping
from krepes_ooc.stages.base import Stage, digest_of
from krepes_ooc.stages.inputs import AuditInputs
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.records import StageRecord
from krepes_ooc.storage.workspace import Workspace

Ticket = dict[str, Any]
KEEP = ("shape",)


@dataclass(frozen=True)
class StageState:
    """What the workspace holds of one stage.

    Args:
        stage: the stage.
        kind: nothing yet; begun and resumable; sealed; or made with other inputs.
        digest: of the ticket that the recipe asks for; empty while an input is unknown.
        done: finished units of a begun stage.
        total: units of the stage where they are known, else 0.
        why: what differs, for a stale stage.
    """

    stage: Stage
    kind: Literal["missing", "begun", "sealed", "stale"]
    digest: str = ""
    done: int = 0
    total: int = 0
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class TicketOffice:
    """Tickets of one recipe in one workspace.

    Args:
        workspace: where the stages are recorded.
        inputs: source, network and views.
        settings: settings of every stage by name.
    """

    workspace: Workspace
    inputs: AuditInputs
    settings: Mapping[str, Any]
    _known: dict[str, str] = field(default_factory=dict)

    def record(self, stage: Stage) -> StageRecord:
        """The record of one stage."""
        return self.workspace.record(stage.name, stage.store)

    def ticket(self, stage: Stage, digests: Mapping[str, str]) -> Ticket:
        """The ticket that the recipe asks for.

        Args:
            stage: the stage.
            digests: digests of the stages before it, empty where unknown.
        """
        inputs = {name: self._input(name, digests) for name in stage.reads}
        if stage.name in ("features", "landmarks", "audited") and self._trained_here:
            inputs["pretrain"] = digests.get(PRETRAIN, "")
        contract = load_contract(stage.store).version if stage.store else 0
        return {
            "stage": stage.name,
            "versions": {"stage": stage.version, "contract": contract},
            "seed": self.inputs.seed,
            "settings": to_mapping(self.settings[stage.name]),
            "inputs": inputs,
        }

    def states(self, stages: tuple[Stage, ...]) -> list[StageState]:
        """State of every stage, upstream first."""
        states: list[StageState] = []
        digests: dict[str, str] = {}
        for stage in stages:
            state = self.state(stage, digests)
            digests[stage.name] = state.digest
            states.append(state)
        return states

    def state(self, stage: Stage, digests: Mapping[str, str]) -> StageState:
        """State of one stage, given the digests of the stages before it."""
        record = self.record(stage)
        begun = record.begun()
        if begun is None:
            return StageState(stage, "missing")
        ticket = self.ticket(stage, digests)
        ticket |= {key: begun[key] for key in KEEP if key in begun}
        digest = digest_of(ticket)
        if digest != begun["digest"]:
            return StageState(stage, "stale", why=_differences(begun, ticket))
        if record.seal() is not None:
            return StageState(stage, "sealed", digest)
        total = int(begun.get("units", 0))
        return StageState(stage, "begun", digest, min(len(record.done()), total or 10**9), total)

    @property
    def _trained_here(self) -> bool:
        return self.inputs.network_spec.weights == PRETRAIN

    def _input(self, name: str, digests: Mapping[str, str]) -> str:
        if name in digests or name not in ("source", "views", "factory", "network"):
            return digests.get(name, "")
        if name not in self._known:
            self._known[name] = self._digest(name)
        return self._known[name]

    def _digest(self, name: str) -> str:
        if name == "source":
            return canonical_digest(self.inputs.source.fingerprint())
        if name == "views":
            return canonical_digest(self.inputs.views.describe())
        if name == "factory":
            return canonical_digest(self._network(None))
        return canonical_digest(self._network(self._weights()))

    def _network(self, weights: str | None) -> dict[str, Any]:
        spec = to_mapping(self.inputs.network_spec)
        if weights is not None:
            spec["weights"] = weights
        code = factory_sha256(self.inputs.network_spec.factory, self.inputs.base)
        return {**spec, "code": code}

    def _weights(self) -> str:
        spec = self.inputs.network_spec
        if spec.weights in (PRETRAIN, FACTORY):
            return spec.weights
        path = resolve_weights(spec, None, self.inputs.base)
        assert path is not None
        return remembered_sha256(path, self.inputs.private / "cache")


def _differences(begun: Mapping[str, Any], ticket: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between the ticket on disk and the one asked for, in words."""
    found = []
    for key, then in begun.get("settings", {}).items():
        now = ticket["settings"].get(key)
        if then != now:
            found.append(f"settings.{key} was {then!r}, is {now!r}")
    new = sorted(set(ticket["settings"]) - set(begun.get("settings", {})))
    found += [f"settings.{key} is new" for key in new]
    for key in ("stage", "contract"):
        then, now = begun["versions"].get(key), ticket["versions"][key]
        if then != now:
            found.append(f"{key} version was {then}, is {now}")
    if begun["seed"] != ticket["seed"]:
        found.append(f"seed was {begun['seed']}, is {ticket['seed']}")
    for key, now in ticket["inputs"].items():
        if begun["inputs"].get(key) != now:
            found.append(f"{key} changed")
    return tuple(found) or ("the record has another form",)
