"""The JSON Schema of a record, generated from the types in record.py.

    python -m llmxai.evidence.schema > docs/record.schema.json

Needs pydantic, which nothing else here does. A test compares the file with what the types say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from llmxai.evidence.record import SCHEMA, Chain, Record


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
