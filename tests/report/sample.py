"""Explanations as llmxai writes them, made by hand and consistent with themselves, for the report's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmxai.names import Role
from llmxai.settings import Settings
from llmxai.text import group_words

Sample = tuple[dict[str, Any], dict[str, np.ndarray]]
TOLERANCE = 0.1
TOP_SOURCES = 20
STRUCTURE = ("bos", "template")
REASONS = {
    "agree": "Both methods rank the sources alike: Spearman 0.62, p = 0.004 against chance.",
    "diluted": "Attention rollout puts 99.6% of its mass on the first token: do not read attention here.",
    "disagree": "The two methods do not rank the sources alike: Spearman -0.12, p = 0.71 against chance.",
    "unconverged": "The gradient attribution misses completeness by 0.5 nats and 0.1 is allowed: do not read it here.",
}
BETTER = {
    "agree": ("layer_integrated_gradients", 0.7, 0.1),
    "disagree": ("attention_rollout", -0.1, 0.4),
    "diluted": (None, 0.3, 0.2),
    "unconverged": (None, None, None),
}
"""The referee's word, and the LDS of gradients and of plain rollout."""
LAYERS = 6
VARIANT = "gradient_weighted_rollout"
SPEARMAN = {"agree": (0.62, 0.004), "diluted": (0.1, 0.4), "disagree": (-0.12, 0.71), "unconverged": (0.3, 0.2)}
ENVIRONMENT = {
    "llmxai": "0.1.0",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "transformers": "5.24.0"},
    "model": {"name": "tiny", "revision": None, "digest": "00ff", "dtype": "float32", "quantization": None},
    "hardware": {"cpu": "x86_64", "gpus": []},
}


def sample(
    prompt: Sequence[str],
    answer: Sequence[str],
    *,
    statuses: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    stop: str = "length",
    seed: int = 0,
    referee: bool = True,
) -> Sample:
    """Random maps for given tokens. Unless `roles` (of the prompt) says otherwise its first token is the start mark.

    The parts of the input that the referee removes are the prompt's words but structure.
    """
    rng = np.random.default_rng(seed)
    texts, first = [*prompt, *answer], len(prompt)
    statuses = statuses or ["agree"] * len(answer)
    kinds = [*(roles or ["bos", *["user"] * (first - 1)]), *["generated"] * len(answer)]
    names = ("integrated_gradients", "rollout", "rollout_variant")
    maps = {name: np.zeros((len(answer), len(texts)), dtype=np.float32) for name in names}
    words = [list(word) for word in group_words(texts, [Role(kind) for kind in kinds])]
    parts = [word for word in words if word[1] <= first and kinds[word[0]] not in STRUCTURE]
    if referee:
        maps["leave_one_out"] = rng.normal(size=(len(answer), len(parts))).astype(np.float32)
    for t, status in enumerate(statuses):
        content = [i for i in range(first + t) if kinds[i] not in STRUCTURE]
        maps["integrated_gradients"][t, content] = rng.normal(size=len(content))
        row = rng.random(first + t)
        row[0] = 250 * row.sum() if status == "diluted" else row[0]
        maps["rollout"][t, : first + t] = row / row.sum()
        maps["rollout_variant"][t, : first + t] = 3 * rng.random(first + t)
    document = {
        "schema": "llmxai.explanation/2",
        "created": "2026-11-24T12:00:00+00:00",
        "generation": {
            "prompt_len": first,
            "stop": stop,
            "request": {"prompt": "".join(prompt)},
            "decoding": {"max_new_tokens": len(answer), "do_sample": False},
            "answer": "".join(answer),
        },
        "tokens": [{"index": i, "id": i, "text": text, "role": kinds[i]} for i, text in enumerate(texts)],
        "words": words,
        "targets": [_target(t, first, texts, statuses[t], kinds, maps) for t in range(len(answer))],
        "ablations": {"operator": "delete", "units": parts, "masks": 64, "seed": 0} if referee else None,
        "variant": {"method": VARIANT, "source": "Chefer et al. 2021", "settings": {"layers": "all"}},
        "settings": {
            "target": "logprob",
            "features": "content",
            "held": [i for i, kind in enumerate(kinds) if kind in STRUCTURE],
            "baseline": "space",
            "rollout": {"residual": 0.5},
        },
        "environment": ENVIRONMENT,
        "warnings": [],
    }
    return document, maps


def _target(
    t: int, first: int, texts: Sequence[str], status: str, kinds: Sequence[str], maps: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """net = f_input - f_baseline, sum of the values = net + gap, |gap| <= local_error, converged by the tolerance."""
    gradients, rollout = maps["integrated_gradients"][t], maps["rollout"][t]
    features = [i for i in range(first + t) if kinds[i] not in STRUCTURE]
    gap, local_error = (0.5, 0.6) if status == "unconverged" else (0.01, 0.02)
    logprob = -0.1 * (t % 7 + 1)
    net = float(gradients.sum(dtype=float)) - gap
    spearman, p = SPEARMAN[status]
    return {
        "position": first + t,
        "id": first + t,
        "text": texts[first + t],
        "logprob": logprob,
        "replayed_logprob": logprob,
        "rank": 1 + t % 3,
        "status": status,
        "reason": REASONS[status],
        "gap": gap,
        "local_error": local_error,
        "tolerance": TOLERANCE,
        "nodes": 40,
        "f_input": logprob,
        "f_baseline": logprob - net,
        "net": net,
        "converged": status != "unconverged",
        "agreement": _agreement(spearman, p, top_k=min(5, len(features))),
        "agreement_variant": _agreement(0.5, 0.01, top_k=min(5, len(features))),
        "rollout": _row(rollout, features, null_divergence=0.002 if status == "diluted" else 0.2),
        "rollout_variant": _row(maps["rollout_variant"][t], features, null_divergence=0.3),
        "curve": _curve(float(rollout[0])),
        "referee": _referee(status, maps["leave_one_out"].shape[1]) if "leave_one_out" in maps else None,
        "sources": {
            "integrated_gradients": _sources(gradients, features),
            "rollout": _sources(rollout, features),
            "rollout_variant": _sources(maps["rollout_variant"][t], features),
            "leave_one_out": _removed(maps["leave_one_out"][t]) if "leave_one_out" in maps else [],
        },
    }


def _agreement(spearman: float, p: float, *, top_k: int) -> dict[str, Any]:
    return {
        **{"spearman": spearman, "spearman_p": p, "recency_p": p / 2, "adjusted_p": min(1.0, 2 * p)},
        **{"kendall": spearman * 0.7, "top_k": top_k, "top_k_overlap": 0.6},
        **{"rank_biased_overlap": 0.55, "jensen_shannon": 0.21},
    }


def _row(row: np.ndarray, features: Sequence[int], *, null_divergence: float) -> dict[str, Any]:
    return {
        "sink_mass": float(row[0]),
        "feature_mass": float(row[list(features)].sum()),
        "lost_mass": 0.0,
        "entropy": 0.8 if len(features) > 1 else None,
        "null_divergence": null_divergence,
        "similarity": 0.9,
    }


def _curve(sink: float) -> dict[str, list[float]]:
    rising = [sink * (k + 1) / LAYERS for k in range(LAYERS)]
    return {
        "sink_mass": rising,
        "entropy": [1 - value / 2 for value in rising],
        "null_divergence": [0.5 * (1 - value) for value in rising],
        "similarity": [0.5 + value / 2 for value in rising],
    }


def _referee(status: str, n_parts: int) -> dict[str, Any]:
    better, gradients, rollout = BETTER[status]
    difference = None if gradients is None else gradients - rollout
    return {
        "better": better,
        "difference": difference,
        "interval": None if difference is None else [difference - 0.35, difference + 0.35],
        "scores": {
            "layer_integrated_gradients": {"lds": gradients, "leave_one_out": 0.5},
            "attention_rollout": {"lds": rollout, "leave_one_out": -0.1},
            VARIANT: {"lds": 0.5, "leave_one_out": 0.4},
            "leave_one_out": {"lds": 0.9, "leave_one_out": None},
        },
        "sources": [0, 1][:n_parts],
        "missed": {"layer_integrated_gradients": [], "attention_rollout": [1][: n_parts - 1], VARIANT: []},
    }


def _removed(drop: np.ndarray) -> list[dict[str, Any]]:
    found = _sources(drop, range(len(drop)))
    return [{"unit": one["index"], "value": one["value"], "share": one["share"]} for one in found]


def _sources(values: np.ndarray, features: Sequence[int]) -> list[dict[str, Any]]:
    magnitude = np.abs(values[list(features)])
    order = np.argsort(-magnitude, kind="stable")[:TOP_SOURCES]
    total = float(magnitude.sum())
    return [
        {"index": int(features[i]), "value": float(values[features[i]]), "share": float(magnitude[i]) / total}
        for i in order
    ]


CHAT = (
    ("<|im_start|>", "bos"),
    ("system", "template"),
    ("\n", "template"),
    ("Answer", "system"),
    (" briefly", "system"),
    (".", "system"),
    ("<|im_end|>", "template"),
    ("\n", "template"),
    ("<|im_start|>", "template"),
    ("user", "template"),
    ("\n", "template"),
    ("Write", "user"),
    (" Par", "user"),
    ("is", "user"),
    (" in", "user"),
    (" Arabic", "user"),
    (",", "user"),
    (" then", "user"),
    (" code", "user"),
    (".", "user"),
    ("<|im_end|>", "template"),
    ("\n", "template"),
    ("<|im_start|>", "template"),
    ("ass", "template"),
    ("istant", "template"),
    ("\n", "template"),
)
CHAT_ANSWER = (
    *("بار", "يس", " is", " Par", "is", ".", "\n", "def", " f"),
    *("():", "\n", "    return", ' "', "", "日", '"', "<end>"),
)
CHAT_STATUSES = (
    *("agree", "agree", "agree", "diluted", "unconverged", "agree", "agree", "disagree", "agree"),
    *("agree", "agree", "diluted", "agree", "agree", "disagree", "agree", "agree"),
)


def chat() -> Sample:
    """A chat with template, sub-words, Arabic, code, a half character, and every status."""
    texts, roles = zip(*CHAT, strict=True)
    return sample(texts, CHAT_ANSWER, statuses=CHAT_STATUSES, roles=roles, stop="eos")


def long(*, given: int = 4000, generated: int = 300) -> Sample:
    """300 generated and 4,000 input tokens of every status."""
    prompt = ["<s>", *[f" word{i % 97}{'.' if i % 17 == 0 else ''}" for i in range(given - 1)]]
    kinds = ("agree", "diluted", "disagree", "unconverged")
    return sample(
        prompt, [f" out{i % 53}" for i in range(generated)], statuses=[kinds[i % 4] for i in range(generated)]
    )


ALSO = {
    "lime": ("Ribeiro et al. 2016", True),
    "leave_one_out": ("Li et al. 2016", True),
    "saliency": ("Simonyan et al. 2013", False),
    "max_head_rollout": ("Abnar & Zuidema 2020", False),
    "mean_rollout": ("nobody", False),
}
"""Other methods that `newest` adds, with their sources and whether they have signs; the last is refused."""
REASON = "mean_rollout is not defined for <b>linear attention</b>\u202e."


def newest(explanation: Sample, *, seed: int = 1) -> Sample:
    """The same in schema /3, as it is with `Settings(also=tuple(ALSO))`."""
    document, maps = explanation
    rng, also = np.random.default_rng(seed), dict(maps)
    n, prompt_len = len(document["tokens"]), document["generation"]["prompt_len"]
    roles = [token["role"] for token in document["tokens"]]
    for method, (_, signed) in list(ALSO.items())[:-1]:
        name = "leave_one_out.tokens" if method == "leave_one_out" else method
        values = np.zeros((len(document["targets"]), n), dtype=np.float32)
        for t, target in enumerate(document["targets"]):
            attention = method == "max_head_rollout"
            own = [i for i in range(prompt_len + t) if attention or roles[i] not in STRUCTURE]
            values[t, own] = rng.normal(size=len(own)) if signed else 100 * rng.random(len(own))
            features = [i for i in own if roles[i] not in STRUCTURE]
            target["sources"][name] = _sources(values[t], features)
            target["sources"]["mean_rollout"] = []
        also |= {name: values, f"{name}.features": (values != 0).astype(np.uint8)}
        also |= {f"{name}.null": values} if method == "max_head_rollout" else {}
    core = {"layer_integrated_gradients": True, "attention_rollout": False, document["variant"]["method"]: False}
    computed = {name: value for name, value in document["settings"].items() if name != "variant"}
    newer = {
        "schema": "llmxai.explanation/3",
        "scores": {
            **{
                name: {"source": name, "signed": signed, "refused": None, "settings": {}}
                for name, signed in core.items()
            },
            **{
                name: {
                    "source": source,
                    "signed": signed,
                    "refused": None,
                    "settings": {"samples": 128, "target": "logprob"},
                }
                for name, (source, signed) in ALSO.items()
            },
        },
        "settings": Settings(also=tuple(ALSO)).to_dict(),
        "computed": {**computed, "tolerance": {"relative": 0.02, "absolute": 0.05}, "chunk_tokens": 512},
        "refusals": {"mean_rollout": REASON},
    }
    newer["scores"]["mean_rollout"] |= {"refused": REASON, "settings": {"refused": REASON}}
    return {**document, **newer}, also


MEASURED = ("confirmed", "contradicted", "undecided", "unconverged")
ATTENTION = ("readable", "diluted")


def measured(explanation: Sample, *, statuses: Sequence[str], attention: str | None = None, seed: int = 2) -> Sample:
    """The same with a verdict of rule 4: the deletion path, and measured effects of the prompt's parts, of the answer's
    earlier words, and of a part of the prompt together with the answer's first word."""
    document, maps = newest(explanation)
    rng, n, first = np.random.default_rng(seed), len(document["targets"]), document["generation"]["prompt_len"]
    roles = [token["role"] for token in document["tokens"]]
    deletion = np.zeros((n, len(roles)), dtype=np.float32)
    for t, target in enumerate(document["targets"]):
        own = [i for i in range(first + t) if roles[i] not in STRUCTURE]
        deletion[t, own] = rng.normal(size=len(own))
        status, read = statuses[t], attention or ATTENTION[t % 2]
        error = {"f_input": 0.0, "f_baseline": 0.0, "gap": 0.01, "local_error": 0.02, "tolerance": 0.1, "nodes": 20}
        off = {"local_error": 0.4, "converged": False} if status == "unconverged" else {"converged": True}
        reason, why = f"Why {status}.", f"Why {read}."
        target |= {
            "status": status,
            "reason": reason,
            "verdict": {"sources": status, "attention": read, "reason": reason, "attention_reason": why, "rule": 4},
            "deletion": error | off,
        }
        target["sources"]["deletion_path"] = _sources(deletion[t], own)
    parts = [{"kind": "prompt", "tokens": [unit]} for unit in document["ablations"]["units"]]
    words = [word for word in document["words"] if first <= word[0] and word[1] < len(roles)]
    units = [*parts, *({"kind": "answer", "tokens": [word]} for word in words)]
    units += [{"kind": "mentions", "tokens": [document["ablations"]["units"][0], words[0]]}] if words else []
    for unit in units:
        start, end = unit["tokens"][0]
        unit["text"] = "".join(token["text"] for token in document["tokens"][start:end])
    effect, logprobs = [], [target["replayed_logprob"] for target in document["targets"]]
    for t in range(n):
        row = [round(float(value), 6) for value in rng.normal(size=len(units))]
        last = [unit["tokens"][-1][0] if unit["kind"] == "answer" else 0 for unit in units]
        effect.append([None if place >= first + t else value for value, place in zip(row, last, strict=True)])
    spread = [0.5 if unit["kind"] == "prompt" else 0.0 for unit in units]

    def moved(way: int) -> list[list[float | None]]:
        rows = [zip(row, spread, strict=True) for row in effect]
        return [[None if value is None else value + way * width for value, width in row] for row in rows]

    foils = [target.get("foil") for target in document["targets"]]
    document |= {
        "verdict": "confirmed",
        "effects": {
            "confidence": 0.9,
            "units": units,
            "effect": effect,
            "low": moved(-1),
            "high": moved(1),
            "probability": [float(np.exp(logprob)) for logprob in logprobs],
            "probability_without": [
                [None if value is None or foil else min(1.0, float(np.exp(logprob - value))) for value in row]
                for row, logprob, foil in zip(effect, logprobs, foils, strict=True)
            ],
            "explained": [0.9] * n,
            "together": [None] * n,
        },
    }
    document["scores"]["deletion_path"] = {"source": "us", "signed": True, "refused": None, "settings": {}}
    return document, {**maps, "deletion_path": deletion, "deletion_path.features": (deletion != 0).astype(np.uint8)}


HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "{{ 7*7 }}{% raw %}",
    '" onmouseover="window.hacked=1" x="',
    "<!--",
    "<img src=x onerror=window.hacked=1>",
    "\u202eevil\u202c",
    "\0",
    "\u2028\u2029",
    "\ufeff",
    "]]>",
    "\ud83d",
    "",
    "👩",
    "\u200d",
    "pass\u200bword",
    "javascript:window.hacked=1",
    "</style><style>*{display:none}",
    "&lt;b&gt;",
)


def hostile() -> Sample:
    """Every hostile text as a prompt token, as an answer token, and in settings, reasons, warnings and a foil."""
    document, maps = sample(("<s>", *HOSTILE), HOSTILE, statuses=["disagree"] * len(HOSTILE))
    document["settings"]["baseline"] = HOSTILE[0]
    document["environment"] = {**ENVIRONMENT, "model": {"name": HOSTILE[0], "digest": "\u202e00"}}
    document["targets"][0]["reason"] = HOSTILE[0]
    document["targets"][1]["foil"] = {"id": 0, "text": HOSTILE[0] + "\u202e"}
    document["variant"] = {"method": HOSTILE[0], "source": HOSTILE[1], "settings": {"a": HOSTILE[4]}}
    document["ablations"]["operator"] = HOSTILE[4]
    document["targets"][0]["referee"]["scores"][HOSTILE[0] + "\u202e"] = {"lds": 0.1, "leave_one_out": None}
    document["warnings"] = [HOSTILE[0] + "\u202e"]
    return document, maps
