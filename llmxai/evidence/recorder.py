"""One attempt, one record: an explanation, a refusal or a failure.

with recording("runs/a/evidence", purpose="complaint 17") as attempt:
    attempt.request = {"prompt": "..."}
    explanation = explain(model, "...")
    save(explanation, "runs/a", attempt=attempt)
"""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.environment import this_tool
from llmxai.errors import EvidenceError, UserError
from llmxai.evidence.keys import key_id, signing_key
from llmxai.evidence.log import EvidenceLog, Receipt, append, open_log
from llmxai.evidence.record import Entry, Error, File, Method, Model, Outcome, Record, RecordKind, TargetRecord, new_id
from llmxai.evidence.sealing import SecretKey, canonical, plain, utc_now
from llmxai.evidence.verifier.folder import LOG

if TYPE_CHECKING:
    from llmxai.explanation import Explanation
    from llmxai.types import Generation


@dataclass
class Attempt:
    """The facts about one attempt, known from the start or added on the way."""

    folder: Path
    """Of the log: an `evidence/` folder."""
    log: EvidenceLog | None
    """The log, if it is kept open for many attempts."""
    id: str
    """Id of the record; the report names it before the record is written."""
    entry: Entry
    started: str
    requester: str | None = None
    purpose: str | None = None
    private: SecretKey | None = None
    """If set, only digests under this key are kept: no text, and no file that shows one."""
    signer: Ed25519PrivateKey | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    """`prompt` or `messages`, and `response` if given; recorded even with a refusal."""
    options: Mapping[str, Any] = field(default_factory=dict)
    drafts: bool = False
    """The record is not written here: it becomes a `draft` for the single writer of the log."""
    signed_by: str | None = None
    """Id of the key that signs the log, if this attempt does not hold the key itself."""
    receipt: Receipt | None = None
    """Set once the record is written."""
    draft: Draft | None = None

    @property
    def keyid(self) -> str | None:
        """Id of the key that will sign the record; None if it stays unsigned."""
        return self.signed_by if self.signer is None else key_id(self.signer.public_key())

    @property
    def kept(self) -> bool:
        return self.receipt is not None or self.draft is not None

    def keep(self, record: Record, texts: Mapping[str, str]) -> Receipt | None:
        """Append the record of this attempt; the log's new root is signed here, or when an open log is closed.

        None if the record became a draft.
        """
        if self.drafts:
            self.draft = Draft(record, texts)
            return None
        if self.log is not None:
            self.receipt = self.log.append(record, texts=texts, private=self.private)
            return self.receipt
        self.receipt = append(self.folder, record, texts=texts, private=self.private, signer=self.signer)
        return self.receipt


def begin(
    folder: Path | str | EvidenceLog,
    *,
    entry: Entry | None = None,
    requester: str | None = None,
    purpose: str | None = None,
    private: SecretKey | None = None,
    signer: Ed25519PrivateKey | None = None,
) -> Attempt:
    """An attempt that starts now, for callers that cannot use `recording`. Without a `signer` its record is unsigned.

    `folder`: of the log, or a log that `open_log` keeps open for many attempts (it signs with its own signer). Raises
    EvidenceError if the log in `folder` is damaged, before any work is done.
    """
    log = folder if isinstance(folder, EvidenceLog) else None
    attempt = Attempt(
        folder=folder.folder if isinstance(folder, EvidenceLog) else Path(folder),
        log=log,
        id=new_id(),
        entry=entry or ("notebook" if "ipykernel" in sys.modules else "python"),
        started=utc_now(),
        requester=requester,
        purpose=purpose,
        private=private,
        signer=signer if log is None else log.signer,
    )
    if log is None and (attempt.folder / LOG).exists():
        with open_log(attempt.folder, signer=attempt.signer):
            pass
    return attempt


@contextmanager
def recording(
    folder: Path | str | EvidenceLog,
    *,
    entry: Entry | None = None,
    requester: str | None = None,
    purpose: str | None = None,
    private: SecretKey | None = None,
    signer: Ed25519PrivateKey | None = None,
) -> Iterator[Attempt]:
    """The work inside leaves exactly one record in the log in `folder`. Without a `signer`, the signing key of the
    environment is used, if there is one.

    An error inside is recorded and raised again. If its record could not be kept, the error carries a note that says
    so. Raises EvidenceError at once if the log is damaged.
    """
    attempt = begin(folder, entry=entry, requester=requester, purpose=purpose, private=private, signer=signer)
    with keeping(attempt):
        if attempt.log is None:
            attempt.signer = signer or signing_key()
        yield attempt


@contextmanager
def drafting(folder: Path, *, id: str, entry: Entry, purpose: str, signed_by: str | None) -> Iterator[Attempt]:
    """Like `recording`, for one of several workers: the work inside leaves `attempt.draft`, which the single writer of
    the log in `folder` appends. An error inside is drafted and raised again.
    """
    attempt = Attempt(
        folder=folder,
        log=None,
        id=id,
        entry=entry,
        started=utc_now(),
        purpose=purpose,
        drafts=True,
        signed_by=signed_by,
    )
    with keeping(attempt):
        yield attempt


@contextmanager
def keeping(attempt: Attempt) -> Iterator[None]:
    """The work inside leaves exactly one record of an attempt that began earlier: an error is recorded before it
    propagates, and an attempt that saved nothing is an error too.

    What comes before it, such as finding the model, leaves no record if it fails.
    """
    try:
        yield
        if not attempt.kept:
            raise EvidenceError("This attempt ended without an explanation being saved.")
    except BaseException as error:
        if not attempt.kept:
            try:
                attempt.keep(*ended_by(error, attempt))
            except EvidenceError as trouble:
                error.add_note(f"No record of this could be kept: {trouble}")
        raise


def ended_by(error: BaseException, attempt: Attempt) -> tuple[Record, dict[str, str]]:
    """The record of an attempt that an error ended, and its texts: a refusal (UserError) or a failure (any other)."""
    refused = isinstance(error, UserError)
    record = Record(
        id=attempt.id,
        kind=RecordKind.REFUSAL if refused else RecordKind.FAILURE,
        entry=attempt.entry,
        started=attempt.started,
        ended=utc_now(),
        tool=this_tool(),
        requester=attempt.requester,
        purpose=attempt.purpose,
        options=attempt.options,
        error=Error(type(error).__name__, interrupted=isinstance(error, KeyboardInterrupt | SystemExit)),
    )
    texts = request_texts(attempt.request)
    if attempt.request.get("response") is not None:
        texts["output"] = str(attempt.request["response"])
    texts["error"] = str(error) if refused else "".join(traceback.format_exception(error))
    return record, texts


@dataclass(frozen=True)
class Draft:
    """The arguments of `EvidenceLog.append`."""

    record: Record
    texts: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"record": plain(self.record), "texts": dict(self.texts)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Draft:
        """Raises ValueError if the document is not a draft."""
        record = {name: value for name, value in document["record"].items() if name != "schema"}
        return cls(record=_reader().validate_python(record), texts=dict(document["texts"]))

    def entering(self, path: str, data: bytes) -> Draft:
        """The draft with the row's entry in the ledger, which is written once the record is in the log."""
        entered = File(path, len(data), hashlib.sha256(data).hexdigest())
        return replace(self, record=replace(self.record, entered=entered))


@cache
def _reader() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Record)


GIVEN_WITH_MESSAGES = ("documents", "documents_in", "tools", "chat_template_kwargs", "continue_final_message")


def request_texts(request: Mapping[str, Any]) -> dict[str, str]:
    """`input`: the prompt unchanged, or the messages as canonical JSON; empty if nothing was read yet. `context`:
    documents, tools and the like, if any, as canonical JSON. `foil`, if the answer is explained against another."""
    texts = {}
    if request.get("prompt") is not None:
        texts["input"] = str(request["prompt"])
    elif request.get("messages") is not None:
        texts["input"] = canonical(request["messages"]).decode()
    elif request.get("input_ids") is not None:
        texts["input"] = id_text(request["input_ids"])
    given = {name: request[name] for name in GIVEN_WITH_MESSAGES if request.get(name)}
    if given:
        texts["context"] = canonical(given).decode()
    if request.get("foil") is not None:
        texts["foil"] = str(request["foil"])
    return texts


def id_text(ids: Sequence[int]) -> str:
    """Token ids as a text: `[1,2,3]`."""
    return json.dumps(list(ids), separators=(",", ":"))


def explained(
    attempt: Attempt, explanation: Explanation, *, artefacts: Sequence[File] = (), warnings: Sequence[str] = ()
) -> Receipt | None:
    """Append the record of an explanation to the attempt's log (None: it became a draft). `save` calls this."""
    return attempt.keep(*explanation_record(attempt, explanation, artefacts=artefacts, warnings=warnings))


def explanation_record(
    attempt: Attempt, explanation: Explanation, *, artefacts: Sequence[File] = (), warnings: Sequence[str] = ()
) -> tuple[Record, dict[str, str]]:
    """The record and its texts: input, input_ids, output, output_ids, and context and foil if there are any."""
    record, texts = _answered(attempt, RecordKind.EXPLANATION, explanation.generation, explanation.environment)
    record = replace(
        record,
        method=_method(explanation),
        outcome=_outcome(explanation, private=attempt.private is not None),
        artefacts=tuple(artefacts),
        warnings=tuple(warnings),
    )
    return record, texts


def announce(attempt: Attempt, files: Sequence[File]) -> None:
    """Enter that these files are about to replace those of earlier records, before they do.

    Whatever interrupts the replacement, `verify` can then say so. Nothing is entered if the attempt has no log yet, or
    if its record becomes a draft.
    """
    if attempt.drafts or not (attempt.folder / LOG).exists():
        return
    now = utc_now()
    record = Record(new_id(), RecordKind.MANIFEST, attempt.entry, now, now, this_tool(), announced=tuple(files))
    if attempt.log is not None:
        attempt.log.append(record)
    else:
        append(attempt.folder, record, signer=attempt.signer)


def evaluated(attempt: Attempt, generation: Generation, *, environment: Mapping[str, Any]) -> Receipt | None:
    """Append the record of an answer that was evaluated but not explained (None: it became a draft)."""
    return attempt.keep(*_answered(attempt, RecordKind.EVALUATION, generation, environment))


def _answered(
    attempt: Attempt, kind: RecordKind, generation: Generation, environment: Mapping[str, Any]
) -> tuple[Record, dict[str, str]]:
    record = Record(
        id=attempt.id,
        kind=kind,
        entry=attempt.entry,
        started=attempt.started,
        ended=utc_now(),
        tool=this_tool(),
        requester=attempt.requester,
        purpose=attempt.purpose,
        options=attempt.options,
        model=_model(environment["model"]),
        hardware=dict(environment["hardware"]),
        input_tokens=generation.prompt_len,
        output_tokens=generation.n_targets,
        decoding={**generation.decoding, "stop": generation.stop},
    )
    return record, {
        **request_texts(generation.request),
        "input_ids": id_text(generation.ids[: generation.prompt_len]),
        "output": "".join(generation.texts[generation.prompt_len :]),
        "output_ids": id_text(generation.generated_ids),
    }


def _model(told: Mapping[str, Any]) -> Model:
    return Model(
        name=told["name"],
        revision=told["revision"],
        digest=told["digest"],
        weight_files=tuple(File(**each) for each in told.get("weight_files", ())),
        architecture=told["architecture"],
        parameters=told["parameters"],
        dtype=told["dtype"],
        device=told["device"],
        quantization=told["quantization"],
        adapter=told["adapter"],
        attention_kernel=told["attention"],
        tokenizer_digest=told.get("tokenizer_digest"),
        chat_template_digest=told.get("chat_template_digest"),
        config_digest=told.get("config_digest"),
        generation_config_digest=told.get("generation_config_digest"),
        remote_code=bool(told.get("remote_code", False)),
        identity=told.get("identity"),
    )


def _method(explanation: Explanation) -> Method:
    settings = {**explanation.computed, "asked": explanation.settings.to_dict()}
    return Method(
        names=tuple(name for name, scores in explanation.scores.items() if scores.refused is None),
        target=str(settings.get("target")),
        features=str(settings.get("features")),
        baseline=str(settings.get("baseline")),
        rule_version=dict(settings.get("crosscheck", {})).get("version"),
        settings=dict(settings),
    )


def _outcome(explanation: Explanation, *, private: bool) -> Outcome:
    certificate = explanation.gradients.certificate
    assert certificate is not None
    gaps = [float(gap) for gap in certificate.gap]
    largest = max((abs(gap) for gap in gaps), default=None)
    targets = tuple(
        TargetRecord(
            position=explanation.targets[t].tokens[0],
            tokens=len(explanation.targets[t].positions),
            status=str(check.status),
            gap=gaps[t],
            local_error=float(certificate.local_error[t]),
            tolerance=float(certificate.tolerance[t]),
            nodes=certificate.nodes[t],
            check=_figures(check),
        )
        for t, check in enumerate(explanation.checks)
    )
    return Outcome(
        statuses=dict(Counter(str(check.status) for check in explanation.checks)),
        largest_gap=float(f"{largest:.2g}") if private and largest is not None else largest,
        targets=() if private else targets,
    )


def _figures(part: Any) -> dict[str, Any]:
    """The figures and statuses of a check, by name; its sentences, which may quote the text, and lists stay in
    explanation.json."""
    named = part if isinstance(part, Mapping) else {each.name: getattr(part, each.name) for each in fields(part)}
    parts = {name: value for name, value in named.items() if isinstance(value, Mapping) or is_dataclass(value)}
    inner = {name: _figures(value) for name, value in parts.items()}
    own = {name: value for name, value in named.items() if value is None or isinstance(value, int | float | StrEnum)}
    return own | {name: figures for name, figures in inner.items() if figures}
