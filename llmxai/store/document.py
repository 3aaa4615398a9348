"""An explanation as plain JSON values and as maps (docs/explanation-folder.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

import numpy as np
import torch

from llmxai.crosscheck import RULE
from llmxai.errors import NonFiniteError
from llmxai.explanation import DELETION, Explanation
from llmxai.methods import METHODS
from llmxai.methods.perturbation.coarse import CONFIDENCE
from llmxai.names import SUPPLIED, Unit, joint_status
from llmxai.store.context import context_json, documents_json, spans_json
from llmxai.store.reading import SCHEMA, stored_name
from llmxai.store.traced import TOP_SOURCES, shares_of, trace_of
from llmxai.types import (
    Certificate,
    Dilution,
    DilutionCurve,
    Effects,
    Generation,
    RefereeVerdict,
    Scores,
    predicted_token,
)

BITS = {"bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}
LEAST_FALL = 0.01
"""Nats: a smaller fall changes a probability by less than a hundredth of itself."""


def to_maps(explanation: Explanation) -> dict[str, np.ndarray]:
    """The maps, float32 unless stated otherwise; none for refused methods.

    [target, seq]: `integrated_gradients`, `rollout` and `rollout_variant` with their nulls, and the other requested
    methods (`stored_name`); their features and those of the gradients as uint8. Of the removals:
    `leave_one_out` [target, unit]; float64 `effect`, `effect_low` and `effect_high` [target, unit], `removal_f`
    [target, unit + mask] and `removal_hidden_f` [target, hidden]; uint8 `removal_kept` [mask, unit] and
    `removal_hidden_undefined` [target, hidden]. Of the trace: float64 `trace_direct` [target, traced], `trace_steps`
    and `trace_effects` [followed, traced] with uint8 `trace_effects_undefined`.

    Raises NonFiniteError instead of writing NaN.
    """
    gradients = explanation.gradients
    maps = {"integrated_gradients": _float(gradients.values), "features": _bytes(gradients.features)}
    for name, scores in (("rollout", explanation.rollout), ("rollout_variant", explanation.variant)):
        if scores.refused is None and scores.null is not None:
            maps |= {name: _float(scores.values), f"{name}_null": _float(scores.null)}
    for method, scores in {DELETION: explanation.deletion, **explanation.also}.items():
        if scores.refused is None:
            name = stored_name(method)
            maps |= {name: _float(scores.values), f"{name}.features": _bytes(scores.features)}
            maps |= {f"{name}.null": _float(scores.null)} if scores.null is not None else {}
    if (effects := explanation.effects) is not None:
        maps["leave_one_out"] = _float(effects.drop)
        maps["removal_f"] = torch.cat([effects.f_without, effects.f_masked], dim=1).double().numpy()
        maps["removal_kept"] = _bytes(effects.kept)
        ends = {"effect": effects.effect, "effect_low": effects.low, "effect_high": effects.high}
        maps |= {name: values.double().numpy() for name, values in ends.items() if values is not None}
        if effects.f_hidden is not None:  # NaN where not defined: 1 in `removal_hidden_undefined`
            maps["removal_hidden_f"] = effects.f_hidden.nan_to_num(0.0).double().numpy()
            maps["removal_hidden_undefined"] = _bytes(effects.f_hidden.isnan())
    if (trace := explanation.trace) is not None:
        traced = {"direct": trace.direct, "steps": trace.steps, "effects": trace.effects.nan_to_num(0.0)}
        maps |= {f"trace_{name}": values.double().contiguous().numpy() for name, values in traced.items()}
        maps |= {"trace_effects_undefined": _bytes(trace.effects.isnan())}
    for name, values in maps.items():
        if not np.isfinite(values).all():
            raise NonFiniteError(f"The map {name!r} holds NaN or infinity; nothing was written.")
    return maps


def _float(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = values.float().contiguous().numpy()
    return array


def _bytes(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = values.to(torch.uint8).contiguous().numpy()
    return array


def to_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation as plain JSON values, schema `llmxai.explanation/3`."""
    generation = explanation.generation
    return {
        "schema": SCHEMA,
        "created": explanation.created,
        "generation": {
            "prompt_len": generation.prompt_len,
            "stop": generation.stop,
            "request": dict(generation.request),
            "decoding": dict(generation.decoding),
            "source_len": generation.source_len,
            "classes": list(generation.classes),
            "read_at": list(generation.read_at),
            "answer": "".join(generation.texts[generation.prompt_len :]),
            "notes": list(generation.notes),
        },
        "tokens": [
            {"index": i, "id": token, "text": text, "role": str(role), **_replayed(explanation, i)}
            for i, (token, text, role) in enumerate(
                zip(generation.ids, generation.texts, generation.roles, strict=True)
            )
        ],
        "words": [list(word) for word in generation.words],
        "parts": [{**vars(part), "spans": [list(span) for span in part.spans]} for part in generation.parts],
        "targets": [_target(explanation, t) for t in range(len(explanation.targets))],
        "trace": trace_of(explanation),
        "verdict": str(joint_status([view.status for view in explanation.answer_words()])),
        "effects": _measured(explanation),
        "documents": documents_json(generation, explanation.effects),
        "spans": spans_json(generation, explanation.effects),
        "context": context_json(explanation.effects.context if explanation.effects is not None else None),
        "ablations": _effects(explanation.effects),
        "refusals": refusals_of(explanation),
        "full_precision": full_precision_of(explanation),
        "variant": dict(explanation.computed["variant"]),
        "scores": {name: _method(scores) for name, scores in explanation.scores.items()},
        "settings": explanation.settings.to_dict(),
        "computed": {name: value for name, value in explanation.computed.items() if name != "variant"},
        "environment": dict(explanation.environment),
        "warnings": list(warnings_of(explanation)),
    }


def _target(explanation: Explanation, t: int) -> dict[str, Any]:
    generation, gradients = explanation.generation, explanation.gradients
    assert gradients.certificate is not None
    figures, deletion = _figures(gradients.certificate, t), explanation.deletion.certificate
    check, target = explanation.checks[t], explanation.targets[t]
    first, end = target.tokens
    own = [predicted_token(position) - generation.prompt_len for position in target.positions]
    features, foil = gradients.features[t].numpy(), generation.foil if target.kind == "contrast" else None
    return {
        "position": first,
        "tokens": [first, end],
        "id": generation.ids[first],
        "text": explanation.text(target.tokens),
        "foil": None if foil is None else {"id": foil.id, "text": foil.text},
        "logprob": None if generation.logprobs is None else sum(generation.logprobs[i] for i in own),
        "replayed_logprob": explanation.replay.logprob_of(target, generation.prompt_len),
        "f": explanation.replay.f_of(target, generation.prompt_len),
        "rank": max(explanation.replay.ranks[i] for i in own),
        "status": str(check.status),
        "reason": check.reason,
        "verdict": {
            "sources": str(check.status),
            "attention": str(check.attention),
            "reason": check.reason,
            "attention_reason": check.attention_reason,
            "rule": RULE.version,
        },
        **figures,
        "net": figures["f_input"] - figures["f_baseline"],
        "deletion": None if deletion is None else _figures(deletion, t),
        "agreement": asdict(check.agreement),
        "agreement_variant": asdict(check.variant_agreement),
        "rollout": _row(check.dilution, explanation.rollout, t),
        "rollout_variant": _row(check.variant_dilution, explanation.variant, t),
        "curve": _curve(explanation.rollout.curve, t),
        "referee": _verdict(check.verdict),
        **shares_of(explanation, [t]),
        "sources": {
            "integrated_gradients": _sources(_float(gradients.values[t]), features),
            DELETION: _sources_of(explanation.deletion, t, None),
            "rollout": _sources_of(explanation.rollout, t, features),
            "rollout_variant": _sources_of(explanation.variant, t, features),
            "leave_one_out": _unit_sources(explanation.effects, t),
            **{
                stored_name(name): _sources_of(scores, t, features if scores.null is not None else None)
                for name, scores in explanation.also.items()
            },
        },
    }


def _replayed(explanation: Explanation, index: int) -> dict[str, Any]:
    """Of a generated token: its log-prob as recorded and as replayed, and its rank. Of the prompt's: nothing."""
    generation, replay = explanation.generation, explanation.replay
    if (t := index - generation.prompt_len) < 0:
        return {}
    recorded = None if generation.logprobs is None else generation.logprobs[t]
    return {"logprob": recorded, "replayed_logprob": replay.logprobs[t], "rank": replay.ranks[t]}


def _figures(certificate: Certificate, t: int) -> dict[str, Any]:
    """The error of a path method on one target."""
    numbers = ("f_input", "f_baseline", "gap", "local_error", "tolerance")
    return {
        **{name: float(getattr(certificate, name)[t]) for name in numbers},
        "nodes": certificate.nodes[t],
        "converged": certificate.converged[t],
        "floor": None if certificate.floor is None else float(certificate.floor[t]),
    }


def _method(scores: Scores) -> dict[str, Any]:
    return {
        "source": METHODS[scores.method].source,
        "signed": scores.signed,
        "refused": scores.refused,
        "settings": dict(scores.settings),
    }


def _sources_of(scores: Scores, t: int, features: np.ndarray | None) -> list[dict[str, Any]]:
    """The sources among `features`, by default the method's own: attention also goes to the template."""
    if scores.refused is not None:
        return []
    return _sources(_float(scores.values[t]), scores.features[t].numpy() if features is None else features)


def _row(dilution: Dilution | None, rollout: Scores, t: int) -> dict[str, Any]:
    if dilution is None or rollout.lost_mass is None:
        return dict.fromkeys((*(part.name for part in fields(Dilution)), "lost_mass"))
    return {**asdict(dilution), "lost_mass": float(rollout.lost_mass[t])}


def _curve(curve: DilutionCurve | None, t: int) -> dict[str, list[float]] | None:
    if curve is None:
        return None
    return {part.name: getattr(curve, part.name)[t].tolist() for part in fields(curve)}


def _verdict(verdict: RefereeVerdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {
        "better": verdict.better,
        "difference": verdict.difference,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "scores": {name: asdict(score) for name, score in verdict.scores.items()},
        "sources": list(verdict.sources),
        "missed": {name: list(units) for name, units in verdict.missed.items()},
        **({} if verdict.read is None else {"read": list(verdict.read)}),
    }


def _effects(effects: Effects | None) -> dict[str, Any] | None:
    if effects is None:
        return None
    return {
        **effects.settings,
        "operator": effects.operator,
        "units": [list(unit) for unit in effects.units],
        "masks": len(effects.kept),
        "answer_drop": None if effects.answer_drop is None else effects.answer_drop.tolist(),
    }


def _measured(explanation: Explanation) -> dict[str, Any] | None:
    """Every unit and target: effect (nats), 90 % interval, and the probability with and without the unit.

    A foil's effects are on the lead over it, which says nothing of the probability without the unit.
    """
    effects, generation = explanation.effects, explanation.generation
    if effects is None:
        return None
    units = [
        {"kind": kind, "tokens": [list(unit) for unit in ranges], "text": _text_of(generation, ranges)}
        for kind, ranges in _parts(effects)
    ]
    columns = {
        name: torch.cat([single, effects.hidden_drop], dim=1)
        for name, single in zip(("effect", "low", "high"), effects.estimates, strict=True)
    }
    logprobs = torch.tensor(
        [explanation.replay.logprob_of(target, generation.prompt_len) for target in explanation.targets],
        dtype=torch.float64,
    )
    without = (logprobs[:, None] - columns["effect"]).exp().clamp(max=1)
    return {
        "confidence": CONFIDENCE,
        "units": units,
        **{name: _rounded(values) for name, values in columns.items()},
        "probability": [round(float(p), 6) for p in logprobs.exp()],
        "probability_without": [
            [None] * len(units) if target.kind == "contrast" else row
            for target, row in zip(explanation.targets, _rounded(without), strict=True)
        ],
        "explained": [None if share is None else round(share, 4) for share in effects.ceiling],
        "together": [None if pair is None else list(pair) for pair in effects.pair],
    }


@dataclass(frozen=True)
class Fall:
    """A part of the text, and how far some targets fall together without it."""

    text: str
    mentions: int
    nats: float
    averaged: bool
    """Whether `nats` is a mean over random halves of the other parts, so that of no single text."""


def falls_of(generation: Generation, effects: Effects, rows: Sequence[int]) -> list[Fall]:
    """The parts of the text without which the targets `rows` fall, largest fall first: the effects, as pages show them.

    Falls below `LEAST_FALL` are left out; of several parts with the same text, the first is kept.
    """
    drop = torch.cat([effects.estimates[0], effects.hidden_drop], dim=1)[list(rows)].sum(dim=0)
    parts = _parts(effects)
    falls: dict[str, Fall] = {}
    for i in drop.nan_to_num(-math.inf).argsort(descending=True, stable=True).tolist():  # NaN: not defined there
        if drop[i] >= LEAST_FALL:
            text = _text_of(generation, parts[i][1])
            averaged = bool(len(effects.kept)) and parts[i][0] == "prompt"
            falls.setdefault(text.strip(), Fall(text, len(parts[i][1]), float(drop[i]), averaged))
    return list(falls.values())


def _parts(effects: Effects) -> list[tuple[str, tuple[Unit, ...]]]:
    """Kind and ranges of everything that was removed or hidden."""
    hidden = [("mentions" if len(ranges) > 1 else "answer", ranges) for ranges in effects.hidden]
    return [*(("prompt", (unit,)) for unit in effects.units), *hidden]


def _text_of(generation: Generation, ranges: Sequence[Unit]) -> str:
    start, end = ranges[0]
    return "".join(generation.texts[start:end])


def _rounded(values: torch.Tensor) -> list[list[float | None]]:
    """Rows of numbers, None where one is not defined."""
    return [[None if x != x else round(x, 6) for x in row] for row in values.tolist()]


def _unit_sources(effects: Effects | None, t: int) -> list[dict[str, Any]]:
    """The units whose removal changes the log-prob most, by |drop|, with their share of the sum of |drop|."""
    if effects is None:
        return []
    drop = effects.drop[t].double().numpy()
    found = _sources(drop, np.ones(len(drop), dtype=bool))
    return [{"unit": one["index"], "value": one["value"], "share": one["share"]} for one in found]


def _sources(values: np.ndarray, features: np.ndarray) -> list[dict[str, Any]]:
    """The features with the largest |value|, with their share of the sum of |value| over all features."""
    indices = np.flatnonzero(features)
    magnitude = np.abs(values[indices].astype(float))
    total = float(magnitude.sum())
    order = np.argsort(-magnitude, kind="stable")[:TOP_SOURCES]
    return [
        {
            "index": int(indices[i]),
            "value": float(values[indices[i]]),
            "share": float(magnitude[i]) / total if total else 0.0,
        }
        for i in order
    ]


def full_precision_of(explanation: Explanation) -> dict[str, Any] | None:
    """The comparison with full precision and its medians; None if none was made."""
    full = explanation.full_precision
    if full is None:
        return None
    first = explanation.generation.prompt_len
    quantised = [explanation.replay.logprob_of(target, first) for target in explanation.targets]
    differences = [own - other for own, other in zip(quantised, full.replay.logprobs, strict=True)]
    cosines = [cosine for cosine in full.cosines if cosine is not None]
    statuses = [check.status for check in explanation.checks]
    return {
        "model": full.model,
        "dtype": full.dtype,
        "digest": full.digest,
        "median_difference": median(map(abs, differences)),
        "largest_difference": max(map(abs, differences)),
        "median_cosine": median(cosines) if cosines else None,
        "first_choice": full.replay.ranks.count(1),
        "same_source": sum(full.same_source),
        "same_status": sum(own == other for own, other in zip(statuses, full.statuses, strict=True)),
        "targets": [
            {
                "logprob": full.replay.logprobs[t],
                "rank": full.replay.ranks[t],
                "difference": difference,
                "cosine": full.cosines[t],
                "same_source": full.same_source[t],
                "status": str(full.statuses[t]),
            }
            for t, difference in enumerate(differences)
        ],
    }


def precision_sentence(explanation: Explanation) -> str:
    """A sentence on the quantised weights and, if measured, what quantisation changed; empty at full precision."""
    quantization = explanation.environment["model"]["quantization"]
    if not quantization:
        return ""
    said = f"The model ran with {quantization}; the explanation is of those quantised weights."
    told = full_precision_of(explanation)
    if told is None:
        return f"{said} What quantisation changed was not measured."
    n = len(told["targets"])
    cosine = "" if told["median_cosine"] is None else f", of cosine {told['median_cosine']:.3f} in the median,"
    return (
        f"{said} Compared with the {told['dtype']} weights on the same answer: its log-probs differ by "
        f"{told['median_difference']:.2g} nats in the median and {told['largest_difference']:.2g} at most; the "
        f"gradient attributions{cosine} have the same first source for {told['same_source']} of {n} tokens; "
        f"{told['same_status']} of {n} have the same status, and {told['first_choice']} of {n} are also the full "
        f"model's first choice."
    )


def widening_sentence(explanation: Explanation) -> str:
    """A sentence on a model that is stored in fewer bits than it computed in; empty otherwise."""
    told = explanation.computed.get("precision") or {}
    stored, computed = str(told.get("stored")), str(told.get("computed"))
    if BITS.get(stored, 64) >= BITS.get(computed, 0):
        return ""
    said = f"The model is stored in {stored} and was computed in {computed}, so that the values are accurate"
    largest = told["largest_difference"]
    if largest is None:
        return f"{said}; no log-probs were recorded to compare with."
    return f"{said}; its log-probs differ from those recorded while generating by at most {largest:.2g} nats."


def refusals_of(explanation: Explanation) -> dict[str, str]:
    """Why a method is not defined for the model, by method."""
    return {name: one.refused for name, one in explanation.scores.items() if one.refused is not None}


def warnings_of(explanation: Explanation) -> list[str]:
    """Plain sentences that a reader must know besides the numbers."""
    generation = explanation.generation
    warnings = list(generation.notes)
    if generation.stop == "length":
        warnings.append(f"The answer was cut off at {generation.n_targets} tokens, before the model ended it.")
    if generation.stop == "given":
        warnings.append(SUPPLIED)
    if generation.classes:
        warnings.append(
            f"The model is a classifier: the only token of the answer is its class {generation.generated_ids[0]} "
            f"({generation.texts[-1]!r}) of {len(generation.classes)}, not a generated word."
        )
    if generation.source_len:
        warnings.append(
            f"The model is an encoder-decoder: it read the first {generation.source_len} tokens as a whole, as the "
            f"source, and generated the answer from them and from its earlier tokens."
        )
    if sentence := precision_sentence(explanation):
        warnings.append(sentence)
    if sentence := widening_sentence(explanation):
        warnings.append(sentence)
    for reason in dict.fromkeys(refusals_of(explanation).values()):
        methods = " and ".join(name for name, why in refusals_of(explanation).items() if why == reason)
        warnings.append(f"{methods.replace('_', ' ').capitalize()} refused. {reason}")
    return warnings
