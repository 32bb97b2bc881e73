"""Fingerprints and states of stages: all that a result depends on, compared with what is on disk.

A fingerprint holds the stage's version, its settings and the digests of what it reads; the stage's
digest is sha256 over its canonical JSON. It is written before the first block. A stage whose
fingerprint on disk differs from the recipe's is stale, and the difference is the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from krepes_ooc.core.digests import canonical_digest, remembered_sha256
from krepes_ooc.core.files import to_json
from krepes_ooc.core.import_object import factory_sha256
from krepes_ooc.core.live_objects import LIVE, object_sha256
from krepes_ooc.core.settings import digest_mapping, digest_names
from krepes_ooc.errors import DamageError, KrepesError, UsageError
from krepes_ooc.network.spec import FACTORY, PRETRAIN, weight_files
from krepes_ooc.sources.file_digests import describe_change, read_file_digests
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.stage import Stage, digest_of, is_enabled
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.verify import metadata_damage
from krepes_ooc.storage.workspace import Workspace

Fingerprint = dict[str, Any]
Kind = Literal["missing", "started", "sealed", "stale", "damaged"]
SIZES_KEY = "shape"  # of the sizes in the fingerprint of the features
LONGEST_VALUE = 60
INPUTS = ("source", "labels", "views", "factory", "network", "training")
# Declared inputs that digests leave out, because the digest of another input of the stage covers
# them: so a stage that declares one more input stays the stage that an earlier version sealed.
COVERED = {
    "landmarks": {"views"},
    "newton": {"features", "landmarks"},
    "concepts": {"labels"},
    "report": {"source"},
    "verdict": {"source"},
}


@dataclass(frozen=True)
class StageState:
    """State of one stage in the workspace.

    Args:
        stage: the stage.
        kind: nothing yet; started and resumable; sealed; made with other inputs; or a record that
            fails its checksum.
        digest: of the fingerprint of the recipe; empty while an input is unknown.
        done: finished units of a started stage.
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
        """The reasons why it is stale or damaged, in words."""
        after = [f"{name} changed" for name in self.changed_upstream]
        return ", ".join(
            [*self.reasons, *after, *(f"{name} is not there" for name in self.missing_upstream)]
        )


@dataclass(frozen=True)
class StalenessChecker:
    """Fingerprints and states of one recipe's stages in one workspace.

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
        """Everything that the result of a stage depends on.

        Args:
            stage: the stage.
            digests: digests of the stages before it, empty where unknown.

        Returns:
            Stage, versions, seed, settings in their digest form, and what identifies every input.
        """
        covered = COVERED.get(stage.name, set())
        reads = self._reads(stage)
        inputs = {name: self._input(name, digests) for name in reads if name not in covered}
        if self._needs_training(stage):
            inputs[PRETRAIN] = digests.get(PRETRAIN, "")
        if stage.name == "report" and self.inputs.network_spec.objective:
            inputs["network.objective"] = self.inputs.network_spec.objective
        contract = load_contract(stage.store).version if stage.store else 0
        return {
            "stage": stage.name,
            "versions": {"stage": stage.version, "contract": contract},
            "seed": self.inputs.seed,
            "settings": self._settings(stage),
            "inputs": inputs,
        }

    def states(self, stages: tuple[Stage, ...]) -> list[StageState]:
        """State of every stage, upstream first."""
        states: list[StageState] = []
        digests: dict[str, str] = {}
        changed: set[str] = set()
        # The digest of a stage is part of the fingerprints of those that read it.
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
            stored = record.begun()
            seal = record.seal()
        except DamageError as error:
            return StageState(stage, "damaged", reasons=(f"{error.where}: {error.what}",))
        fingerprint = self.fingerprint(stage, digests)
        if stored is None:
            # Sizes, part of the fingerprint of the features, are measured when these are started.
            is_known = stage.name != "features" and all(fingerprint["inputs"].values())
            return StageState(stage, "missing", digest_of(fingerprint) if is_known else "")
        # Sizes are chosen once and taken over from then on.
        if SIZES_KEY in stored:
            fingerprint[SIZES_KEY] = stored[SIZES_KEY]
        digest = digest_of(fingerprint)
        # An unknown digest equals nothing, not even one that was unknown when the stage began.
        inputs = fingerprint["inputs"]
        unknown = tuple(
            name
            for name in self.upstream(stage)
            if not inputs.get(name, "?") and name not in changed
        )
        if digest == stored["digest"] and unknown:
            return StageState(stage, "stale", missing_upstream=unknown)
        if digest != stored["digest"]:
            return self._stale(stage, stored, fingerprint, changed)
        if seal is not None:
            if damage := metadata_damage(record, seal):
                # Results made of it stay valid: a repair brings the same bits back.
                return StageState(stage, "damaged", digest, reasons=(damage,))
            return StageState(stage, "sealed", digest)
        total = int(stored.get("units", 0))
        return StageState(stage, "started", digest, min(units_on_disk(record), total), total)

    def _stale(
        self,
        stage: Stage,
        stored: Mapping[str, Any],
        fingerprint: Fingerprint,
        changed: Collection[str],
    ) -> StageState:
        """The state of a stage whose fingerprint on disk is another one, with the reasons."""
        files = self._changed_files(stored, fingerprint)
        reasons, upstream = _differences(stored, fingerprint, digest_names(stage.settings), files)
        # Without a digest, an upstream stage may still give the result that was read.
        digests = fingerprint["inputs"]
        missing = tuple(name for name in upstream if not (digests[name] or name in changed))
        return StageState(
            stage,
            "stale",
            reasons=reasons,
            changed_upstream=tuple(name for name in upstream if name not in missing),
            missing_upstream=missing,
        )

    def _changed_files(self, stored: Mapping[str, Any], fingerprint: Fingerprint) -> dict[str, str]:
        """The change of the source, file by file, where the files of both versions are known."""
        digests = [each.get("inputs", {}).get("source") for each in (stored, fingerprint)]
        if digests[0] == digests[1]:
            return {}
        cache = self.inputs.private / "cache"
        then, now = (read_file_digests(cache, digest) for digest in digests)
        text = "" if then is None or now is None else describe_change(then, now)
        return {"source": text} if text else {}

    def upstream(self, stage: Stage) -> tuple[str, ...]:
        """Stages whose results a stage reads."""
        trained = (PRETRAIN,) if self._needs_training(stage) else ()
        return trained + tuple(name for name in self._reads(stage) if name not in INPUTS)

    def _reads(self, stage: Stage) -> tuple[str, ...]:
        """Inputs of a stage in this audit: no store that its settings or the recipe leave out."""
        own = self.settings[stage.name]
        optional = stage.inputs.optional().items()
        absent = {
            store
            for store, key in optional
            if not (getattr(own, key) if key else is_enabled(self.settings[store]))
        }
        return tuple(name for name in stage.reads if name not in absent)

    def _settings(self, stage: Stage) -> dict[str, Any]:
        """Settings of a stage in their digest form, with hashes of the files and code they name."""
        settings: dict[str, Any] = digest_mapping(self.settings[stage.name])
        return settings | self._files(stage) | self._code(stage)

    def _files(self, stage: Stage) -> dict[str, str]:
        """sha256 of every file that the settings of a stage name, by its name."""
        files: tuple[str, ...] = getattr(self.settings[stage.name], "files", ())
        if not files:
            return {}
        cache, base = self.inputs.private / "cache", self.inputs.base
        return {f"{name}: sha256": remembered_sha256(base / name, cache) for name in files}

    def _code(self, stage: Stage) -> dict[str, str]:
        """sha256 of the file of every callable that the settings of a stage name, by its name.

        Raises:
            UsageError: there is no such file or module.
        """
        settings = self.settings[stage.name]
        names: tuple[str, ...] = getattr(settings, "code", ()) if is_enabled(settings) else ()
        found = {}
        for name in names:
            try:
                found[f"{name}: code"] = factory_sha256(name, self.inputs.base)
            except KrepesError as error:
                raise UsageError(
                    error.what,
                    where=f"stages.{stage.name}",
                    expected="module:callable or path/to/file.py:callable",
                ) from error
        return found

    def _needs_training(self, stage: Stage) -> bool:
        return "network" in stage.reads and self.inputs.network_spec.weights == PRETRAIN

    def _input(self, name: str, digests: Mapping[str, str]) -> Any:
        if name not in INPUTS:
            return digests.get(name, "")
        if name not in self._known:
            self._known[name] = self._describe(name)
        return self._known[name]

    def _describe(self, name: str) -> Any:
        """The identity of an input: whole where it is short, so that a difference can be named."""
        if name == "source":
            return self._source()
        if name == "labels":
            return canonical_digest(self.inputs.source.label_fingerprint())
        if name == "training":
            return {"objective": self.inputs.training_objective}
        if name == "views":
            return self.inputs.views.describe()
        return self._network(None if name == "factory" else self._weights())

    def _source(self) -> Any:
        """Digest of the samples, beside that of a table's encoding file where there is one."""
        fingerprint = dict(self.inputs.source.fingerprint())
        encoding = fingerprint.pop("encoding", None)
        samples = canonical_digest(fingerprint)
        return samples if encoding is None else {"samples": samples, "encoding": encoding}

    def _network(self, weights: str | None) -> dict[str, Any]:
        spec = digest_mapping(self.inputs.network_spec)
        # A statement about the training: the report records it, no number depends on it.
        spec.pop("objective", None)
        if weights is not None:
            spec["weights"] = weights
        if self.inputs.network_spec.factory == LIVE and self.inputs.live.model is not None:
            code = object_sha256(self.inputs.live.model)
        else:
            code = factory_sha256(self.inputs.network_spec.factory, self.inputs.base)
        return {**spec, "code": code}

    def _weights(self) -> str:
        spec = self.inputs.network_spec
        if spec.weights in (PRETRAIN, FACTORY):
            return spec.weights
        cache = self.inputs.private / "cache"
        digests = {
            path.name: remembered_sha256(path, cache)
            for path in weight_files(spec, self.inputs.base)
        }
        # One file is its own digest, shards are listed by name.
        return next(iter(digests.values())) if len(digests) == 1 else canonical_digest(digests)


def units_on_disk(record: StageRecord) -> int:
    """Finished units of a started stage: journalled ones, or partial results where none are."""
    return len(record.done()) or sum(1 for _ in record.partials.glob("*.npz"))


def _differences(
    stored: Mapping[str, Any],
    fingerprint: Fingerprint,
    names: Mapping[str, str],
    described: Mapping[str, str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Differences between two fingerprints of one stage.

    Args:
        stored: the fingerprint on disk.
        fingerprint: that of the recipe.
        names: settings that digests spell otherwise than recipes: digest name to recipe name.
        described: changes of inputs that are known in more detail than their digest tells.

    Returns:
        Changes of the stage itself, in words, and names of upstream stages with another digest.
    """
    reasons: list[str] = []
    upstream: list[str] = []
    # Versions of the code and of the store.
    versions = dict(stored.get("versions", {}))
    for key, now in fingerprint["versions"].items():
        if versions.get(key) != now:
            reasons.append(f"{key} version was {versions.get(key)}, is {now}")
    # Seed and settings, by the names that recipes use.
    reasons += _changed("seed", stored.get("seed"), fingerprint["seed"])
    settings_then = _renamed(stored.get("settings", {}), names)
    reasons += _changed("settings", settings_then, _renamed(fingerprint["settings"], names))
    # Inputs from outside are named with the change, stages by their name.
    inputs = dict(stored.get("inputs", {}))
    for key, now in fingerprint["inputs"].items():
        if key in described:
            reasons.append(described[key])
        elif key in INPUTS:
            reasons += _changed(key, *_in_parts(inputs.get(key), now))
        elif inputs.get(key) != now:
            upstream.append(key)
    if not reasons and not upstream:
        reasons.append("its record has another form")
    return tuple(reasons), tuple(upstream)


def _in_parts(was: Any, now: Any) -> tuple[Any, Any]:
    """Two identities of a source in the same parts, where only one has an encoding file."""
    if isinstance(was, str) and isinstance(now, Mapping):
        return {"samples": was, "encoding": None}, now
    if isinstance(was, Mapping) and isinstance(now, str):
        return was, {"samples": now, "encoding": None}
    return was, now


def _renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in settings.items()}


def _changed(name: str, was: Any, now: Any) -> list[str]:
    """Differences between two values, key by key, in words."""
    if to_json(was) == to_json(now):
        return []
    # Down to the values that differ.
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = [*now, *(key for key in was if key not in now)]
        return [
            text for key in keys for text in _changed(f"{name}.{key}", was.get(key), now.get(key))
        ]
    old = to_json(was)
    new = to_json(now)
    # A hash or a long list says nothing to people.
    if max(len(old), len(new)) > LONGEST_VALUE:
        return [f"{name} changed"]
    return [f"{name} was {old}, is {new}"]
