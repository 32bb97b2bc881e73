"""The RKHS basis of an audit, computed from its sealed stores."""

from __future__ import annotations

from krepes_ooc.engine.device import Device, eigh_on
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.spectrum import nystrom
from krepes_ooc.storage.store_reader import StoreReader


def read_rkhs_basis(kernel: StoreReader, spectrum: StoreReader, device: Device) -> Basis:
    """Coordinates in which damping limits the RKHS norm of the step; on the host.

    All m eigenvectors of K_mm up to the usable rank are needed, the spectrum stores h of them.

    Args:
        kernel: reader of the sealed kernel, for K_mm.
        spectrum: reader of the sealed spectrum, for the usable rank.
        device: where the eigendecomposition runs.
    """
    K = kernel.whole("landmark_kernel")
    values, vectors = nystrom.eigenpairs(K, eigh_on(device))
    return Basis.rkhs(values, vectors, int(spectrum.attributes["usable_rank"]))
