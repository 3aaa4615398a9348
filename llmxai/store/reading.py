"""Read an explanation's folder back (docs/explanation-folder.md). Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from llmxai.errors import OutputError

SCHEMA = "llmxai.explanation/3"
READABLE = tuple(f"llmxai.explanation/{version}" for version in (1, 2, 3))
AGREEMENT = (
    *("spearman", "spearman_p", "recency_p", "adjusted_p", "kendall"),
    *("top_k", "top_k_overlap", "rank_biased_overlap", "jensen_shannon"),
)


def read_folder(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The parsed explanation.json and the maps, an older schema brought up to the newest (`upgraded`).

    Raises OutputError for a folder that is not ours.
    """
    folder = Path(folder)
    try:
        document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        maps = load_file(folder / "maps.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"{folder}: no explanation can be read there ({error}).") from error
    if not isinstance(document, dict):
        raise OutputError(f"{folder}: its explanation.json holds a {type(document).__name__}; expected an object.")
    if document.get("schema") not in READABLE:
        known = " and ".join(map(repr, READABLE))
        raise OutputError(f"{folder}: its schema is {document.get('schema')!r} and this version reads {known}.")
    return upgraded(document), maps


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with what its schema did not have, empty.

    /1 had no variant, no referee and no curve; /2 at first no refusals, no comparison of a quantised model with full
    precision and no foil, and its `settings` were what /3 calls `computed`: what was asked for is None there.
    """
    document = {"refusals": {}, "full_precision": None, "scores": {}, **document}
    if "computed" not in document:
        document |= {"computed": document["settings"], "settings": None}
    document["targets"] = [{"foil": None, **target} for target in document["targets"]]
    if "variant" in document:
        return document
    targets = [
        {
            **target,
            "agreement": {**dict.fromkeys(AGREEMENT), **target["agreement"]},
            "agreement_variant": dict.fromkeys(AGREEMENT),
            "rollout": {"similarity": None, **target["rollout"]},
            "rollout_variant": {},
            "curve": None,
            "referee": None,
            "sources": {**target["sources"], "rollout_variant": [], "leave_one_out": []},
        }
        for target in document["targets"]
    ]
    return {**document, "targets": targets, "ablations": None, "variant": None}
