"""From an explanation, or from what went wrong, to a record and its texts."""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from llmxai.errors import UserError
from llmxai.evidence.canonical import canonical
from llmxai.evidence.record import Entry, Error, File, Kind, Method, Model, Outcome, Record, Target
from llmxai.evidence.tool import this_tool
from llmxai.types import CrossCheck, Explanation


def explanation_record(
    explanation: Explanation,
    *,
    id: str,
    entry: Entry,
    started: str,
    ended: str,
    private: bool = False,
    requester: str | None = None,
    purpose: str | None = None,
    options: Mapping[str, Any] | None = None,
    artefacts: Sequence[File] = (),
    warnings: Sequence[str] = (),
) -> tuple[Record, dict[str, str]]:
    """The record of an explanation and its texts: input, input_ids, output, output_ids."""
    generation = explanation.generation
    record = Record(
        id=id,
        kind=Kind.EXPLANATION,
        entry=entry,
        started=started,
        ended=ended,
        tool=this_tool(),
        requester=requester,
        purpose=purpose,
        options=dict(options or {}),
        model=_model(explanation.environment["model"]),
        hardware=dict(explanation.environment["hardware"]),
        input_tokens=generation.prompt_len,
        output_tokens=generation.n_targets,
        decoding={**generation.decoding, "stop": generation.stop},
        method=_method(explanation),
        outcome=_outcome(explanation, private=private),
        artefacts=tuple(artefacts),
        warnings=tuple(warnings),
    )
    return record, {
        **request_texts(generation.request),
        "input_ids": id_text(generation.ids[: generation.prompt_len]),
        "output": "".join(generation.texts[generation.prompt_len :]),
        "output_ids": id_text(generation.generated_ids),
    }


def error_record(
    error: BaseException,
    *,
    id: str,
    entry: Entry,
    started: str,
    ended: str,
    request: Mapping[str, Any],
    requester: str | None = None,
    purpose: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Record, dict[str, str]]:
    """The record of a refusal (a UserError) or a failure (anything else), with what was asked and what was said."""
    refused = isinstance(error, UserError)
    record = Record(
        id=id,
        kind=Kind.REFUSAL if refused else Kind.FAILURE,
        entry=entry,
        started=started,
        ended=ended,
        tool=this_tool(),
        requester=requester,
        purpose=purpose,
        options=dict(options or {}),
        error=Error(type(error).__name__, interrupted=isinstance(error, KeyboardInterrupt)),
    )
    said = str(error) if refused else "".join(traceback.format_exception(error))
    response = {"output": str(request["response"])} if request.get("response") is not None else {}
    return record, {**request_texts(request), **response, "error": said}


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


def entry_here() -> Entry:
    """`notebook` inside a Jupyter kernel, else `python`."""
    return "notebook" if "ipykernel" in sys.modules else "python"


def _model(told: Mapping[str, Any]) -> Model:
    return Model(
        name=told["name"],
        revision=told["revision"],
        digest=told["digest"],
        weight_files=tuple(File(**each) for each in told.get("weight_files", ())),
        architecture=told["architecture"],
        parameters=told["parameters"],
        dtype=told["dtype"],
        device=told["device"],
        quantization=told["quantization"],
        adapter=told["adapter"],
        attention_kernel=told["attention"],
        tokenizer_digest=told.get("tokenizer_digest"),
        chat_template_digest=told.get("chat_template_digest"),
    )


def _method(explanation: Explanation) -> Method:
    settings = explanation.settings
    return Method(
        names=(explanation.attribution.method, explanation.rollout.method),
        target=str(settings.get("target")),
        features=str(settings.get("features")),
        baseline=str(settings.get("baseline")),
        rule_version=dict(settings.get("crosscheck", {})).get("version"),
        settings=dict(settings),
    )


def _outcome(explanation: Explanation, *, private: bool) -> Outcome:
    attribution = explanation.attribution
    gaps = [float(gap) for gap in attribution.gap]
    largest = max((abs(gap) for gap in gaps), default=None)
    targets = tuple(
        Target(
            position=explanation.generation.prompt_len + t,
            status=str(check.status),
            gap=gaps[t],
            local_error=float(attribution.local_error[t]),
            tolerance=float(attribution.tolerance[t]),
            nodes=attribution.nodes[t],
            check=_figures(check),
        )
        for t, check in enumerate(explanation.checks)
    )
    return Outcome(
        statuses=dict(Counter(str(check.status) for check in explanation.checks)),
        largest_gap=float(f"{largest:.2g}") if private and largest is not None else largest,
        targets=() if private else targets,
    )


def _figures(check: CrossCheck) -> dict[str, Any]:
    """The check's own single figures, whatever they are called; lists stay in explanation.json."""
    values = {each.name: getattr(check, each.name) for each in fields(check) if each.name not in ("status", "reason")}
    return {name: value for name, value in values.items() if value is None or isinstance(value, int | float | str)}
