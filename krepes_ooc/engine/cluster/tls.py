"""TLS certificates of a cluster: connections are encrypted, and both sides authenticate."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.errors import UsageError

KEYS = ("tls_ca", "tls_cert", "tls_key")
_ALL = ", ".join(KEYS)


@dataclass(frozen=True)
class Certificates:
    """Three files in PEM form; every process of the cluster must see them at these paths.

    Args:
        ca: certificate of the authority that signed all others of this cluster.
        cert: certificate of this side.
        key: its private key.
    """

    ca: Path
    cert: Path
    key: Path

    def security(self) -> Any:
        """Security settings of Distributed: only certificates of the authority may connect."""
        from distributed.security import Security

        return Security(  # type: ignore[no-untyped-call]
            require_encryption=True,
            tls_ca_file=str(self.ca),
            **{
                f"tls_{role}_{part}": str(file)
                for role in ("client", "scheduler", "worker")
                for part, file in (("cert", self.cert), ("key", self.key))
            },
        )


def temporary_security() -> Any:
    """Security settings with a key and a certificate that only this run and its workers have.

    They pass to the workers through the pipe by which a process starts another one.

    Raises:
        UsageError: cryptography is not installed, which makes them.
    """
    from distributed.security import Security

    try:
        return Security.temporary()  # type: ignore[no-untyped-call]
    except ImportError:
        raise UsageError(
            "cryptography is not installed",
            where="--cluster local",
            expected="certificates, without which other users of this machine could connect",
            advice="pip install cryptography",
        ) from None


def read_certificates(files: dict[str, str], folder: Path, where: str) -> Certificates | None:
    """The certificates that a site file names, or None if it names none.

    Args:
        files: value of each of ``KEYS``; relative paths begin at ``folder``.
        folder: of the site file.
        where: the site file, for messages.

    Raises:
        UsageError: some are named and some are not, a file is missing or cannot be read, or they
            do not belong together.
    """
    if not any(files.values()):
        return None
    if missing := [key for key in KEYS if not files[key]]:
        raise UsageError(f"{missing[0]} is not set", where=where, expected=f"all of {_ALL}")
    # Looked at now: later errors come from Distributed, in many lines.
    paths = {key: Path(os.path.realpath(folder / Path(files[key]).expanduser())) for key in KEYS}
    for key, path in paths.items():
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(
                f"{key} cannot be read ({error.strerror})",
                where=str(path),
                expected="a file in PEM form that you may read",
                advice=f"mend {where}",
            ) from error
    certificates = Certificates(*(paths[key] for key in KEYS))
    _check(certificates, where)
    return certificates


def _check(certificates: Certificates, where: str) -> None:
    # The ssl module reads the files as a connection would; a password would be asked for.
    try:
        context = ssl.create_default_context(cafile=str(certificates.ca))
    except (ssl.SSLError, ValueError) as error:
        raise _unfit("tls_ca", certificates.ca, error, where) from error
    try:
        context.load_cert_chain(certificates.cert, certificates.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise _unfit("tls_cert and tls_key", certificates.cert, error, where) from error


def _unfit(keys: str, path: Path, error: Exception, where: str) -> UsageError:
    # OpenSSL's short reason, such as NO_CERTIFICATE_OR_CRL_FOUND.
    reason = getattr(error, "reason", None) or str(error) or "no PEM"
    return UsageError(
        f"{keys} cannot be used ({str(reason).replace('_', ' ').lower()})",
        where=str(path),
        expected="a certificate, and the key that belongs to it, in PEM form without a password",
        advice=f"mend {where}",
    )
