"""How requests and token ids are written as texts, so that their digests can be made again with other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmxai.evidence.canonical import canonical


def request_texts(request: Mapping[str, Any]) -> dict[str, str]:
    """`input`: the prompt as it is, or the messages as canonical JSON; nothing where nothing was read yet."""
    if request.get("prompt") is not None:
        return {"input": str(request["prompt"])}
    if request.get("messages") is not None:
        return {"input": canonical(request["messages"]).decode()}
    return {}


def id_text(ids: Sequence[int]) -> str:
    """Token ids as a text: `[1,2,3]`."""
    return json.dumps(list(ids), separators=(",", ":"))
