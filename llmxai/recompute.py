"""Compute an explanation again: a recorded one (`llmxai replay`; evidence/replay.py says what that shows and what not),
or a quantised model's on its full-precision weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llmxai.errors import EvidenceError, OptionError
from llmxai.evidence.reading import find, read_log, removed_ids
from llmxai.evidence.replay import Comparison, compare
from llmxai.evidence.verifier.folder import evidence_of
from llmxai.explain import explain
from llmxai.explanation import Explanation
from llmxai.models import LoadedModel, load
from llmxai.models.identity import environment_of
from llmxai.names import StageProgress, quiet
from llmxai.settings import (
    UNITS,
    AttentionRollout,
    Compute,
    Decoding,
    IntegratedGradients,
    Removal,
    Settings,
    Tolerance,
    settings_from,
)
from llmxai.store import read_folder, to_json, to_maps
from llmxai.types import FullPrecision


def recompute(
    run: Path | str,
    id: str,
    *,
    model: LoadedModel | None = None,
    progress: StageProgress = quiet,
) -> Comparison:
    """Compute the explanation of record `id` again from its own settings and compare.

    `model`: one in memory; otherwise the model is loaded as the record names it. Raises EvidenceError where the record
    is no explanation, or its files are gone or were made private, and what `load` and `explain` raise.
    """
    log = read_log(run)
    entry, _ = find(log, id)
    paths = [artefact["path"] for artefact in entry.body["artefacts"] if artefact["path"].endswith("explanation.json")]
    if entry.body["kind"] != "explanation" or not paths:
        raise EvidenceError(f"{entry.id}: is a {entry.body['kind']} without an explanation.json: nothing to replay.")
    if entry.id in removed_ids(log):
        raise EvidenceError(f"{entry.id}: its files were taken away (redacted or pruned): nothing to replay.")
    document, maps = read_folder((evidence_of(Path(run)).parent / paths[0]).parent)
    progress("loading the model", 0, 1)
    loaded = model or _load(document["environment"]["model"])
    again = explain(loaded, **_arguments(document), progress=progress)
    return compare(document, maps, to_json(again), to_maps(again))


def compare_full(
    explanation: Explanation,
    full: LoadedModel,
    *,
    progress: StageProgress = quiet,
) -> Explanation:
    """The explanation of a quantised model with what quantisation changed: `explanation.full_precision` is set.

    `full` is the same model, loaded without `quantize`. Its weights explain the same answer (its exact ids, teacher-
    forced) once more with the same settings. Nothing else of the explanation changes; the quantised model is not needed
    any more and may be deleted before `full` is loaded. Raises OptionError where the explained model was not quantised,
    or `full` is another model or quantised itself, and what `explain` raises.
    """
    _require_comparable(explanation.environment["model"], full)
    answer = replace(explanation.generation, logprobs=None)  # recorded on other weights: not to be compared
    again = explain(full, answer, settings=explanation.settings, progress=progress)
    told = again.environment["model"]
    pairs = list(zip(explanation.gradients.values, again.gradients.values, strict=True))
    return replace(
        explanation,
        full_precision=FullPrecision(
            model=told["name"],
            dtype=told["dtype"],
            digest=told["digest"],
            replay=again.replay,
            cosines=tuple(_cosine(own, other) for own, other in pairs),
            same_source=tuple(bool(own.abs().argmax() == other.abs().argmax()) for own, other in pairs),
            statuses=tuple(check.status for check in again.checks),
        ),
    )


def _require_comparable(told: Mapping[str, Any], full: LoadedModel) -> None:
    if told["quantization"] is None:
        raise OptionError(
            f"{told['name']} was explained on {told['dtype']} weights that are not quantised, so there is no full "
            f"precision to compare with. Give --quantize 4bit or 8bit, or leave --compare-full out."
        )
    if full.quantization is not None:
        raise OptionError(f"{full.name}: is quantised itself ({full.quantization}); load it without quantize.")
    other = environment_of(full)["model"]
    for name in ("architecture", "tokenizer_digest", "adapter"):
        if other[name] != told[name]:
            raise OptionError(
                f"{full.name}: is not the model that was explained: its {name.replace('_', ' ')} is {other[name]} and "
                f"{told[name]} was explained. Load the same model without quantize."
            )


def _cosine(a: Tensor, b: Tensor) -> float | None:
    """Of two rows; None where one is 0."""
    scale = float(a.double().norm() * b.double().norm())
    return float(a.double() @ b.double()) / scale if scale else None


def _load(told: dict[str, Any]) -> LoadedModel:
    method, _, bits = (told["quantization"] or "").partition(" ")
    return load(
        told["name"],
        dtype=told["dtype"],
        quantize=bits if method == "bitsandbytes" else None,
        revision=told["revision"],
        adapter=told["adapter"],
    )


def _arguments(document: dict[str, Any]) -> dict[str, Any]:
    generation = document["generation"]
    request = dict(generation["request"])
    known = {each.name for each in fields(Decoding)}
    prompt = next(request.pop(name) for name in ("prompt", "messages", "input_ids") if name in request)
    return {
        "prompt": prompt,
        **request,
        "decoding": Decoding(**{name: value for name, value in generation["decoding"].items() if name in known}),
        "settings": settings_of(document),
    }


def settings_of(document: dict[str, Any]) -> Settings:
    """How it was explained: as the explanation says it, or as an older one's figures let us tell."""
    if document["settings"] is not None:
        return settings_from(document["settings"])
    computed = document["computed"]
    if computed["baseline"] == "tensor":
        raise OptionError("The baseline was a tensor of the caller's, which no explanation holds: give its name.")
    other_dtype = computed["gradient_dtype"] != computed["dtype"]
    variant = document["variant"]
    return Settings(
        features=computed["features"],
        gradients=IntegratedGradients(
            baseline=computed["baseline"],
            tolerance=Tolerance(**computed["tolerance"]),
            max_nodes=computed["max_nodes"],
        ),
        rollout=AttentionRollout(
            residual=computed["rollout"].get("residual", AttentionRollout.residual),
            variant=variant["method"] if variant else AttentionRollout.variant,
        ),
        removal=_removal(document["ablations"]),
        compute=Compute(gradient_dtype=computed["gradient_dtype"] if other_dtype else None),
    )


def _removal(told: dict[str, Any] | None) -> Removal | None:
    """How parts of the prompt were removed, as an older explanation says it."""
    if told is None:
        return None
    known = {each.name for each in fields(Removal)} & told.keys() - {"baseline", "units"}
    baseline = {} if told["baseline"] is None else {"baseline": told["baseline"]}
    units = told["kind"] if told["kind"] in UNITS else "auto"
    return Removal(units=units, subsets=told["masks"], **{name: told[name] for name in known}, **baseline)
