"""Compute a recorded explanation again (`llmxai replay`); evidence/replay.py says what that shows and what not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from llmxai.errors import EvidenceError
from llmxai.evidence.reading import find, read_log
from llmxai.evidence.replay import Comparison, compare
from llmxai.evidence.verifier.folder import evidence_of
from llmxai.explain import Report, explain
from llmxai.generation import Decoding
from llmxai.methods import Ablation, Compute, Tolerance
from llmxai.models import LoadedModel, load
from llmxai.models.loading import torch_dtype
from llmxai.store import read_folder, to_json, to_maps


def recompute(
    run: Path | str,
    id: str,
    *,
    model: LoadedModel | None = None,
    report: Report = lambda _stage, _done, _all: None,
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
    if any(entry.id in later.removes for later, _ in log):
        raise EvidenceError(f"{entry.id}: its files were taken away (redacted or pruned): nothing to replay.")
    document, maps = read_folder((evidence_of(Path(run)).parent / paths[0]).parent)
    report("loading the model", 0, 1)
    loaded = model or _load(document["environment"]["model"])
    again = explain(loaded, **_arguments(document), report=report)
    return compare(document, maps, to_json(again), to_maps(again))


def _load(told: dict[str, Any]) -> LoadedModel:
    quantization = told["quantization"]
    return load(
        told["name"],
        dtype=told["dtype"],
        quantize=quantization.removeprefix("bitsandbytes ") if quantization else None,
        revision=told["revision"],
        adapter=told["adapter"],
    )


def _arguments(document: dict[str, Any]) -> dict[str, Any]:
    settings, generation = document["settings"], document["generation"]
    if settings["baseline"] == "tensor":
        raise EvidenceError("The baseline was a tensor of the caller's, which no record holds: nothing to replay.")
    other_dtype = settings["gradient_dtype"] != settings["dtype"]
    known = {each.name for each in fields(Decoding)}
    return {
        **generation["request"],
        "decoding": Decoding(**{name: value for name, value in generation["decoding"].items() if name in known}),
        "features": settings["features"],
        "baseline": settings["baseline"],
        "tolerance": Tolerance(**settings["tolerance"]),
        "max_nodes": settings["max_nodes"],
        "compute": Compute(gradient_dtype=torch_dtype(settings["gradient_dtype"]) if other_dtype else None),
        "residual": settings["rollout"].get("residual", 0.5),
        **({"variant": document["variant"]["method"]} if document["variant"] else {}),
        "referee": _referee(document["ablations"]),
    }


def _referee(told: dict[str, Any] | None) -> Ablation | None:
    """How the prompt was taken apart, as the explanation says it."""
    if told is None:
        return None
    known = {each.name for each in fields(Ablation)} & told.keys() - {"baseline", "units"}
    baseline = {} if told["baseline"] is None else {"baseline": told["baseline"]}
    return Ablation(units=told["kind"], subsets=told["masks"], **{name: told[name] for name in known}, **baseline)
