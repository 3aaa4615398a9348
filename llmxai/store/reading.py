"""Read an explanation's folder back (docs/explanation-folder.md). Needs no torch.

This is the only place where the files of an explanation are read. They may come from anyone: links are not followed,
only files are opened, and all values are checked before anything is computed from them.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from llmxai.errors import OutputError

SCHEMA = "llmxai.explanation/3"
READABLE = tuple(f"llmxai.explanation/{version}" for version in (1, 2, 3))
AGREEMENT = (
    *("spearman", "spearman_p", "recency_p", "adjusted_p", "kendall"),
    *("top_k", "top_k_overlap", "rank_biased_overlap", "jensen_shannon"),
)
BY_TOKEN, BY_UNIT, BY_HIDDEN = ("target", "seq"), ("target", "unit"), ("target", "hidden")
BY_STEP = ("followed", "traced")
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
    "trace_direct": ("target", "traced"),
    "trace_steps": BY_STEP,
    "trace_effects": BY_STEP,
    "trace_effects_undefined": BY_STEP,
}
"""The axes of each map; the other methods' maps are [target, seq]."""
NUMBERS = {
    **dict.fromkeys(("features", "removal_kept", "removal_hidden_undefined", "trace_effects_undefined"), "U8"),
    **dict.fromkeys(("removal_f", "removal_hidden_f", "effect", "effect_low", "effect_high"), "F64"),
    **dict.fromkeys(("trace_direct", "trace_steps", "trace_effects"), "F64"),
}
"""Their dtypes by the names of safetensors; F32 otherwise."""
LONGEST_DETAIL = 200
"""Characters of an error's own text that are quoted."""


CORE = ("layer_integrated_gradients", "deletion_path", "attention_rollout")
LARGEST_JSON = 2**28
"""Bytes."""
DEEPEST = 50
"""Levels of nested values."""
FIX = "Explain the answer again, or copy the folder again from where it came from."


def stored_name(method: str) -> str:
    """The name of the maps and sources of a method of `Settings.also` in a folder.

    Its own name, except for `leave_one_out`: the measured effects of the units already have that name.
    """
    return "leave_one_out.tokens" if method == "leave_one_out" else method


def others_of(scores: Iterable[str], variant: str | None) -> tuple[str, ...]:
    """The methods of `scores` besides both gradients, rollout and its variant, in order."""
    return tuple(method for method in scores if method not in (*CORE, variant))


def read_folder(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The parsed explanation.json and the maps, both as their schema says; an older schema is upgraded to the newest.

    Raises OutputError for a folder that is not ours or damaged, or whose maps do not match the explanation.
    """
    document = read_document(folder)
    return document, _read_maps(Path(folder), document)


def read_document(folder: Path | str) -> dict[str, Any]:
    """Only the parsed explanation.json, upgraded to the newest schema. Raises OutputError."""
    from llmxai.store.schema import require_upgradable, validated

    folder = Path(folder)
    try:
        document = read_json(folder / "explanation.json")
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: no explanation can be read from it ({short(error)}). {FIX}") from error
    if not isinstance(document, dict):
        raise OutputError(
            f"{folder}: its explanation.json holds a {type(document).__name__}; expected an object. {FIX}"
        )
    if document.get("schema") not in READABLE:
        known = " and ".join(map(repr, READABLE))
        said = ascii(document.get("schema"))[:LONGEST_DETAIL]
        raise OutputError(f"{folder}: its schema is {said} and this version reads {known}. {FIX}")
    try:
        require_upgradable(document)
        return validated(upgraded(document))
    except ValueError as error:
        raise OutputError(f"{folder}: its explanation.json does not match its schema: {short(error)} {FIX}") from error


def holds_explanation(folder: Path) -> bool:
    """Whether there is an explanation.json; no if nothing can be found out."""
    try:
        return (folder / "explanation.json").is_file()
    except OSError:
        return False


def read_json(path: Path) -> Any:
    """The values in a JSON file. Raises OSError, or ValueError for no file, a too large or too deep one, or no JSON."""
    require_file(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{path.name} has {size} bytes; expected at most {LARGEST_JSON}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    _require_shallow(values, path.name)
    return values


def require_file(path: Path) -> None:
    """Raise ValueError for anything but a file, a link to one included; OSError if there is nothing."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a link, and links are not followed" if stat.S_ISLNK(mode) else "no file"
        raise ValueError(f"{path.name} is {kind}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path.name} may not be read")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:20]}, which is not a number")
    return number


def _require_shallow(values: Any, name: str) -> None:
    """Raise ValueError for values that are nested too deeply, or a key that UTF-8 cannot hold."""
    level = [values]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise ValueError(f"{name} is nested more than {DEEPEST} levels deep")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        for key in value:
            key.encode()
        value = list(value.values())
    return [inner for inner in value if isinstance(inner, list | dict)] if isinstance(value, list) else []


def short(error: Exception) -> str:
    """An error's own text on one line, shortened, and without what a terminal would obey."""
    said = " ".join(str(error).split())[:LONGEST_DETAIL]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)


def not_as_promised(folder: Path | str, error: Exception) -> OutputError:
    """The error for a folder whose files do not match their schema."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return OutputError(
        f"{folder}: its explanation.json or maps.safetensors does not match its schema "
        f"({said[:LONGEST_DETAIL]}). Explain it again."
    )


def _read_maps(folder: Path, document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The maps, whose shapes and dtypes are checked before they are read."""
    path = folder / "maps.safetensors"
    try:
        require_file(path)
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            wrong = _misfit(document, {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()})
            maps = {} if wrong else {name: file.get_tensor(name) for name in parts}
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"{folder}: no explanation can be read from it ({short(error)}). {FIX}") from error
    wrong = wrong or _too_large(maps)
    if wrong:
        raise OutputError(f"{folder}: {wrong} The maps do not belong to this explanation.json. {FIX}")
    return maps


def _misfit(document: Mapping[str, Any], maps: Mapping[str, tuple[str, list[int]]]) -> str:
    """One sentence on the first map that is missing or has the wrong shape or dtype; empty if all are right."""
    ablations = document["ablations"]
    units, masks = (len(ablations["units"]), ablations["masks"]) if ablations is not None else (0, 0)
    axes = {"target": len(document["targets"]), "seq": len(document["tokens"]), "unit": units, "mask": masks}
    axes["unit + mask"] = units + masks
    axes["hidden"] = sum(unit["kind"] != "prompt" for unit in (document["effects"] or {"units": ()})["units"])
    traced = [] if document["trace"] is None else [unit["kind"] for unit in document["trace"]["units"]]
    axes |= {"traced": len(traced), "followed": traced.count("answer")}
    for name in _needed(document):
        if name not in maps:
            return f"maps.safetensors has no {name!r}."
    for name, (kind, shape) in maps.items():
        expected = [axes[axis] for axis in SHAPES.get(name, BY_TOKEN)]
        dtype = NUMBERS.get(name, "U8" if name.endswith(".features") else "F32")
        if (kind, shape) != (dtype, expected):
            shown = ascii(name)[:LONGEST_DETAIL]
            return f"its map {shown} is {kind} {shape}; expected {dtype} {expected}."
    return ""


def _needed(document: Mapping[str, Any]) -> list[str]:
    """The maps that must be there."""
    scores, variant = document["scores"], document["variant"] or {}
    others = others_of(scores, variant.get("method"))
    also = [stored_name(name) for name in others if scores[name]["refused"] is None]
    trace = [] if document["trace"] is None else ["trace_direct", "trace_steps", "trace_effects"]
    return ["integrated_gradients", *(["leave_one_out"] if document["ablations"] is not None else []), *also, *trace]


def _too_large(maps: Mapping[str, np.ndarray]) -> str:
    from llmxai.store.schema_parts import LARGEST

    for name, values in maps.items():
        if values.dtype.kind == "f" and not (np.abs(values) <= LARGEST).all():
            return f"its map {name!r} holds NaN, infinity or a number beyond {LARGEST:g}."
    return ""


def faults_of_trace(document: Any, trace: Any) -> Iterator[str]:
    """Of a document as `schema` has it: the units of its trace, and every list of shares that names them."""
    n, kinds = len(trace.units), [unit.kind for unit in trace.units]
    if kinds != sorted(kinds, reverse=True):
        yield "trace.units has units of the answer before some of the prompt; expected those of the prompt first."
    for name, parts in (("units", trace.units), ("passages", trace.passages)):
        yield from beyond(f"trace.{name}", [part.tokens for part in parts], len(document.tokens))
    for number, unit in enumerate(trace.units):
        if unit.row is None:
            continue
        (first, end), (start, stop) = unit.row, unit.tokens
        if not first <= start < stop <= end <= len(document.tokens):
            yield f"trace.units.{number}.row is [{first}, {end}]; expected a range that holds [{start}, {stop}]."
    if len(trace.rest) != len(document.targets):
        yield f"trace.rest is a list of {len(trace.rest)}; expected one for each of {len(document.targets)} targets."
    places = [(f"targets.{t}", target) for t, target in enumerate(document.targets)]
    places += [(f"trace.passages.{i}", passage) for i, passage in enumerate(trace.passages)]
    for place, shares in places:
        named = [*shares.direct, *shares.traced, *(step for source in shares.traced for step in source.path)]
        if any(share.unit >= n for share in named):
            yield f"{place} names a traced unit beyond the {n} of trace.units; expected one below {n}."


def beyond(name: str, ranges: Sequence[Sequence[int]], n: int) -> Iterator[str]:
    """A fault for each range that is empty or ends beyond `n` tokens."""
    for i, (start, stop) in enumerate(ranges):
        if not start < stop <= n:
            yield f"{name}.{i} is [{start}, {stop}]; expected a range of the {n} tokens."


def tokens_of(target: Mapping[str, Any]) -> Any:
    """The half-open range of a target's tokens; of one token in folders of earlier versions."""
    position = target.get("position")
    return target.get("tokens", [position, position + 1] if isinstance(position, int) else position)


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with empty values for everything that its schema did not have.

    /1 had no variant, no referee and no curve. /2 at first had no refusals, no comparison with full precision and no
    foil, and its `settings` are what /3 calls `computed`; the requested settings are None there. Rules up to 3 gave no
    verdict on attention of its own, and nothing measured the earlier words of the answer. Before the trace, every
    generated token was a target.
    """
    added = ("full_precision", "verdict", "effects", "trace")
    document = {"refusals": {}, "scores": {}, **dict.fromkeys(added), **document}
    if "computed" not in document:
        document |= {"computed": document["settings"], "settings": None}
    document["targets"] = [
        {
            **{"foil": None, "verdict": None, "deletion": None, "traced": [], "direct": [], **target},
            "tokens": tokens_of(target),
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
