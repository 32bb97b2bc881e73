"""Opening of a network: what it costs, what it found before, and the limit that a plan sets it.

Opening means the way to every gradient, the calibrated probes and the scales of the rows. For a
large network it takes minutes; each part is recorded as soon as it is finished, so that neither a
killed opening nor a worker computes it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from krepes_ooc.core.digests import canonical_digest
from krepes_ooc.core.files import checksummed_json, read_checksummed_file, write_atomic
from krepes_ooc.errors import DamageError, KrepesError
from krepes_ooc.jacobian.selection import named_failure
from krepes_ooc.network.frozen import FrozenNetwork

# Numbers in the results of one pass over a batch of calibration samples: 64 MiB of float32.
BATCH_NUMBERS = 2**24
MAX_BATCH = 64
MIN_BATCH = 2
# Calibration samples of a network whose samples are large; MAX_BATCH where they fit one batch.
FEW_SAMPLES = 3
# Openings shorter than this are not announced.
SILENT_SECONDS = 1.0
# Difference of outputs, relative to the largest: other processors round otherwise.
OUTPUT_TOLERANCE = 1e-3
# Raised when what is recorded gets another meaning.
VERSION = 2
T = TypeVar("T")


@dataclass(frozen=True)
class SampleSize:
    """Size of one sample inside the network, from shapes alone.

    Args:
        numbers: numbers in all results of one forward pass of one sample.
    """

    numbers: int

    @property
    def batch(self) -> int:
        """Samples of one calibration pass: a power of two."""
        fitting = BATCH_NUMBERS // max(1, self.numbers)
        return min(MAX_BATCH, max(MIN_BATCH, 1 << max(0, fitting.bit_length() - 1)))

    @property
    def n_calibration(self) -> int:
        """Samples that scales are fixed on and ways are tried on."""
        return MAX_BATCH if self.batch == MAX_BATCH else FEW_SAMPLES


class OpeningDeferred(Exception):
    """The opening would take longer than its limit.

    Args:
        n_passes: forward and backward passes of one sample that the opening takes.
        pass_seconds: processor time of a forward and backward pass of one sample.
        n_outputs: audited outputs.
        parameters: names of the audited parameters.
        n_probes: output directions of a row.
    """

    def __init__(
        self,
        n_passes: float,
        pass_seconds: float,
        n_outputs: int,
        parameters: tuple[str, ...],
        n_probes: int,
    ) -> None:
        self.n_passes = n_passes
        self.n_probes = n_probes
        self.seconds = n_passes * pass_seconds
        super().__init__(f"about {self.seconds:.0f} s of processor time")
        self.pass_seconds = pass_seconds
        self.n_outputs = n_outputs
        self.parameters = parameters


@dataclass
class Opening:
    """Record, announcements and limit of one opening.

    Args:
        path: file of the record, named after what is opened; None: nothing is kept.
        note: receives one line for the user.
        limit: processor seconds that the opening may take by its estimate; None: any.
    """

    path: Path | None = None
    note: Callable[[str], None] = lambda text: None
    limit: float | None = None
    pass_seconds: float = 0.0
    n_passes: float = 0.0
    _parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None:
            # A damaged record is no record, nor is that of another network or of other settings.
            with contextlib.suppress(DamageError, OSError):
                record = read_checksummed_file(self.path) or {}
                parts = record.get("parts")
                if record.get("of") == self.path.stem and isinstance(parts, dict):
                    self._parts = parts

    def found(self, key: str, **inputs: Any) -> Any:
        """The recorded part under this key for these inputs, or None.

        Args:
            key: name of the part.
            **inputs: JSON values that it depends on beside the network.
        """
        return self._parts.get(_part_key(key, inputs))

    def has(self, key: str) -> bool:
        """Whether a part under this key is recorded, whatever its inputs."""
        return any(known.split(" ")[0] == key for known in self._parts)

    def keep(self, key: str, value: Any, **inputs: Any) -> None:
        """Record a finished part.

        Args:
            key: name of the part.
            value: JSON.
            **inputs: as in ``found``.
        """
        self._parts[_part_key(key, inputs)] = value
        if self.path is None:
            return
        # A folder that cannot be written to costs the next opening its time, and nothing else.
        try:
            temp = self.path.parent.parent / "temp"
            record = {"of": self.path.stem, "parts": self._parts}
            write_atomic(self.path, checksummed_json(record), temp, sync=True)
        except KrepesError as error:
            self.note(f"opening: not recorded: {error}")

    def check_outputs(self, outputs: npt.NDArray[np.float32]) -> None:
        """Forget what was recorded of a network that gave other outputs on the same samples.

        Weights and classes are part of the record's name; the code of a forward pass is not.

        Args:
            outputs: outputs [sample, output] of the first calibration samples.
        """
        known = np.asarray(self.found("outputs") or [], dtype=np.float64)
        near = OUTPUT_TOLERANCE * float(np.abs(outputs).max())
        if known.shape == outputs.shape and np.allclose(known, outputs, rtol=0, atol=near):
            return
        self._parts = {}
        self.keep("outputs", outputs.astype(float).tolist())

    def measure(self, work: Callable[[], T], n_samples: int) -> T:
        """Time a forward and backward pass, from which all parts are estimated.

        Args:
            work: runs one over a few samples.
            n_samples: how many.

        Returns:
            What ``work`` gave.
        """
        started = time.process_time()
        result = work()
        self.pass_seconds = (time.process_time() - started) / n_samples
        return result

    def begin(
        self, n_passes: float, n_outputs: int, parameters: tuple[str, ...], n_probes: int
    ) -> None:
        """Announce the opening with an estimate, or defer it.

        Args:
            n_passes: forward and backward passes of one sample.
            n_outputs: audited outputs.
            parameters: names of the audited parameters.
            n_probes: output directions of a row.

        Raises:
            OpeningDeferred: the estimate is above the limit.
        """
        self.n_passes = n_passes
        seconds = n_passes * self.pass_seconds
        if self.limit is not None and seconds > self.limit:
            raise OpeningDeferred(n_passes, self.pass_seconds, n_outputs, parameters, n_probes)
        if seconds >= SILENT_SECONDS:
            self.note(
                f"opening the network: about {seconds:.0f} s of processor time "
                f"({n_passes:.0f} forward and backward passes of one sample); "
                "every finished part is recorded"
            )

    @contextlib.contextmanager
    def step(self, words: str, n_passes: float) -> Iterator[None]:
        """Announce one part of a long opening, and how long it took.

        Args:
            words: the part.
            n_passes: forward and backward passes of one sample.
        """
        seconds = n_passes * self.pass_seconds
        if seconds < SILENT_SECONDS:
            yield
            return
        self.note(f"opening: {words}, about {seconds:.0f} s")
        started = time.process_time()
        yield
        self.note(f"opening: {words}: done in {time.process_time() - started:.1f} s")


def sample_size(network: FrozenNetwork, inputs: npt.NDArray[Any]) -> SampleSize:
    """Size of one sample inside the network.

    Args:
        network: the frozen network.
        inputs: inputs [sample, ...]; the first one is run.

    Raises:
        NetworkError: the network does not run on it.
    """
    counter = _ResultCounter()
    sample = torch.tensor(inputs[:1])
    with torch.no_grad(), named_failure(network, inputs), counter:
        network(sample)
    return SampleSize(counter.numbers)


class _ResultCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count of the numbers in all new tensors of an operation; views are none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count its results."""
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        # Without alias information a result is new memory.
        for declared, value in zip(func._schema.returns, results, strict=False):
            if isinstance(value, torch.Tensor) and declared.alias_info is None:
                self.numbers += value.numel()
        return result


def network_identity(
    network: FrozenNetwork, calibration: npt.NDArray[Any], declared: Mapping[str, Any]
) -> str:
    """sha256 over weights, layers, calibration samples and what the recipe declares.

    Args:
        network: the frozen network.
        calibration: inputs [sample, ...].
        declared: JSON of factory, settings and seed.
    """
    digest = hashlib.sha256(f"{VERSION} {torch.__version__}".encode())
    digest.update(canonical_digest(dict(declared)).encode())
    for name, layer in network.named_modules():
        digest.update(f"{name} {type(layer).__qualname__}".encode())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # One tensor at a time: no second copy of the weights.
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    digest.update(f"{calibration.dtype} {calibration.shape}".encode())
    digest.update(np.ascontiguousarray(calibration).data)
    return digest.hexdigest()


def _part_key(key: str, inputs: Mapping[str, Any]) -> str:
    return f"{key} {canonical_digest(dict(inputs))[:16]}" if inputs else key
