"""Keys: from a file that only its owner can read, or from the environment; created only on request."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from llmxai.errors import KeyFileError
from llmxai.evidence.sealing import SecretKey
from llmxai.evidence.verifier.proof import key_id, read_public_key

SIGNING = "LLMXAI_SIGNING_KEY"
"""Contains the private key in PEM; `LLMXAI_SIGNING_KEY_FILE` names a file instead."""
PRIVATE = "LLMXAI_PRIVATE_KEY"
"""Contains the secret of private digests, 64 hex digits; `LLMXAI_PRIVATE_KEY_FILE` names a file instead."""
SECRET_BYTES = 32


def new_signing_key(path: Path | str) -> Ed25519PublicKey:
    """Create an Ed25519 key: PKCS#8 PEM in `path` (mode 600), the public key in `path`.pub.

    Raises KeyFileError if either file exists or cannot be written.
    """
    path = Path(path)
    public_path = path.with_name(path.name + ".pub")
    if public_path.exists():
        raise KeyFileError(f"{public_path}: exists and is left alone. Choose another name for the key.")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(path, pem, mode=0o600)
    _write(public_path, public_pem(key.public_key()), mode=0o644)
    return key.public_key()


def new_secret_key(path: Path | str) -> SecretKey:
    """Create a secret for private digests in `path` (mode 600). Raises KeyFileError as `new_signing_key` does."""
    key = SecretKey(secrets.token_bytes(SECRET_BYTES))
    _write(Path(path), key.value.hex().encode() + b"\n", mode=0o600)
    return key


def signing_key(path: Path | str | None = None) -> Ed25519PrivateKey | None:
    """The signing key from `path`, else from the environment, else None: the log then stays unsigned."""
    pem, where = _find(path, SIGNING)
    if pem is None:
        return None
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (TypeError, ValueError) as error:
        raise KeyFileError(
            f"{where}: is not an unencrypted private key in PEM ({error}). `llmxai keys new FILE` makes one."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{where}: is a {type(key).__name__}; expected Ed25519 (`llmxai keys new FILE`).")
    return key


def secret_key(path: Path | str | None = None) -> SecretKey:
    """The secret of private digests from `path`, else from the environment. Raises KeyFileError if there is none."""
    text, where = _find(path, PRIVATE)
    if text is None:
        raise KeyFileError(
            f"--private needs a secret key: `llmxai keys new --private FILE` creates one; then set "
            f"{PRIVATE}_FILE=FILE. Keep it apart from the log: with the key, texts can be matched; without it, never."
        )
    try:
        value = bytes.fromhex(text.decode("ascii").strip())
    except ValueError as error:
        raise KeyFileError(
            f"{where}: is not a secret in hex digits. `llmxai keys new --private FILE` makes one."
        ) from error
    if len(value) < SECRET_BYTES:
        raise KeyFileError(f"{where}: holds {len(value)} bytes; a secret key has at least {SECRET_BYTES}.")
    return SecretKey(value)


def public_key(path: Path | str) -> Ed25519PublicKey:
    """The public key in `path`, or the public half of the private key there."""
    path = Path(path)
    try:
        pem = path.read_bytes()
        if b"PRIVATE KEY" not in pem:
            return read_public_key(pem)
    except (OSError, ValueError) as error:
        raise KeyFileError(
            f"{path}: no Ed25519 public key can be read from it ({error}). Give a file that `llmxai keys new` made."
        ) from error
    key = signing_key(path)
    assert key is not None
    return key.public_key()


def public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _find(path: Path | str | None, variable: str) -> tuple[bytes | None, str]:
    """The key's bytes and where they come from."""
    if path is None:
        if text := os.environ.get(variable):
            return text.encode(), variable
        path = os.environ.get(f"{variable}_FILE") or None
    if path is None:
        return None, ""
    path = Path(path)
    try:
        if path.is_dir():
            raise KeyFileError(
                f"{path}: is a folder; expected a key file. Give a file, as `llmxai keys new FILE` makes."
            )
        mode = path.stat().st_mode
        if os.name == "posix" and mode & 0o077:
            raise KeyFileError(f"{path}: others may read it (mode {mode & 0o777:o}). Restrict it: chmod 600 {path}")
        return path.read_bytes(), str(path)
    except OSError as error:
        raise KeyFileError(
            f"{path}: the key cannot be read ({error}). Check the path; `llmxai keys new FILE` creates a key."
        ) from error


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """A new file, at no moment readable by others."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise KeyFileError(f"{path}: exists and is left alone. Choose another name for the key.") from error
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written ({error}). Choose another place for the key.") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


__all__ = ["key_id", "new_secret_key", "new_signing_key", "public_key", "public_pem", "secret_key", "signing_key"]
