"""One party's key, certificate and trusted authority, and the one file, mode 0600, that keeps the three
together.

One file, so that a renewal killed halfway can never pair a new certificate with an old key.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509

from medley.protocol.errors import PeerError, UserError
from medley.transports.identity.certificates import Peer, fingerprint_of, load_key, peer_identity

MAX_FILE_NBYTES: Final = 64 << 10
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What TLS needs, all PEM. The key never appears in a repr."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)
    authority_pem: bytes

    @property
    def peer(self) -> Peer:
        """Who we are."""
        return peer_identity(self.cert_pem)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Replace the file atomically; UserError when it cannot be written."""
        write_private(Path(path), self.key_pem + self.cert_pem + self.authority_pem)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Credentials:
        """UserError, one sentence, when the file is missing, readable by others, or not what `save` wrote."""
        where = Path(path)
        content = read_private(where)
        try:
            key, certificates = split(content)
            if len(certificates) < 2:
                raise ValueError("it must hold a certificate and its authority's")
            peer_identity(certificates[0])
        except (ValueError, PeerError) as error:
            raise UserError(f"{where} does not hold credentials of Medley ({error}): join again") from error
        return cls(certificates[0], key, b"".join(certificates[1:]))


def split(content: bytes) -> tuple[bytes, list[bytes]]:
    """(private key, certificates) of a file that holds both, all PEM; ValueError when they do not belong
    together."""
    key, *rest = content.split(_BEGIN)
    certificates = [_BEGIN + one for one in rest]
    if not certificates:
        raise ValueError("it holds no certificate")
    own = x509.load_pem_x509_certificate(certificates[0])
    if fingerprint_of(own.public_key()) != fingerprint_of(load_key(key).public_key()):
        raise ValueError("its key and its certificate do not belong together")
    return key, certificates


def write_private(path: Path, content: bytes, replace: bool = True) -> None:
    """Write a file that only its owner may read, atomically; UserError when that fails.

    Without `replace`, FileExistsError when somebody was first. Windows has no file modes: there the
    directory's access list protects it, which for a user's own profile admits only that user.
    """
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _write_new(temporary, content)
            os.replace(temporary, path) if replace else os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give a directory you may write to") from error


def read_private(path: Path) -> bytes:
    """The content of a file of ours; UserError when it is missing, too large, or readable by others."""
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_NBYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"{path} holds a private key and others may read it: run chmod 600 '{path}'")
    if len(content) > MAX_FILE_NBYTES:
        raise UserError(f"{path} has more than {MAX_FILE_NBYTES} bytes: it is not a file of keys")
    return content


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
