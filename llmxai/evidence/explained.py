"""From an explanation to its record and its texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from llmxai.environment import this_tool
from llmxai.evidence.log import Receipt
from llmxai.evidence.record import File, Method, Model, Outcome, Record, RecordKind, TargetRecord
from llmxai.evidence.recorder import Attempt, id_text, request_texts
from llmxai.evidence.sealing import utc_now
from llmxai.explanation import Explanation
from llmxai.types import CrossCheck


def explained(
    attempt: Attempt, explanation: Explanation, *, artefacts: Sequence[File] = (), warnings: Sequence[str] = ()
) -> Receipt | None:
    """Append the record of an explanation to the attempt's log (None: it became a draft). `save` does this for
    whoever saves."""
    return attempt.keep(*explanation_record(attempt, explanation, artefacts=artefacts, warnings=warnings))


def explanation_record(
    attempt: Attempt, explanation: Explanation, *, artefacts: Sequence[File] = (), warnings: Sequence[str] = ()
) -> tuple[Record, dict[str, str]]:
    """The record and its texts: input, input_ids, output, output_ids, and foil where there is one."""
    generation = explanation.generation
    record = Record(
        id=attempt.id,
        kind=RecordKind.EXPLANATION,
        entry=attempt.entry,
        started=attempt.started,
        ended=utc_now(),
        tool=this_tool(),
        requester=attempt.requester,
        purpose=attempt.purpose,
        options=attempt.options,
        model=_model(explanation.environment["model"]),
        hardware=dict(explanation.environment["hardware"]),
        input_tokens=generation.prompt_len,
        output_tokens=generation.n_targets,
        decoding={**generation.decoding, "stop": generation.stop},
        method=_method(explanation),
        outcome=_outcome(explanation, private=attempt.private is not None),
        artefacts=tuple(artefacts),
        warnings=tuple(warnings),
    )
    return record, {
        **request_texts(generation.request),
        "input_ids": id_text(generation.ids[: generation.prompt_len]),
        "output": "".join(generation.texts[generation.prompt_len :]),
        "output_ids": id_text(generation.generated_ids),
    }


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
    settings = {**explanation.computed, "asked": explanation.settings.to_dict()}
    return Method(
        names=tuple(name for name, scores in explanation.scores.items() if scores.refused is None),
        target=str(settings.get("target")),
        features=str(settings.get("features")),
        baseline=str(settings.get("baseline")),
        rule_version=dict(settings.get("crosscheck", {})).get("version"),
        settings=dict(settings),
    )


def _outcome(explanation: Explanation, *, private: bool) -> Outcome:
    certificate = explanation.gradients.certificate
    assert certificate is not None
    gaps = [float(gap) for gap in certificate.gap]
    largest = max((abs(gap) for gap in gaps), default=None)
    targets = tuple(
        TargetRecord(
            position=explanation.generation.prompt_len + t,
            status=str(check.status),
            gap=gaps[t],
            local_error=float(certificate.local_error[t]),
            tolerance=float(certificate.tolerance[t]),
            nodes=certificate.nodes[t],
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
