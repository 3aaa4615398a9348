"""Records: their canonical form, their schema, and what stands in them."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import KEY, make_record, make_run

from llmxai.evidence.log import read_log
from llmxai.evidence.record import Record, RecordKind, schema_text
from llmxai.evidence.redaction import redact, review
from llmxai.evidence.sealing import SecretKey, canonical, plain, sealed

DOCS = Path(__file__).parents[2] / "docs"


def test_the_schema_in_the_docs_is_the_one_of_the_types() -> None:
    assert (DOCS / "record.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "write it again: python -m llmxai.evidence.record > docs/record.schema.json"
    )


def test_records_have_the_schema(tmp_path: Path) -> None:
    ids = make_run(tmp_path, 2)
    review(tmp_path, ids[0], decision="rejected", by="r1", note="no", signer=KEY)
    redact(tmp_path, ids[1], reason="asked", signer=KEY)
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    for _, record in read_log(tmp_path):
        validator.validate(json.loads(record))
    broken = json.loads(record) | {"kind": "rumour"}
    assert not validator.is_valid(broken)
    assert not validator.is_valid({**json.loads(record), "more": 1})


def test_every_kind_and_field_is_in_the_schema() -> None:
    schema = json.loads(schema_text())
    assert {each.name for each in fields(Record)} | {"chain"} == set(schema["properties"]) == set(schema["required"])
    assert set(schema["$defs"]["RecordKind"]["enum"]) == {str(kind) for kind in RecordKind}


def test_canonical_bytes_of_the_rfc() -> None:
    """RFC 8785, 3.2.2 and 3.2.3: numbers, escapes and the order of keys."""
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '€$\u000f\u000aA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert canonical(value) == (
        b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


@dataclass(frozen=True)
class Odd:
    number: float
    big: int
    path: Path
    kinds: tuple[RecordKind, ...]
    text: str


def test_what_json_cannot_hold() -> None:
    odd = Odd(math.nan, 2**64, Path("a/b"), (RecordKind.REVIEW,), "half \ud800 pair")
    assert plain(odd) == {
        "number": None,
        "big": str(2**64),
        "path": "a/b",
        "kinds": ["review"],
        "text": "half \\ud800 pair",
    }
    json.loads(canonical(odd))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e15, 1e15) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_canonical_is_stable(value: object) -> None:
    once = canonical(value)
    assert canonical(json.loads(once)) == once
    assert b"\n" not in once


def test_digests_of_stored_texts() -> None:
    record, line = sealed(make_record(), {"input": "Ümlaut", "output": ""}, private=None)
    assert line is not None
    stored = json.loads(line)
    salt = bytes.fromhex(stored["salt"])
    assert len(salt) == 32
    assert record.digests["input"] == hmac.new(salt, "Ümlaut".encode(), hashlib.sha256).hexdigest()
    assert record.content.sha256 == hashlib.sha256(line).hexdigest()
    again, _ = sealed(make_record(), {"input": "Ümlaut"}, private=None)
    assert again.digests["input"] != record.digests["input"]  # a salt of its own


def test_private_texts_are_kept_nowhere() -> None:
    key = SecretKey(b"k" * 32)
    record, line = sealed(make_record(), {"input": "secret"}, private=key)
    assert line is None
    assert (record.content.mode, record.content.key) == ("private", key.id)
    assert record.digests["input"] == hmac.new(b"k" * 32, b"secret", hashlib.sha256).hexdigest()
    assert b"secret" not in canonical(record)


@pytest.mark.parametrize("private", [None, SecretKey(b"k" * 32)])
def test_no_text_no_content(private: SecretKey | None) -> None:
    record, line = sealed(make_record(), {}, private=private)
    assert (record.content.mode, record.digests, line) == ("none", {}, None)
