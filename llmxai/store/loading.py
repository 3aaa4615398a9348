"""Load an explanation's folder as an `Explanation`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmxai.errors import OptionError, OutputError
from llmxai.explanation import DELETION, GRADIENTS, ROLLOUT, Explanation
from llmxai.methods import contrast_target, span_target
from llmxai.settings import settings_from
from llmxai.store.context import context_from
from llmxai.store.reading import SCHEMA, not_as_promised, read_folder, stored_name
from llmxai.trace import Trace
from llmxai.types import (
    Certificate,
    CrossCheck,
    DilutionCurve,
    Effects,
    FullPrecision,
    Generation,
    Replay,
    Scores,
    Target,
)

Maps = Mapping[str, np.ndarray]
GENERATION = ("prompt_len", "stop", "request", "decoding", "source_len", "classes", "read_at")
DILUTION = ("sink_mass", "feature_mass", "entropy", "null_divergence", "similarity")
ENDS = {"effect": "effect", "low": "effect_low", "high": "effect_high"}
"""The maps of the estimated effects, by field."""
CURVE = ("sink_mass", "entropy", "null_divergence", "similarity")


def load_explanation(folder: Path | str) -> Explanation:
    """The explanation that `llmxai explain` or `save` wrote into `folder`. No model is needed.

    Its scores are those of the maps: float64 values rounded to float32.

    >>> load_explanation("runs/france")["Paris"].top(3)

    Raises OutputError for a folder that is damaged, not ours, or from an earlier version (`llmxai report` still reads
    those).
    """
    document, maps = read_folder(folder)
    if document["schema"] != SCHEMA:
        raise OutputError(
            f"{folder}: was written with schema {document['schema']!r}, which does not hold all that an Explanation "
            f"needs. `llmxai report` and `llmxai table` can rebuild its page and tables; explain the answer again for "
            f"the rest."
        )
    try:
        return from_json(document, maps)
    except (AttributeError, LookupError, TypeError, ValueError, OptionError) as error:
        raise not_as_promised(folder, error) from error


def from_json(document: Mapping[str, Any], maps: Maps) -> Explanation:
    """From a parsed explanation.json of the newest schema and its maps.

    Raises ValueError, TypeError, LookupError, AttributeError or OptionError if they violate the schema.
    """
    generation = _generation(document)
    settings = settings_from(document["settings"])
    computed = {**document["computed"], "variant": document["variant"]}
    targets, said = document["targets"], _said(document)
    logprobs = _all(float, said, "replayed_logprob")
    f = {target["tokens"][0]: _f(target) for target in targets if target["foil"] is not None}
    replay = Replay(
        logprobs=logprobs,
        f=tuple(f.get(generation.prompt_len + t, logprob) for t, logprob in enumerate(logprobs)),
        ranks=_all(int, said, "rank"),
        tolerance=computed["replay_tolerance"],
    )
    names = {GRADIENTS: "integrated_gradients", ROLLOUT: "rollout", settings.rollout.variant: "rollout_variant"}
    if missing := {*names, DELETION} - document["scores"].keys():
        raise LookupError(f"scores has no {', '.join(sorted(missing))}")
    return Explanation(
        generation=generation,
        targets=tuple(_target(generation, target) for target in targets),
        replay=replay,
        scores={name: _scores(name, names.get(name), document, maps, generation) for name in document["scores"]},
        effects=_effects(document, maps),
        trace=_trace(document, maps),
        checks=tuple(_check(target) for target in targets),
        settings=settings,
        computed=computed,
        environment=_read(dict[str, Any], document["environment"]),
        created=_read(str, document["created"]),
        full_precision=_full_precision(document["full_precision"]),
    )


def _read(kind: Any, values: Any) -> Any:
    """`values` as a `kind` (a type or a dataclass), without conversion. Raises ValueError if they do not match."""
    return _adapter(kind).validate_json(json.dumps(values), strict=True)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _f(target: Mapping[str, Any]) -> float:
    """F with the real input; older folders have one F of all methods."""
    return float(_read(float, target.get("f", target["f_input"])))


def _said(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Log-probs and rank of every generated token: of the token or, in older folders, of its target."""
    tokens = document["tokens"][document["generation"]["prompt_len"] :]
    own = {target["tokens"][0]: target for target in document["targets"]}
    return [token if token.get("rank") is not None else own[token["index"]] for token in tokens]


def _target(generation: Generation, told: Mapping[str, Any]) -> Target:
    first, end = (place - generation.prompt_len for place in told["tokens"])
    if told["foil"] is not None:
        return contrast_target(generation, t=first, foil=told["foil"]["id"])
    return span_target(generation, first=first, end=end)


def _trace(document: Mapping[str, Any], maps: Maps) -> Trace | None:
    told = document["trace"]
    if told is None:
        return None
    return Trace(
        method=_read(str, told["method"]),
        units=_read(tuple[tuple[int, int], ...], [unit["tokens"] for unit in told["units"]]),
        n_sources=sum(unit["kind"] == "prompt" for unit in told["units"]),
        direct=_double(maps["trace_direct"]),
        steps=_double(maps["trace_steps"]),
        effects=_double(maps["trace_effects"]).masked_fill(_bool(maps["trace_effects_undefined"]), torch.nan),
        rows=_read(
            tuple[tuple[int, int] | None, ...],
            [unit.get("row", unit["tokens"]) for unit in told["units"] if unit["kind"] == "answer"],
        ),
    )


def _all(kind: Any, targets: Sequence[Mapping[str, Any]], name: str) -> tuple[Any, ...]:
    return tuple(_read(list[kind], [target[name] for target in targets]))


def _generation(document: Mapping[str, Any]) -> Generation:
    told, tokens, targets = document["generation"], document["tokens"], document["targets"]
    recorded = [token["logprob"] for token in _said(document)]
    foils = [
        {"t": target["tokens"][0] - told["prompt_len"], **target["foil"]}
        for target in targets
        if target["foil"] is not None
    ]
    generation: Generation = _read(
        Generation,
        {
            "ids": [token["id"] for token in tokens],
            "roles": [token["role"] for token in tokens],
            "texts": [token["text"] for token in tokens],
            "words": document["words"],
            "logprobs": None if None in recorded else recorded,
            "foil": foils[0] if foils else None,
            "parts": document.get("parts", ()),  # older folders have neither
            "notes": told.get("notes", ()),
            **{name: told[name] for name in GENERATION},
        },
    )
    return generation


def _scores(name: str, map_name: str | None, document: Mapping[str, Any], maps: Maps, generation: Generation) -> Scores:
    """`map_name`: the name of the map, for the three methods that every explanation has."""
    told, targets, n = document["scores"][name], document["targets"], len(generation.ids)
    signed, settings, refused = _read(bool, told["signed"]), told["settings"], _read(str | None, told["refused"])
    if refused is not None:
        nothing = torch.zeros(len(targets), n, dtype=torch.float64)
        return Scores(name, nothing, nothing.bool(), signed, settings, refused=refused)
    own = map_name or stored_name(name)
    values = _float(maps[own])
    if name == GRADIENTS:
        return Scores(name, values, _bool(maps["features"]), signed, settings, certificate=_certificate(targets))
    if map_name is None:
        null = maps.get(f"{own}.null")
        features = _bool(maps[f"{own}.features"])
        return Scores(
            name,
            values,
            features,
            signed,
            settings,
            certificate=_certificate([target["deletion"] for target in targets]) if name == DELETION else None,
            null=None if null is None else _float(null),
        )
    last = [_target(generation, target).last for target in targets]
    return Scores(
        name,
        values,
        torch.arange(n) <= torch.tensor(last)[:, None],
        signed,
        settings,
        null=_float(maps[f"{own}_null"]),
        lost_mass=_column([target[own]["lost_mass"] for target in targets]),
        curve=_curve([target["curve"] for target in targets]) if name == ROLLOUT else None,
    )


def _certificate(targets: Sequence[Mapping[str, Any]]) -> Certificate:
    numbers = ("f_input", "f_baseline", "gap", "local_error", "tolerance")
    floors = [target["floor"] for target in targets if target.get("floor") is not None]  # older folders have none
    return Certificate(
        **{name: _column([target[name] for target in targets]) for name in numbers},
        nodes=_all(int, targets, "nodes"),
        converged=_all(bool, targets, "converged"),
        floor=_column(floors) if floors else None,
    )


def _curve(curves: Sequence[Mapping[str, Sequence[float]] | None]) -> DilutionCurve | None:
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    return DilutionCurve(**{name: _table([curve[name] for curve in known]) for name in CURVE})


OWN_KEYS = ("operator", "units", "masks", "answer_drop")
"""Of `ablations`: the others are settings."""


def _effects(document: Mapping[str, Any], maps: Maps) -> Effects | None:
    told = document["ablations"]
    if told is None:
        return None
    units = _read(tuple[tuple[int, int], ...], told["units"])
    f = _double(maps["removal_f"])
    measured = document["effects"]
    hidden = [unit["tokens"] for unit in measured["units"] if unit["kind"] != "prompt"]
    estimated = bool(maps.keys() & set(ENDS.values()))
    ends: dict[str, Any] = {field: _double(maps[name]) for field, name in ENDS.items()} if estimated else {}
    return Effects(
        operator=_read(str, told["operator"]),
        units=units,
        kept=_bool(maps["removal_kept"]),
        f_full=_column([_f(target) for target in document["targets"]]),
        f_without=f[:, : len(units)],
        f_masked=f[:, len(units) :],
        settings={key: value for key, value in told.items() if key not in OWN_KEYS},
        hidden=_read(tuple[tuple[tuple[int, int], ...], ...], hidden),
        f_hidden=_hidden(maps) if hidden or "removal_hidden_f" in maps else None,
        **ends,
        pair=_read(tuple[tuple[int, int] | None, ...], measured.get("together", ())),
        ceiling=_read(tuple[float | None, ...], measured["explained"]),
        answer_drop=None if told.get("answer_drop") is None else _column(told["answer_drop"]),
        context=context_from(document.get("context")),
    )


def _hidden(maps: Maps) -> Tensor:
    """F with each set hidden, NaN where it is not defined."""
    return _double(maps["removal_hidden_f"]).masked_fill(_bool(maps["removal_hidden_undefined"]), torch.nan)


def _check(target: Mapping[str, Any]) -> CrossCheck:
    check: CrossCheck = _read(
        CrossCheck,
        {
            "status": target["status"],
            "reason": target["reason"],
            "attention": target["verdict"]["attention"],
            "attention_reason": target["verdict"]["attention_reason"],
            "agreement": target["agreement"],
            "dilution": _dilution(target["rollout"]),
            "variant_agreement": target["agreement_variant"],
            "variant_dilution": _dilution(target["rollout_variant"]),
            "verdict": target["referee"],
        },
    )
    return check


def _dilution(row: Mapping[str, float | None]) -> dict[str, float | None] | None:
    return None if row["sink_mass"] is None else {name: row[name] for name in DILUTION}


def _full_precision(told: Mapping[str, Any] | None) -> FullPrecision | None:
    if told is None:
        return None
    targets = told["targets"]
    columns = {name: [target[name] for target in targets] for name in ("logprob", "rank", "cosine", "status")}
    logprobs = columns["logprob"]
    full: FullPrecision = _read(
        FullPrecision,
        {
            **{name: told[name] for name in ("model", "dtype", "digest")},
            "replay": {"logprobs": logprobs, "f": logprobs, "ranks": columns["rank"], "tolerance": None},
            "cosines": columns["cosine"],
            "same_source": [target["same_source"] for target in targets],
            "statuses": columns["status"],
        },
    )
    return full


def _table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(_read(list[list[float]], rows), dtype=torch.float64)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(_read(list[float], values), dtype=torch.float64)


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))


def _double(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.copy())


def _bool(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(bool))
