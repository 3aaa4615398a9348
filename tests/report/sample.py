"""A small explanation that is consistent with itself, for the report's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def sample(
    prompt: Sequence[str],
    answer: Sequence[str],
    *,
    statuses: Sequence[str] | None = None,
    template: int = 1,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The first `template` prompt tokens are structure; every token is one word unless it starts without a space."""
    rng = np.random.default_rng(seed)
    texts = [*prompt, *answer]
    n, first = len(texts), len(prompt)
    statuses = statuses or ["agree"] * len(answer)
    gradients = np.zeros((len(answer), n), dtype=np.float32)
    rollout = np.zeros((len(answer), n), dtype=np.float32)
    for t in range(len(answer)):
        gradients[t, template : first + t] = rng.normal(size=first + t - template)
        row = rng.random(first + t)
        rollout[t, : first + t] = row / row.sum()
    roles = ["template" if i < template else "user" if i < first else "generated" for i in range(n)]
    starts = [
        i for i in range(n) if i <= template or i == first or texts[i].startswith(" ") or not texts[i - 1].strip()
    ]
    document = {
        "schema": "llmxai.explanation/1",
        "created": "2026-11-24T12:00:00+00:00",
        "generation": {
            "prompt_len": first,
            "stop": "length",
            "request": {"prompt": "".join(prompt)},
            "decoding": {"max_new_tokens": len(answer)},
            "answer": "".join(answer),
        },
        "tokens": [{"index": i, "id": i, "text": texts[i], "role": roles[i]} for i in range(n)],
        "words": [[a, b] for a, b in zip(starts, [*starts[1:], n], strict=True)],
        "targets": [
            _target(t, first, answer[t], statuses[t], gradients[t], rollout[t], template) for t in range(len(answer))
        ],
        "settings": {"target": "logprob", "baseline": "space", "rollout": {"residual": 0.5}},
        "environment": {"llmxai": "0.1.0", "model": {"name": "tiny", "digest": "00ff"}},
        "warnings": [],
    }
    return document, {"integrated_gradients": gradients, "rollout": rollout}


def _target(
    t: int, first: int, text: str, status: str, gradients: np.ndarray, rollout: np.ndarray, template: int
) -> dict[str, Any]:
    features = range(template, first + t)
    gap = 0.5 if status == "unconverged" else 0.01
    net = float(gradients.sum()) - gap
    return {
        "position": first + t,
        "id": first + t,
        "text": text,
        "logprob": -0.5,
        "replayed_logprob": -0.5,
        "rank": 1,
        "status": status,
        "reason": f"It is {status} because this is a sample.",
        "gap": gap,
        "local_error": gap,
        "tolerance": 0.1,
        "nodes": 40,
        "f_input": -0.5,
        "f_baseline": -0.5 - net,
        "net": net,
        "converged": status != "unconverged",
        "agreement": {"spearman": 0.5, "spearman_p": 0.04, "top_k": 5, "top_k_overlap": 0.6},
        "rollout": {
            "sink_mass": float(rollout[0]),
            "feature_mass": float(rollout[template:].sum()),
            "lost_mass": 0.0,
            "entropy": 0.8,
            "null_divergence": 0.2,
        },
        "sources": {
            "integrated_gradients": _sources(gradients, features),
            "rollout": _sources(rollout, features),
        },
    }


def _sources(values: np.ndarray, features: range) -> list[dict[str, Any]]:
    total = float(np.abs(values[list(features)]).sum())
    order = sorted(features, key=lambda i: -abs(values[i]))
    return [{"index": i, "value": float(values[i]), "share": float(abs(values[i])) / total} for i in order]


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
)


def hostile() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every hostile text as a prompt token, as an answer token, and in settings and warnings."""
    document, maps = sample(("<s>", *HOSTILE), HOSTILE, statuses=["disagree"] * len(HOSTILE))
    document["settings"]["baseline"] = HOSTILE[0]
    document["warnings"] = [HOSTILE[0]]
    return document, maps
