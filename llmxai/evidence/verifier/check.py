"""Check whatever is at a path: a folder, a bundle or a consistency proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmxai.evidence.verifier.bundle import check_bundle, check_consistency
from llmxai.evidence.verifier.folder import check_folder
from llmxai.evidence.verifier.lines import Verification, parse_json, read_file
from llmxai.evidence.verifier.proof import Checkpoint, read_checkpoint, read_public_key

KEY_BYTES = 2**16
"""Largest size of a public key file."""


def verify(path: Path | str, *, key: Ed25519PublicKey | None = None, held: Sequence[Checkpoint] = ()) -> Verification:
    """Check a run folder (or its `evidence/`), a bundle (.zip) or a consistency proof (.json).

    Whatever is there, this finishes in linear time, reports its findings and raises nothing.
    """
    path, verdict = Path(path), Verification(str(path))
    try:
        if path.is_dir():
            return check_folder(path, key=key, held=held)
        if held:
            verdict.add("unclear", "a held checkpoint is compared with the folder of a run; this is a file")
        elif path.suffix == ".zip":
            return check_bundle(path, key=key)
        else:
            return check_consistency(parse_json(read_file(path.parent, path.name)), key=key)
    except FileNotFoundError:
        verdict.add("unclear", f"{path}: there is no such folder or file")
    except (ValueError, OSError, MemoryError) as error:
        verdict.add("unclear", f"is neither a folder, nor a bundle, nor a consistency proof ({error})")
    return verdict


def read_held(path: Path | str) -> Checkpoint:
    """A checkpoint that was kept elsewhere: the last line of the file. Raises ValueError, or FileNotFoundError."""
    try:
        return read_checkpoint(last_line(Path(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def last_line(path: Path) -> bytes:
    """The last line of a short file. Raises ValueError if there is none, or FileNotFoundError."""
    line = read_file(path.parent, path.name).strip().rpartition(b"\n")[2]
    if not line:
        raise ValueError("is empty")
    return line


def read_key(path: Path | str) -> Ed25519PublicKey:
    """The public key in a PEM file. Raises ValueError, or FileNotFoundError."""
    path = Path(path)
    return read_public_key(read_file(path.parent, path.name, most=KEY_BYTES))
