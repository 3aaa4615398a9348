"""The trace through the answer as plain JSON values (docs/explanation-folder.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmxai.explanation import Explanation
from llmxai.methods import answer_words
from llmxai.names import Unit
from llmxai.text import sentences
from llmxai.trace import Step

TOP_SOURCES = 20
"""Sources listed per target and method; the maps have all of them."""


def shares_of(explanation: Explanation, rows: Sequence[int]) -> dict[str, Any]:
    """The first units of some targets together by traced share, each with its path, and by direct share."""
    trace = explanation.trace
    if trace is None:
        return {"traced": [], "direct": []}
    direct = explanation.direct_shares(rows)
    order = sorted(range(len(trace.units)), key=lambda unit: -float(direct[unit]))
    return {
        "traced": [
            {
                "unit": source.unit,
                "text": explanation.text(source.tokens),
                "share": round(source.share, 6),
                "direct": round(source.direct, 6),
                "path": [_step(explanation, step) for step in source.path],
            }
            for source in explanation.traced_sources(rows)[:TOP_SOURCES]
        ],
        "direct": [
            {"unit": unit, "text": explanation.text(trace.units[unit]), "share": round(float(direct[unit]), 6)}
            for unit in order[:TOP_SOURCES]
            if direct[unit] > 0
        ],
    }


def _step(explanation: Explanation, step: Step) -> dict[str, Any]:
    return {
        "unit": step.unit,
        "text": explanation.text(step.tokens),
        "share": round(step.share, 6),
        "effect": None if step.effect is None else round(step.effect, 6),
    }


def _unit(explanation: Explanation, unit: Unit) -> dict[str, Any]:
    return {"tokens": list(unit), "text": explanation.text(unit)}


def trace_of(explanation: Explanation) -> dict[str, Any] | None:
    """What is traced, and the shares of the passages that targets make up: the answer, sentences, words, and others."""
    trace, generation = explanation.trace, explanation.generation
    if trace is None:
        return None
    words = answer_words(generation)
    units = {"answer": [(words[0][0], words[-1][1])] if words else [], "word": words}
    units["sentence"] = sentences(generation.texts, generation.roles, words)
    own = trace.units[trace.n_sources :]
    known = {unit for found in units.values() for unit in found}
    units["target"] = [one.tokens for one in explanation.targets if len(one.ids) > 1 and one.tokens not in known]
    passages = [
        {"kind": kind, "tokens": list(unit), "text": explanation.text(unit), **shares_of(explanation, rows)}
        for kind in ("answer", "sentence", "target", "word")
        for unit in units[kind]
        if (rows := explanation.rows_making(unit))
    ]
    return {
        "method": trace.method,
        "units": [
            *({"kind": "prompt", **_unit(explanation, unit)} for unit in trace.units[: trace.n_sources]),
            *(
                {"kind": "answer", **_unit(explanation, unit), "row": None if row is None else list(row)}
                for unit, row in zip(own, trace.rows or own, strict=True)
            ),
        ],
        "rest": [round(share, 6) for share in trace.rest.tolist()],
        "passages": passages,
    }
