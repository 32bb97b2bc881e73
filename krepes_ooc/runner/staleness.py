"""Tickets: everything that a stage's result depends on, and what became of each stage.

A ticket holds the stage's version, its settings and the digests of what it reads; its own digest is
sha256 over its canonical JSON. It is written before the first block. A stage whose ticket on disk
differs from the one the recipe asks for is stale, and the difference is the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from krepes_ooc.core.digests import canonical_digest, remembered_sha256
from krepes_ooc.core.files import to_json
from krepes_ooc.core.import_object import factory_sha256
from krepes_ooc.core.settings import digest_mapping, digest_names
from krepes_ooc.errors import DamageError
from krepes_ooc.network.spec import FACTORY, PRETRAIN, resolve_weights
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.stage import Stage, digest_of
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.verify import metadata_damage
from krepes_ooc.storage.workspace import Workspace

Fingerprint = dict[str, Any]
Kind = Literal["missing", "begun", "sealed", "stale", "damaged"]
SIZES_KEY = "shape"
LONGEST_VALUE = 60
INPUTS = ("source", "labels", "views", "factory", "network")
# Declared inputs that digests leave out, because the digest of another input of the stage covers
# them: so a stage that declares one more input stays the stage that an earlier version sealed.
COVERED = {"newton": {"features", "landmarks"}, "concepts": {"labels"}, "report": {"source"}}


@dataclass(frozen=True)
class StageState:
    """What the workspace holds of one stage.

    Args:
        stage: the stage.
        kind: nothing yet; begun and resumable; sealed; made with other inputs; or its record
            is not what was written.
        digest: of the ticket that the recipe asks for; empty while an input is unknown.
        done: finished units of a begun stage.
        total: units of the stage where they are known, else 0.
        reasons: what differs, for a stale stage; what is damaged, for a damaged one.
        changed_upstream: stages before it whose results are not the ones that it read.
        missing_upstream: stages before it that must be computed before it is known whether their
            results are those that it read; nothing else makes it stale.
    """

    stage: Stage
    kind: Kind
    digest: str = ""
    done: int = 0
    total: int = 0
    reasons: tuple[str, ...] = ()
    changed_upstream: tuple[str, ...] = ()
    missing_upstream: tuple[str, ...] = ()

    @property
    def reason_text(self) -> str:
        """Why it is stale or damaged, in words."""
        after = [f"{name} changed" for name in self.changed_upstream]
        return ", ".join(
            [*self.reasons, *after, *(f"{name} is not there" for name in self.missing_upstream)]
        )


@dataclass(frozen=True)
class StalenessChecker:
    """Tickets of one recipe in one workspace.

    Args:
        workspace: where the stages are recorded.
        inputs: source, network and views.
        settings: settings of every stage by name.
    """

    workspace: Workspace
    inputs: AuditInputs
    settings: Mapping[str, Any]
    _known: dict[str, Any] = field(default_factory=dict)

    def record(self, stage: Stage) -> StageRecord:
        """The record of one stage."""
        return self.workspace.record(stage.name, stage.store)

    def fingerprint(self, stage: Stage, digests: Mapping[str, str]) -> Fingerprint:
        """The ticket that the recipe asks for.

        Args:
            stage: the stage.
            digests: digests of the stages before it, empty where unknown.
        """
        covered = COVERED.get(stage.name, set())
        inputs = {name: self._input(name, digests) for name in stage.reads if name not in covered}
        if self._needs_training(stage):
            inputs[PRETRAIN] = digests.get(PRETRAIN, "")
        contract = load_contract(stage.store).version if stage.store else 0
        return {
            "stage": stage.name,
            "versions": {"stage": stage.version, "contract": contract},
            "seed": self.inputs.seed,
            "settings": digest_mapping(self.settings[stage.name]),
            "inputs": inputs,
        }

    def states(self, stages: tuple[Stage, ...]) -> list[StageState]:
        """State of every stage, upstream first."""
        states: list[StageState] = []
        digests: dict[str, str] = {}
        changed: set[str] = set()
        for stage in stages:
            state = self.state(stage, digests, changed)
            digests[stage.name] = state.digest
            changed |= {stage.name} if state.reasons or state.changed_upstream else set()
            states.append(state)
        return states

    def state(
        self, stage: Stage, digests: Mapping[str, str], changed: Collection[str] = ()
    ) -> StageState:
        """State of one stage.

        Args:
            stage: the stage.
            digests: digests of the stages before it, empty where unknown.
            changed: stages before it that are stale, for certain.
        """
        record = self.record(stage)
        try:
            begun, seal = record.begun(), record.seal()
        except DamageError as error:
            return StageState(stage, "damaged", reasons=(f"{error.where}: {error.what}",))
        ticket = self.fingerprint(stage, digests)
        if begun is None:
            # The ticket of the features holds sizes that are measured when they begin.
            known = stage.name != "features" and all(ticket["inputs"].values())
            return StageState(stage, "missing", digest_of(ticket) if known else "")
        if SIZES_KEY in begun:
            ticket[SIZES_KEY] = begun[SIZES_KEY]
        digest = digest_of(ticket)
        if digest != begun["digest"]:
            why, after = _differences(begun, ticket, digest_names(stage.settings))
            waits = tuple(n for n in after if not (digests.get(n) or n in changed))
            after = tuple(name for name in after if name not in waits)
            return StageState(
                stage, "stale", reasons=why, changed_upstream=after, missing_upstream=waits
            )
        if seal is not None:
            if harmed := metadata_damage(record, seal):
                # What was made of it stays valid: a repair brings the same bits back.
                return StageState(stage, "damaged", digest, reasons=(harmed,))
            return StageState(stage, "sealed", digest)
        total = int(begun.get("units", 0))
        return StageState(stage, "begun", digest, min(units_on_disk(record), total), total)

    def upstream(self, stage: Stage) -> tuple[str, ...]:
        """Stages whose results a stage reads."""
        trained = (PRETRAIN,) if self._needs_training(stage) else ()
        return trained + tuple(name for name in stage.reads if name not in INPUTS)

    def _needs_training(self, stage: Stage) -> bool:
        return "network" in stage.reads and self.inputs.network_spec.weights == PRETRAIN

    def _input(self, name: str, digests: Mapping[str, str]) -> Any:
        if name not in INPUTS:
            return digests.get(name, "")
        if name not in self._known:
            self._known[name] = self._describe(name)
        return self._known[name]

    def _describe(self, name: str) -> Any:
        """What identifies an input: whole where it is short, so that a difference can be named."""
        if name == "source":
            return canonical_digest(self.inputs.source.fingerprint())
        if name == "labels":
            return canonical_digest(self.inputs.source.label_fingerprint())
        if name == "views":
            return self.inputs.views.describe()
        return self._network(None if name == "factory" else self._weights())

    def _network(self, weights: str | None) -> dict[str, Any]:
        spec = digest_mapping(self.inputs.network_spec)
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


def units_on_disk(record: StageRecord) -> int:
    """Finished units of a begun stage: journalled ones, or partial results where none are."""
    return len(record.done()) or sum(1 for _ in record.partials.glob("*.npz"))


def _differences(
    begun: Mapping[str, Any], ticket: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What differs between the ticket on disk and the one asked for; and stages that changed.

    Args:
        begun: the ticket on disk.
        ticket: the one asked for.
        names: settings that digests spell otherwise than recipes: name there to name here.
    """
    then, why, after = dict(begun), [], []
    for key in ("stage", "contract"):
        was, now = dict(then.get("versions", {})).get(key), ticket["versions"][key]
        if was != now:
            why.append(f"{key} version was {was}, is {now}")
    why += _changed("seed", then.get("seed"), ticket["seed"])
    was_set, now_set = (
        {names.get(key, key): value for key, value in settings.items()}
        for settings in (then.get("settings", {}), ticket["settings"])
    )
    why += _changed("settings", was_set, now_set)
    known = dict(then.get("inputs", {}))
    for key, now in ticket["inputs"].items():
        if key in INPUTS:
            why += _changed(key, known.get(key), now)
        elif known.get(key) != now:
            after.append(key)
    if not why and not after:
        why.append("its record has another form")
    return tuple(why), tuple(after)


def _changed(name: str, was: Any, now: Any) -> list[str]:
    """What differs between two values, key by key, in words."""
    if to_json(was) == to_json(now):
        return []
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = [*now, *(key for key in was if key not in now)]
        return [
            text for key in keys for text in _changed(f"{name}.{key}", was.get(key), now.get(key))
        ]
    old, new = to_json(was), to_json(now)
    if max(len(old), len(new)) > LONGEST_VALUE:
        return [f"{name} changed"]
    return [f"{name} was {old}, is {new}"]
