"""Recompute an explanation: a recorded one (`llmxai replay`), or a quantised model's with full-precision weights.

A replay is not verification. `verify` says that the stored files were not changed; a replay says that the same
software gives about the same numbers, here and now. Floating-point sums depend on hardware, kernels and threads, so a
difference within the tolerance is expected, and one outside it does not prove tampering.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llmxai.errors import EvidenceError, OptionError
from llmxai.evidence.log import find, read_log, removed_ids
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
from llmxai.types import FullPrecision, Replay

RELATIVE = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
"""Allowed difference, relative to the largest |value| of the map, on the same machine; maps are stored in float32."""
ELSEWHERE = 10.0
"""Factor for another device, kernel, number of threads or torch version; chosen by hand, like the table."""


@dataclass(frozen=True)
class MapDifference:
    """`largest`: the largest |difference| in the map's own unit; `relative`: over the largest |recorded value|."""

    largest: float
    relative: float
    within: bool


@dataclass(frozen=True)
class Comparison:
    """`outcome`: `within` or `outside` the tolerance, or `incomparable` if the answer itself differs."""

    outcome: str
    tolerance: float
    reason: str
    """Where the tolerance comes from."""
    differences: tuple[str, ...]
    """Differences in the environment: model, device, kernel, versions."""
    answer: str
    maps: Mapping[str, MapDifference]
    changed_statuses: int
    """0 where the statuses come from different versions of the rule."""

    @property
    def exit(self) -> int:
        return {"within": 0, "outside": 1}.get(self.outcome, 2)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit": self.exit, "is_verification": False}


ALSO_THE_MODEL = ("config_digest", "tokenizer_digest", "chat_template_digest", "generation_config_digest")
"""Digests of the model besides its weights; older explanations hold some of them."""


def _digests(told: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Of all files with weights, an adapter's among them; an older explanation may tell of none."""
    return tuple(file["sha256"][:12] for file in told.get("weight_files") or now["weight_files"])


def allowed(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[float, str, tuple[str, ...]]:
    """The relative tolerance for two environments, its reason, and the differences between them."""
    model, again = recorded["model"], now["model"]
    pairs = {
        "model digest": (model["digest"], again["digest"]),
        "dtype": (model["dtype"], again["dtype"]),
        "attention kernel": (model["attention"], again["attention"]),
        "device": (model["device"], again["device"]),
        "quantisation": (model["quantization"], again["quantization"]),
        **{name.replace("_", " "): (model.get(name, again[name]), again[name]) for name in ALSO_THE_MODEL},
        "weight files": (_digests(model, again), _digests(again, again)),
        "hardware": (recorded["hardware"], now["hardware"]),
        "torch": (recorded["packages"].get("torch"), now["packages"].get("torch")),
        "transformers": (recorded["packages"].get("transformers"), now["packages"].get("transformers")),
        "llmxai": (recorded["llmxai"], now["llmxai"]),
    }
    differences = tuple(f"{name}: {was!r} then, {is_!r} now" for name, (was, is_) in pairs.items() if was != is_)
    coarser = max((model["dtype"], again["dtype"]), key=lambda dtype: RELATIVE.get(dtype, 0.05))
    base = RELATIVE.get(coarser, 0.05)
    where = f"{coarser}, {again['attention']} attention on {again['device']}"
    if not differences:
        return base, f"{base:g} of the largest value: {where}, the same circumstances", differences
    wide = base * ELSEWHERE
    return (
        wide,
        f"{wide:g} of the largest value: {where}, in other circumstances",
        differences,
    )


def compare(
    recorded: Mapping[str, Any],
    recorded_maps: Mapping[str, np.ndarray],
    now: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
) -> Comparison:
    """Compare two explanation.json with their maps: the recorded and the recomputed one."""
    tolerance, reason, differences = allowed(recorded["environment"], now["environment"])
    then, again = ([token["id"] for token in each["tokens"]] for each in (recorded, now))
    if then != again:
        place = next((i for i, pair in enumerate(zip(then, again, strict=False)) if pair[0] != pair[1]), None)
        where = f"after token {min(len(then), len(again)) - 1}" if place is None else f"at token {place}"
        answer = f"differs {where}"
        return Comparison("incomparable", tolerance, reason, differences, answer, {}, 0)
    found = {
        name: _difference(values, maps[name], tolerance)
        for name, values in sorted(recorded_maps.items())
        if name in maps and values.shape == maps[name].shape
    }
    rules = tuple(each["computed"].get("crosscheck", {}).get("version") for each in (recorded, now))
    changed = 0
    if rules[0] == rules[1]:
        statuses = zip(recorded["targets"], now["targets"], strict=True)
        changed = sum(before["status"] != after["status"] for before, after in statuses)
    else:  # another rule gives other statuses to the same figures
        differences += (f"status rule: {rules[0]!r} then, {rules[1]!r} now, so statuses are not compared",)
    within = bool(found) and all(each.within for each in found.values()) and not changed
    return Comparison(
        "within" if within else "outside", tolerance, reason, differences, "the same tokens", found, changed
    )


def _difference(recorded: np.ndarray, again: np.ndarray, tolerance: float) -> MapDifference:
    recorded, again = recorded.astype(np.float64), again.astype(np.float64)  # uint8 would wrap around
    largest = float(np.abs(recorded - again).max(initial=0.0))
    scale = float(np.abs(recorded).max(initial=0.0))
    relative = largest / scale if scale else float(largest > 0)
    return MapDifference(largest, relative, relative <= tolerance)


def recompute(
    run: Path | str,
    id: str,
    *,
    model: LoadedModel | None = None,
    trust_remote_code: bool = False,
    progress: StageProgress = quiet,
) -> Comparison:
    """Recompute the explanation of record `id` with its own settings and compare.

    `model`: one in memory; otherwise the model that the record names is loaded. Raises EvidenceError if the record is
    not an explanation, or its files are gone or were made private, and what `load` and `explain` raise.
    """
    log = read_log(run)
    entry, _ = find(log, id)
    paths = [artefact["path"] for artefact in entry.body["artefacts"] if artefact["path"].endswith("explanation.json")]
    if entry.body["kind"] != "explanation" or not paths:
        raise EvidenceError(f"{entry.id}: is a {entry.body['kind']} without an explanation.json: nothing to replay.")
    if entry.id in removed_ids(log):
        raise EvidenceError(f"{entry.id}: its files were removed (redacted or pruned): nothing to replay.")
    document, maps = read_folder((evidence_of(Path(run)).parent / paths[0]).parent)
    progress("loading the model", 0, 1)
    loaded = model or _load(document["environment"]["model"], trust_remote_code=trust_remote_code)
    again = explain(loaded, **_arguments(document), progress=progress)
    return compare(document, maps, to_json(again), to_maps(again))


def compare_full(
    explanation: Explanation,
    full: LoadedModel,
    *,
    progress: StageProgress = quiet,
) -> Explanation:
    """The explanation of a quantised model, with `full_precision` set to what quantisation changed.

    `full` is the same model, loaded without `quantize`. Its weights explain the same answer (its exact ids, teacher-
    forced) again with the same settings. Nothing else in the explanation changes; the quantised model is no longer
    needed and may be deleted before `full` is loaded.

    >>> compare_full(explain(load("smollm2", quantize="4bit"), prompt), load("smollm2"))

    Raises OptionError if the explained model was not quantised, or `full` is a different or quantised model, and what
    `explain` raises.
    """
    _require_comparable(explanation.environment["model"], full)
    answer = replace(explanation.generation, logprobs=None)  # recorded with other weights, so not comparable
    again = explain(full, answer, targets=explanation.targets, settings=explanation.settings, progress=progress)
    told = again.environment["model"]
    pairs = list(zip(explanation.gradients.values, again.gradients.values, strict=True))
    return replace(
        explanation,
        full_precision=FullPrecision(
            model=told["name"],
            dtype=told["dtype"],
            digest=told["digest"],
            replay=_by_target(again),
            cosines=tuple(_cosine(own, other) for own, other in pairs),
            same_source=tuple(bool(own.abs().argmax() == other.abs().argmax()) for own, other in pairs),
            statuses=tuple(check.status for check in again.checks),
        ),
    )


def _by_target(explanation: Explanation) -> Replay:
    """Log-prob and rank of every target: of its tokens together, and the highest."""
    views = list(explanation)
    logprobs = tuple(view.logprob for view in views)
    return Replay(logprobs=logprobs, f=logprobs, ranks=tuple(view.rank for view in views), tolerance=None)


def _require_comparable(told: Mapping[str, Any], full: LoadedModel) -> None:
    if told["quantization"] is None:
        raise OptionError(
            f"{told['name']} was explained on {told['dtype']} weights that are not quantised, so there is no full "
            f"precision to compare with. Give --quantize 4bit or 8bit, or leave out --compare-full."
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
    """Cosine of two rows; None if one is 0."""
    scale = float(a.double().norm() * b.double().norm())
    return float(a.double() @ b.double()) / scale if scale else None


def _load(told: dict[str, Any], *, trust_remote_code: bool) -> LoadedModel:
    method, _, bits = (told["quantization"] or "").partition(" ")
    return load(
        told["name"],
        dtype=told["dtype"],
        quantize=bits if method == "bitsandbytes" else None,
        revision=told["revision"],
        adapter=told["adapter"],
        trust_remote_code=trust_remote_code,
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
        "targets": _targets(document),
    }


def _targets(document: Mapping[str, Any]) -> list[str]:
    """The targets as ranges of generated tokens."""
    first = document["generation"]["prompt_len"]
    return [f"{start - first}:{end - first}" for start, end in (target["tokens"] for target in document["targets"])]


def settings_of(document: dict[str, Any]) -> Settings:
    """The requested settings: as stored, or for an older explanation as inferred from its figures.

    What an explanation does not name was computed in the precision of the stored weights.
    """
    if (asked := document["settings"]) is not None:
        return settings_from({**asked, "compute": {"precision": "stored", **asked.get("compute", {})}})
    computed = document["computed"]
    if computed["baseline"] == "tensor":
        raise OptionError("The baseline was a tensor of the caller, which is not stored: nothing to replay.")
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
        compute=Compute(gradient_dtype=computed["gradient_dtype"] if other_dtype else None, precision="stored"),
    )


def _removal(told: dict[str, Any] | None) -> Removal | None:
    """How parts of the prompt were removed, from an older explanation."""
    if told is None:
        return None
    known = {each.name for each in fields(Removal)} & told.keys() - {"baseline", "units"}
    baseline = {} if told["baseline"] is None else {"baseline": told["baseline"]}
    units = told["kind"] if told["kind"] in UNITS else "auto"
    return Removal(units=units, subsets=told["masks"], **{name: told[name] for name in known}, **baseline)
