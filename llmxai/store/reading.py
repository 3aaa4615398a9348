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
BY_TOKEN, BY_UNIT, BY_HIDDEN = ("target", "seq"), ("target", "unit"), ("target", "hidden")
SHAPES = {
    "integrated_gradients": BY_TOKEN,
    "features": BY_TOKEN,
    "rollout": BY_TOKEN,
    "rollout_null": BY_TOKEN,
    "rollout_variant": BY_TOKEN,
    "rollout_variant_null": BY_TOKEN,
    "leave_one_out": BY_UNIT,
    "removal_f": ("target", "unit + mask"),
    "removal_kept": ("mask", "unit"),
    "effect": BY_UNIT,
    "effect_low": BY_UNIT,
    "effect_high": BY_UNIT,
    "removal_hidden_f": BY_HIDDEN,
    "removal_hidden_undefined": BY_HIDDEN,
}
"""The axes of each map; the other methods' maps are [target, seq]."""
NUMBERS = {
    **dict.fromkeys(("features", "removal_kept", "removal_hidden_undefined"), "u1"),
    **dict.fromkeys(("removal_f", "removal_hidden_f", "effect", "effect_low", "effect_high"), "f8"),
}
"""Their dtypes by numpy's names; float32 otherwise."""
LONGEST_DETAIL = 200
"""Characters of an error's own text that are quoted."""


def stored_name(method: str) -> str:
    """The name of the maps and sources of a method of `Settings.also` in a folder.

    Its own name, except for `leave_one_out`: the measured effects of the units already have that name.
    """
    return "leave_one_out.tokens" if method == "leave_one_out" else method


def read_folder(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The parsed explanation.json and the maps; an older schema is upgraded to the newest.

    Raises OutputError for a folder that is not ours, or whose maps do not match the explanation.
    """
    folder = Path(folder)
    try:
        document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        maps = load_file(folder / "maps.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"{folder}: no explanation can be read from it ({error}).") from error
    if not isinstance(document, dict):
        raise OutputError(f"{folder}: its explanation.json holds a {type(document).__name__}; expected an object.")
    if document.get("schema") not in READABLE:
        known = " and ".join(map(repr, READABLE))
        raise OutputError(f"{folder}: its schema is {document.get('schema')!r} and this version reads {known}.")
    try:
        newest = upgraded(document)
        wrong = _misfit(newest, maps)
    except (AttributeError, KeyError, TypeError) as error:
        raise not_as_promised(folder, error) from error
    if wrong:
        raise OutputError(f"{folder}: {wrong} The maps do not belong to this explanation.json: explain again.")
    return newest, maps


def not_as_promised(folder: Path | str, error: Exception) -> OutputError:
    """The error for a folder whose files do not match their schema."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return OutputError(
        f"{folder}: its explanation.json or maps.safetensors does not match its schema "
        f"({said[:LONGEST_DETAIL]}). Explain it again."
    )


def _misfit(document: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> str:
    """One sentence on the first map with the wrong shape or dtype; empty if all are right."""
    ablations = document["ablations"]
    units, masks = (len(ablations["units"]), ablations["masks"]) if ablations is not None else (0, 0)
    axes = {"target": len(document["targets"]), "seq": len(document["tokens"]), "unit": units, "mask": masks}
    axes["unit + mask"] = units + masks
    axes["hidden"] = sum(unit["kind"] != "prompt" for unit in (document["effects"] or {"units": ()})["units"])
    if "integrated_gradients" not in maps:
        return "maps.safetensors has no 'integrated_gradients'."
    for name, values in maps.items():
        shape = tuple(axes[axis] for axis in SHAPES.get(name, BY_TOKEN))
        dtype = np.dtype(NUMBERS.get(name, "u1" if name.endswith(".features") else "f4"))
        if (values.shape, values.dtype) != (shape, dtype):
            return f"its map {name!r} is {values.dtype} {list(values.shape)}; expected {dtype} {list(shape)}."
    return ""


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with empty values for everything that its schema did not have.

    /1 had no variant, no referee and no curve. /2 at first had no refusals, no comparison with full precision and no
    foil, and its `settings` are what /3 calls `computed`; the requested settings are None there. Rules up to 3 gave no
    verdict on attention of its own, and nothing measured the earlier words of the answer.
    """
    document = {"refusals": {}, "full_precision": None, "scores": {}, "verdict": None, "effects": None, **document}
    if "computed" not in document:
        document |= {"computed": document["settings"], "settings": None}
    document["targets"] = [
        {
            **{"foil": None, "verdict": None, "deletion": None, **target},
            "sources": {"deletion_path": [], **target["sources"]},
        }
        for target in document["targets"]
    ]
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
