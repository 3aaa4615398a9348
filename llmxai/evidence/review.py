"""A reviewer's sign-off: a later record that refers to the first, never an edit."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.evidence.content import SecretKey
from llmxai.evidence.ids import new_id
from llmxai.evidence.log import Receipt, append
from llmxai.evidence.reading import find, read_log
from llmxai.evidence.record import Kind, Link, Record
from llmxai.evidence.sign import utc_now
from llmxai.evidence.tool import this_tool
from llmxai.evidence.verifier.folder import evidence_of


def review(
    run: Path | str,
    id: str,
    *,
    decision: str,
    by: str,
    note: str | None = None,
    private: SecretKey | None = None,
    signer: Ed25519PrivateKey | None = None,
) -> Receipt:
    """Append a decision about a record. `by` is a pseudonym and stays in the record; the note is a text, and can be
    redacted. Raises EvidenceError for an unknown record or a log that is not whole.
    """
    entry, _ = find(read_log(run), id)
    now = utc_now()
    record = Record(
        id=new_id(),
        kind=Kind.REVIEW,
        entry="python",
        started=now,
        ended=now,
        tool=this_tool(),
        link=Link(records=(entry.id,), by=by, decision=decision),
    )
    texts = {} if note is None else {"note": note}
    return append(evidence_of(Path(run)), record, texts=texts, private=private, signer=signer)
