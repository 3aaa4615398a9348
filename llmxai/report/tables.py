"""The tables that need no script: every generated token, the settings, where the page comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmxai.names import AttentionStatus, Status
from llmxai.report.removal import (
    Effect,
    Effects,
    RemovalView,
    build_effects,
    build_referee,
    build_removal,
    other_methods,
)
from llmxai.report.units import AlsoView
from llmxai.report.verdict import FINE, STATUS_TEXT, Contrast, build_contrast, is_diluted
from llmxai.report.visible import Text, label, percent, plain, shorten, visible

SHOWN = 5
"""Sources of a token in the tables."""
LONGEST_TARGET = 80
"""Characters of a target that a table quotes."""
NAMES = {
    "target": "What is explained",
    "features": "Which tokens get a value",
    "held": "Held tokens (positions)",
    "baseline": "Baseline: replaces a word",
    "tolerance.relative": "Allowed error, share of the change",
    "tolerance.absolute": "Allowed error, at least (nats)",
    "max_nodes": "Most gradient evaluations per token",
    "n_steps": "Fixed number of steps",
    "rule": "How the integral is computed",
    "dtype": "Number format",
    "gradient_dtype": "Number format of the gradients",
    "rollout.refused": "Rollout: refused because",
    "variant.settings.refused": "Variant: refused because",
    "rollout.residual": "Rollout: weight of a token's own state",
    "rollout.head_fusion": "Rollout: how heads are combined",
    "rollout.layers": "Rollout: layers multiplied",
    "crosscheck.version": "Version of the status rule",
    "crosscheck.least_divergence": "Diluted below (bits from the null)",
    "crosscheck.most_sink": "Diluted above (share on the first token)",
    "crosscheck.significance": "Agree up to this p-value",
    "crosscheck.least_effect": "Fall of the log-prob that makes a part matter, nats",
    "crosscheck.effect_share": "The same, as a share of the largest effect",
    "crosscheck.most_chance": "Share of random orders that may match the removals as well",
    "crosscheck.least_units": "Fewest parts that are compared",
    "precision.stored": "Number format of the stored weights",
    "precision.computed": "Number format of the computation",
    "precision.largest_difference": "Largest difference of the log-probs from those recorded, nats",
    "compute.precision": "Precision of the computation",
    "removal.answer": "Removal: earlier words of the answer, too",
    "deletion.tolerance.relative": "Deletion path: allowed error, share of the change",
    "deletion.tolerance.absolute": "Deletion path: allowed error, at least (nats)",
    "deletion.n_steps": "Deletion path: fixed number of steps",
    "deletion.max_nodes": "Deletion path: most evaluations per token",
    "crosscheck.least_fall": "Drop of the log-prob that makes a removed part matter, nats",
    "crosscheck.fall_share": "The same, as a share of the largest drop",
    "crosscheck.top_k": "Top sources compared",
    "panels_computed_again_in_dtype": "Panels recomputed in the number format above",
    "chunk_tokens": "Tokens computed at once",
    "chunk_halvings": "Gradients: how often memory ran out and the chunk was halved",
    "checkpoint": "Activations recomputed in the backward pass, to save memory",
    "variant.method": "Rollout variant: method",
    "variant.source": "Rollout variant: source",
    "variant.settings.target": "Rollout variant: target of its gradients",
    "variant.settings.head_fusion": "Rollout variant: how heads are combined",
    "variant.settings.layers": "Rollout variant: layers",
    "referee": "Referee",
    "referee.kind": "Referee: what is removed at a time",
    "referee.operator": "Referee: how it is removed",
    "referee.kept_share": "Referee: share of the parts that a random subset keeps",
    "referee.masks": "Referee: random subsets",
    "referee.parts": "Referee: parts of the input",
    "referee.seed": "Referee: random seed",
    "referee.baseline": "Referee: token that replaces a part",
    "referee.chunk_tokens": "Referee: tokens computed at once",
    "referee.chunk_halvings": "Referee: how often memory ran out and the chunk was halved",
    "replay_tolerance": "Allowed difference when replaying (nats)",
    "schema": "Format of the data",
    "created": "Created (UTC)",
    "llmxai": "llmxai version",
    "python": "Python version",
    "model.name": "Model",
    "model.revision": "Model revision",
    "model.digest": "Digest of the weights (SHA-256)",
    "model.architecture": "Architecture",
    "model.parameters": "Parameters",
    "model.dtype": "Number format of the weights",
    "model.device": "Device",
    "model.quantization": "Quantisation",
    "model.adapter": "Adapter",
    "model.attention": "Attention kernel",
    "model.weight_files": "Weight files",
    "model.tokenizer_digest": "Digest of the tokenizer (SHA-256)",
    "model.chat_template_digest": "Digest of the chat template (SHA-256)",
    "model.config_digest": "Digest of the configuration (SHA-256)",
    "model.generation_config_digest": "Digest of the generation settings (SHA-256)",
    "model.remote_code": "Code from the model's folder was allowed to run",
    "model.identity": "Digest of the model as a whole (SHA-256)",
    "hardware.machine": "Machine",
    "hardware.cpu": "Processor",
    "hardware.threads": "Threads",
    "hardware.gpus": "GPUs",
    "decoding.max_new_tokens": "Most tokens to generate",
    "decoding.temperature": "Temperature (randomness)",
    "decoding.top_p": "Sampling: top-p",
    "decoding.top_k": "Sampling: top-k",
    "decoding.seed": "Random seed",
    "decoding.do_sample": "Sampled at random",
    "stop": "Why the answer ends",
    "gradients.baseline": "Gradients: baseline, which replaces a word",
    "gradients.tolerance.relative": "Gradients: allowed error, share of the change",
    "gradients.tolerance.absolute": "Gradients: allowed error, at least (nats)",
    "gradients.max_nodes": "Gradients: most evaluations per token",
    "gradients.n_steps": "Gradients: fixed number of steps",
    "rollout.variant": "Rollout variant",
    "removal": "Removal of parts of the prompt",
    "removal.units": "Removal: unit that is removed",
    "removal.operator": "Removal: how it is removed",
    "removal.subsets": "Removal: random subsets",
    "removal.baseline": "Removal: token that replaces a part",
    "removal.seed": "Removal: random seed",
    "removal.budget": "Removal: passes to find the parts of a long prompt",
    "removal.recomputed": "Removal: tokens that these passes may read again",
    "removal.chunk_tokens": "Removal: tokens computed at once",
    "also": "Other methods",
    "compute.gradient_dtype": "Gradients: number format",
    "compute.chunk_tokens": "Gradients: tokens computed at once",
    "compute.checkpoint": "Gradients: activations recomputed in the backward pass, to save memory",
}
CAME_FROM = {
    "features": "features",
    "baseline": "gradients.baseline",
    "tolerance.relative": "gradients.tolerance.relative",
    "tolerance.absolute": "gradients.tolerance.absolute",
    "max_nodes": "gradients.max_nodes",
    "n_steps": "gradients.n_steps",
    "rollout.residual": "rollout.residual",
    "rollout.head_fusion": "rollout.head_fusion",
    "variant.method": "rollout.variant",
    "referee.kind": "removal.units",
    "referee.operator": "removal.operator",
    "referee.masks": "removal.subsets",
    "referee.baseline": "removal.baseline",
    "referee.seed": "removal.seed",
    "referee.chunk_tokens": "removal.chunk_tokens",
    "gradient_dtype": "compute.gradient_dtype",
    "chunk_tokens": "compute.chunk_tokens",
    "checkpoint": "compute.checkpoint",
}
"""The setting behind each computed value, by its key."""


@dataclass(frozen=True)
class SourceRow:
    text: Text
    value: str
    """Nats with a sign, or a share of attention."""
    share: str


@dataclass(frozen=True)
class EffectRow:
    """A measured effect."""

    text: Text
    note: str
    value: str
    interval: str
    """Empty where it was measured by one removal."""
    change: str
    """Probability with and without the part; empty with a foil."""


@dataclass(frozen=True)
class Row:
    """One generated token."""

    number: int
    text: Text
    contrast: Contrast | None
    probability: str
    rank: int
    status: str
    sign: str
    diluted: bool
    """Whether plain rollout cannot be read; the status may be a worse one."""
    unreadable: str
    """Why attention is not to be read; empty if it can be, and before rule 4."""
    converged: bool
    """Whether integrated gradients are accurate enough."""
    reason: str
    gap: str
    """This and the next three are of the contributions: of the deletion path or, without it, of the gradients."""
    local_error: str
    tolerance: str
    nodes: int
    effects: tuple[EffectRow, ...]
    """Empty if none were measured, and before rule 4."""
    deletion_sources: tuple[SourceRow, ...]
    gradient_sources: tuple[SourceRow, ...]
    rollout_sources: tuple[SourceRow, ...]
    variant_sources: tuple[SourceRow, ...]
    removal_sources: tuple[SourceRow, ...]
    """Empty if nothing was removed."""
    also_sources: tuple[tuple[str, tuple[SourceRow, ...]], ...]
    """Name and sources by each of the other methods that is not refused."""
    referee: str
    """The referee's words before rule 4; empty if nothing was removed."""

    @property
    def flagged(self) -> bool:
        return self.status not in FINE


@dataclass(frozen=True)
class Setting:
    name: str
    """The name in plain words, or the key if there is none."""
    key: str
    value: Text
    became: Text = ()
    """The value that was used, if it differs from the requested one."""


def build_rows(explanation: Mapping[str, Any], *, also: Sequence[AlsoView] = ()) -> tuple[Row, ...]:
    """One row per generated token, in order. `also`: the other methods whose sources are listed."""
    tokens, removal, effects = explanation["tokens"], build_removal(explanation), build_effects(explanation)
    return tuple(
        _row(tokens, target, number, removal, also, effects, diluted=is_diluted(target, explanation["computed"]))
        for number, target in enumerate(explanation["targets"], start=1)
    )


def build_settings(values: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Nested settings as flat rows with their keys."""
    return tuple(Setting(_name(key), key, visible(text)) for key, text in _flat(values))


def _name(key: str) -> str:
    package = key.removeprefix("packages.")
    return NAMES.get(key, key if package == key else f"{package} version")


def build_asked(explanation: Mapping[str, Any]) -> tuple[Setting, ...]:
    """`Settings` as flat rows, each with the value that was used if it differs."""
    if explanation["settings"] is None:
        return ()
    decided = build_settings(_decided(explanation))
    came_to = {CAME_FROM[setting.key]: setting.value for setting in decided if setting.key in CAME_FROM}
    return tuple(
        setting
        if came_to.get(setting.key, setting.value) == setting.value
        else replace(setting, became=came_to[setting.key])
        for setting in build_settings(explanation["settings"])
    )


def build_computed(explanation: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Computed settings that `build_asked` does not show; for other methods, without the entries that all have."""
    asked = {setting.key for setting in build_asked(explanation)}
    shared = [(name, explanation["computed"].get(name)) for name in ("target", "features")]
    also = {
        method: {
            key: value for key, value in explanation["scores"][method]["settings"].items() if (key, value) not in shared
        }
        for method in other_methods(explanation)
    }
    settings = build_settings({**_decided(explanation), **also})
    return tuple(setting for setting in settings if CAME_FROM.get(setting.key) not in asked)


def _decided(explanation: Mapping[str, Any]) -> dict[str, Any]:
    """`computed` with the variant and the referee; the parts that were removed are shown in the text."""
    ablations = explanation["ablations"]
    referee: object = "not asked" if explanation["settings"] is None else {}  # the settings say so themselves
    if ablations is not None:
        referee = {key: value for key, value in ablations.items() if key not in ("units", "answer_drop")} | {
            "parts": len(ablations["units"])
        }
    return {**explanation["computed"], "variant": explanation["variant"], "referee": referee}


def build_origin(explanation: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Model, versions, machine and decoding."""
    return build_settings(
        {
            "schema": explanation["schema"],
            "created": explanation["created"],
            "model": explanation["environment"].get("model", {}),
            **{key: value for key, value in explanation["environment"].items() if key != "model"},
            "decoding": explanation["generation"]["decoding"],
            "stop": explanation["generation"]["stop"],
        }
    )


def _row(
    tokens: Sequence[Mapping[str, Any]],
    target: Mapping[str, Any],
    number: int,
    removal: RemovalView | None,
    also: Sequence[AlsoView],
    effects: Effects | None,
    *,
    diluted: bool,
) -> Row:
    sources, referee, verdict = target["sources"], build_referee(target["referee"], removal), target["verdict"]
    error = target["deletion"] or target
    return Row(
        number=number,
        text=label(shorten(target["text"], limit=LONGEST_TARGET)),
        contrast=build_contrast([target]),
        probability=percent(math.exp(target["replayed_logprob"])),
        rank=target["rank"],
        status=target["status"],
        sign=STATUS_TEXT[Status(target["status"])][0],
        diluted=diluted,
        reason=plain(visible(target["reason"])),
        unreadable=verdict["attention"] if verdict and verdict["attention"] != AttentionStatus.READABLE else "",
        converged=target["converged"],
        gap=signed(error["gap"]),
        local_error=f"{error['local_error']:.3f}",
        tolerance=f"{error['tolerance']:.3f}",
        nodes=error["nodes"],
        effects=_effects(effects, target, number),
        deletion_sources=_sources(tokens, sources["deletion_path"], signed),
        gradient_sources=_sources(tokens, sources["integrated_gradients"], signed),
        rollout_sources=_sources(tokens, sources["rollout"], percent),
        variant_sources=_sources(tokens, sources["rollout_variant"], lambda value: f"{value:.3g}"),
        removal_sources=_removed(removal, sources["leave_one_out"]) if removal and effects is None else (),
        also_sources=tuple(
            (each.name, _sources(tokens, sources[each.method], _number(each))) for each in also if not each.refused
        ),
        referee=referee.said if referee and verdict is None else "",
    )


def _effects(effects: Effects | None, target: Mapping[str, Any], number: int) -> tuple[EffectRow, ...]:
    if effects is None:
        return ()
    before = float(target["replayed_logprob"])
    return tuple(_effect(effects, effect, before) for effect in effects.on([number - 1])[:SHOWN] if effect.value)


def _effect(effects: Effects, effect: Effect, before: float) -> EffectRow:
    part = effects.parts[effect.part]
    return EffectRow(
        text=part.text,
        note=part.note,
        value=signed(effect.value),
        interval="" if effect.low == effect.high else f"{signed(effect.low)} to {signed(effect.high)}",
        change=effect.becomes(before),
    )


def _sources(
    tokens: Sequence[Mapping[str, Any]], sources: Sequence[Mapping[str, Any]], said: Callable[[float], str]
) -> tuple[SourceRow, ...]:
    return tuple(
        SourceRow(label(tokens[s["index"]]["text"]), said(s["value"]), f"{s['share']:.0%}") for s in sources[:SHOWN]
    )


def _number(method: AlsoView) -> Callable[[float], str]:
    """Three significant digits, since methods differ in their units; with a sign if the method has signs."""
    return lambda value: f"{value:{'+' if method.signed else ''}.3g}".replace("-", "−")


def _removed(removal: RemovalView, sources: Sequence[Mapping[str, Any]]) -> tuple[SourceRow, ...]:
    return tuple(
        SourceRow(removal.parts[s["unit"]], signed(s["value"]), f"{s['share']:.0%}")
        for s in sources[:SHOWN]
        if s["value"]
    )


def signed(value: float) -> str:
    """A value in nats with its sign; zero has none."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"


def _flat(values: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix=f"{prefix}{key}.")
        else:
            yield prefix + key, _said(value)


def _said(value: object) -> str:
    """A setting as a reader would write it; a list of positions as ranges."""
    if value is None or value == [] or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(type(item) is int for item in value):
        return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in _ranges(value))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges
