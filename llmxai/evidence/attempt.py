"""One attempt, one record: an explanation, a refusal or a failure.

with recording("runs/a/evidence", purpose="complaint 17") as attempt:
    attempt.request = {"prompt": "..."}
    explanation = explain(model, "...")
    save(explanation, "runs/a", attempt=attempt)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.errors import EvidenceError
from llmxai.evidence.build import entry_here, error_record, explanation_record
from llmxai.evidence.content import SecretKey
from llmxai.evidence.ids import new_id
from llmxai.evidence.keys import signing_key
from llmxai.evidence.log import Receipt, append, open_log
from llmxai.evidence.record import Entry, File
from llmxai.evidence.sign import utc_now
from llmxai.evidence.verifier.folder import LOG
from llmxai.types import Explanation


@dataclass
class Attempt:
    """What is known from the start, and what becomes known on the way."""

    folder: Path
    """Of the log: an `evidence/` folder."""
    id: str
    entry: Entry
    started: str
    requester: str | None = None
    purpose: str | None = None
    private: SecretKey | None = None
    signer: Ed25519PrivateKey | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    """`prompt` or `messages`, and `response` where one is given: what a refusal is recorded with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    receipt: Receipt | None = None
    """Set once the record is written."""

    def explained(
        self, explanation: Explanation, *, artefacts: Sequence[File] = (), warnings: Sequence[str] = ()
    ) -> Receipt:
        """Append the record of an explanation. `save` does this for whoever saves."""
        record, texts = explanation_record(
            explanation,
            id=self.id,
            entry=self.entry,
            started=self.started,
            ended=utc_now(),
            private=self.private is not None,
            requester=self.requester,
            purpose=self.purpose,
            options=self.options,
            artefacts=artefacts,
            warnings=(*self.warnings, *warnings),
        )
        self.receipt = append(self.folder, record, texts=texts, private=self.private, signer=self.signer)
        return self.receipt

    def ended_by(self, error: BaseException) -> Receipt:
        """Append the record of a refusal or a failure."""
        record, texts = error_record(
            error,
            id=self.id,
            entry=self.entry,
            started=self.started,
            ended=utc_now(),
            request=self.request,
            requester=self.requester,
            purpose=self.purpose,
            options=self.options,
        )
        self.receipt = append(self.folder, record, texts=texts, private=self.private, signer=self.signer)
        return self.receipt


def begin(
    folder: Path | str,
    *,
    entry: Entry | None = None,
    requester: str | None = None,
    purpose: str | None = None,
    private: SecretKey | None = None,
    signer: Ed25519PrivateKey | None = None,
) -> Attempt:
    """An attempt that starts now. Without a `signer` the environment's signing key is used, if there is one."""
    return Attempt(
        folder=Path(folder),
        id=new_id(),
        entry=entry or entry_here(),
        started=utc_now(),
        requester=requester,
        purpose=purpose,
        private=private,
        signer=signer or signing_key(),
    )


@contextmanager
def recording(
    folder: Path | str,
    *,
    entry: Entry | None = None,
    requester: str | None = None,
    purpose: str | None = None,
    private: SecretKey | None = None,
    signer: Ed25519PrivateKey | None = None,
) -> Iterator[Attempt]:
    """Whatever happens inside leaves one record in the log in `folder`.

    A log that is not whole is an EvidenceError at once, before any work. An error inside is recorded and raised
    again; where its record could not be kept, the error carries a note that says so.
    """
    attempt = begin(folder, entry=entry, requester=requester, purpose=purpose, private=private, signer=signer)
    if (attempt.folder / LOG).exists():
        with open_log(attempt.folder, signer=attempt.signer):
            pass
    try:
        yield attempt
        if attempt.receipt is None:
            attempt.ended_by(EvidenceError("Nothing was saved and no error was raised."))
    except BaseException as error:
        if attempt.receipt is None:
            try:
                attempt.ended_by(error)
            except EvidenceError as trouble:
                error.add_note(f"No record of this could be kept: {trouble}")
        raise
