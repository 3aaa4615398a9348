"""Small logs for the tests of evidence: no model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.environment import this_tool
from llmxai.evidence.files import describe
from llmxai.evidence.log import open_log
from llmxai.evidence.record import File, Record, RecordKind, new_id

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TIME = "2026-11-24T12:00:00.000Z"


def make_record(
    kind: RecordKind = RecordKind.EXPLANATION, *, artefacts: Sequence[File] = (), ended: str = TIME
) -> Record:
    return Record(new_id(), kind, "python", TIME, ended, this_tool(), artefacts=tuple(artefacts))


def make_run(
    run: Path, n: int = 5, *, signer: Ed25519PrivateKey | None = KEY, checkpoint_every: int = 1000, ended: str = TIME
) -> list[str]:
    """A run folder of `n` records, each with texts and a file of its own; returns the ids."""
    ids = []
    with open_log(run / "evidence", signer=signer, checkpoint_every=checkpoint_every) as log:
        for i in range(n):
            path = run / "files" / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"artefact {i} 😀\n", encoding="utf-8")
            record = make_record(artefacts=[describe(path, base=run)], ended=ended)
            log.append(record, texts={"input": f"question {i} ü", "output": "ja", "input_ids": f"[{i},2]"})
            ids.append(record.id)
    return ids
