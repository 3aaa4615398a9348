"""The fields of one record of the log, versioned; docs/record.schema.json is generated from them.

A record contains no texts, only their keyed digests. The texts are stored next to the log (content.jsonl), so they can
be removed later while the chain stays intact.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from llmxai.environment import Tool

SCHEMA: Literal["llmxai.record/2"] = "llmxai.record/2"


def new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"


def derived_id(*parts: str) -> str:
    """24 hex digits of SHA-256 over the parts: the same work gets the same id, wherever it is done."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


class RecordKind(StrEnum):
    """`explanation`: one was made. `refusal`: the request could not be fulfilled, and the user can correct it.
    `failure`: a bug or an interrupt. `evaluation`: methods were scored on an answer, and none was explained.

    `manifest` lists the files of a run that no other record names; it replaces the manifest before it, and one without
    files says that they are about to change, or that the files that it has `announced` are about to replace those of an
    earlier explanation. The others refer to earlier records: `review` is a reviewer's decision,
    `redaction` and `prune` say that texts and files were removed on purpose, `repair` that a torn line was cut off.
    """

    EXPLANATION = "explanation"
    REFUSAL = "refusal"
    FAILURE = "failure"
    REVIEW = "review"
    REDACTION = "redaction"
    PRUNE = "prune"
    REPAIR = "repair"
    EVALUATION = "evaluation"
    MANIFEST = "manifest"


Entry = Literal["cli", "python", "notebook", "recipe"]
"""Where the request came from."""


@dataclass(frozen=True)
class File:
    """One file. `path` is relative to the folder that holds `evidence/`, with `/` between its parts."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Model:
    name: str
    revision: str | None
    digest: str | None
    """SHA-256 of the weight file, or over the digests of several in order of name."""
    weight_files: tuple[File, ...]
    """Empty if the weights were only in memory."""
    architecture: str
    parameters: int
    dtype: str
    device: str
    quantization: str | None
    adapter: str | None
    attention_kernel: str | None
    tokenizer_digest: str | None
    chat_template_digest: str | None
    config_digest: str | None = None
    generation_config_digest: str | None = None
    remote_code: bool = False
    """Whether code from the model's folder was allowed to run."""
    identity: str | None = None
    """SHA-256 over all that decides what it computes: weights, adapter, configuration, tokenizer, template, dtype."""


@dataclass(frozen=True)
class Method:
    """How the explanation was computed; `settings` holds every option, with thresholds and the rule's version."""

    names: tuple[str, ...]
    target: str
    features: str
    baseline: str
    rule_version: int | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class TargetRecord:
    """What was explained: a generated token, or a run of `tokens`. Units: nats. `check` holds the figures of the
    cross-check behind the status."""

    position: int
    status: str
    gap: float
    local_error: float
    tolerance: float
    nodes: int
    check: Mapping[str, Any]
    tokens: int = 1


@dataclass(frozen=True)
class Outcome:
    """`statuses` counts targets by status. `targets` is empty for a private record: exact figures would
    identify a text to anyone with the model."""

    statuses: Mapping[str, int]
    largest_gap: float | None
    targets: tuple[TargetRecord, ...] = ()


@dataclass(frozen=True)
class Error:
    """The error that ended the work; its message is among the texts."""

    type: str
    interrupted: bool = False


@dataclass(frozen=True)
class Content:
    """Where the texts are. `stored`: in content.jsonl, on the line with this SHA-256. `private`: nowhere; the digests
    are under the secret key with this id. `none`: there are none."""

    mode: Literal["stored", "private", "none"] = "none"
    sha256: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Link:
    """Reference to earlier records. `by` is a pseudonym; `paths` are the files that a redaction or prune removes."""

    records: tuple[str, ...]
    by: str | None = None
    decision: str | None = None
    reason: str | None = None
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One event. Times are UTC, ISO 8601 with milliseconds, by the machine's own clock.

    `digests` maps the name of each text (input, context, input_ids, output, output_ids, foil, error, note) to its
    HMAC-SHA256, under a salt that is stored with the text or, for a private record, under the secret key.
    """

    id: str
    kind: RecordKind
    entry: Entry
    started: str
    ended: str
    tool: Tool
    requester: str | None = None
    purpose: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options as given, without the texts; for a refusal, all that is known."""
    model: Model | None = None
    hardware: Mapping[str, Any] = field(default_factory=dict)
    input_tokens: int | None = None
    output_tokens: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    content: Content = Content()
    decoding: Mapping[str, Any] = field(default_factory=dict)
    method: Method | None = None
    outcome: Outcome | None = None
    error: Error | None = None
    link: Link | None = None
    artefacts: tuple[File, ...] = ()
    entered: File | None = None
    """The entry of the row in the ledger of its run, which is written after this record."""
    announced: tuple[File, ...] = ()
    """Of a manifest: files that are about to replace those of earlier records, with the digests that they will have."""
    warnings: tuple[str, ...] = ()
    schema: Literal["llmxai.record/2"] = SCHEMA


@dataclass(frozen=True)
class Chain:
    """The place of a record in its log. `prev` is the hash of the record before it, 64 zeros for the first."""

    log: str
    seq: int
    prev: str


@dataclass(frozen=True)
class _Logged(Record):
    chain: Chain = field(default_factory=lambda: Chain("", 0, ""))


def record_schema() -> dict[str, Any]:
    """Draft 2020-12; every field is required, and no other is allowed."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(_Logged).json_schema(mode="serialization")
    definitions = schema.pop("$defs", {})
    for each in (schema, *definitions.values()):
        if each.get("type") == "object" and "properties" in each:
            each["required"] = sorted(each["properties"])
            each["additionalProperties"] = False
            for value in each["properties"].values():
                value.pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        **schema,
        "title": SCHEMA,
        "description": "One record of an llmxai evidence log; see docs/verify.md.",
        "$defs": dict(sorted(definitions.items())),
    }


def schema_text() -> str:
    return json.dumps(record_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
