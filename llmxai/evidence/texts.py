"""How requests and token ids are written as texts, so that their digests can be made again with other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmxai.evidence.canonical import canonical


def request_texts(request: Mapping[str, Any]) -> dict[str, str]:
    """`input`: the prompt as it is, or the messages as canonical JSON; nothing where nothing was read yet.
    `foil`, where the answer is explained against another."""
    texts = {}
    if request.get("prompt") is not None:
        texts["input"] = str(request["prompt"])
    elif request.get("messages") is not None:
        texts["input"] = canonical(request["messages"]).decode()
    if request.get("foil") is not None:
        texts["foil"] = str(request["foil"])
    return texts


def id_text(ids: Sequence[int]) -> str:
    """Token ids as a text: `[1,2,3]`."""
    return json.dumps(list(ids), separators=(",", ":"))
