"""One question, one answer: is what lies at this path whole?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmxai.evidence.verifier.bundle import check_bundle, check_consistency
from llmxai.evidence.verifier.folder import check_folder
from llmxai.evidence.verifier.lines import Verification
from llmxai.evidence.verifier.proof import Checkpoint, read_checkpoint


def verify(path: Path | str, *, key: Ed25519PublicKey | None = None, held: Sequence[Checkpoint] = ()) -> Verification:
    """Check a run folder (or its `evidence/`), a bundle (.zip) or a consistency proof (.json)."""
    path = Path(path)
    if path.is_file() and held:
        verdict = Verification(str(path))
        verdict.add("unclear", "a held checkpoint is compared with the folder of a run; this is a file")
        return verdict
    if path.suffix == ".zip" and path.is_file():
        return check_bundle(path, key=key)
    if path.is_file():
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            verdict = Verification(str(path))
            verdict.add("unclear", f"is neither a folder, nor a bundle, nor a consistency proof ({error})")
            return verdict
        return check_consistency(document, key=key)
    return check_folder(path, key=key, held=held)


def read_held(path: Path | str) -> Checkpoint:
    """A checkpoint that was kept elsewhere: the last line of the file. Raises ValueError, or OSError."""
    lines = Path(path).read_bytes().strip().splitlines()
    if not lines:
        raise ValueError(f"{path}: is empty")
    try:
        return read_checkpoint(lines[-1])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
