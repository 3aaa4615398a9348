"""Where results go next: OpenTelemetry, MLflow, Inspect logs and Inseq, one file each, from stored explanations.

The library of a destination is an extra (`pip install 'llmxai[mlflow]'`) and is imported when it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmxai.errors import OptionError
from llmxai.names import CURRENT, AttentionStatus


@dataclass(frozen=True)
class Result:
    """One result of an explanation, as evaluation tools know them."""

    name: str
    value: float
    """A share of the answer's tokens, 0 to 1."""
    label: str
    explanation: str


def results_of(document: Mapping[str, Any]) -> tuple[Result, ...]:
    """What an explanation (the contents of explanation.json) says of its answer.

    `llmxai.sources`: the share of confirmed tokens, and the verdict of the answer. `llmxai.accuracy`: the share whose
    contributions were computed accurately. `llmxai.attention`: the share for which attention can be read.
    """
    targets = document["targets"]
    n = len(targets)
    statuses = Counter(target["status"] for target in targets)
    names = dict.fromkeys((*map(str, CURRENT), *statuses))  # old records have others
    said = ", ".join(f"{statuses[name]} {name}" for name in names)
    converged = sum(bool(target["converged"]) for target in targets)
    found = [
        Result(
            "llmxai.sources",
            statuses["confirmed"] / n,
            str(document.get("verdict") or statuses.most_common(1)[0][0]),
            f"Of {n} tokens: {said}. Confirmed: what the contributions put first matters when it is removed.",
        ),
        Result(
            "llmxai.accuracy",
            converged / n,
            "converged" if converged == n else "unconverged" if not converged else "partly converged",
            f"The contributions of {converged} of {n} tokens are within the tolerance of their exact sum.",
        ),
    ]
    attention = Counter(target["verdict"]["attention"] for target in targets if target.get("verdict"))
    if attention:
        readable = attention[AttentionStatus.READABLE]
        label = attention.most_common(1)[0][0]
        sentence = f"Attention rollout can be read for {readable} of {n} tokens."
        found.append(Result("llmxai.attention", readable / n, label, sentence))
    return tuple(found)


def missing(library: str, extra: str, error: ImportError) -> OptionError:
    """What to say if the library of a destination is not installed."""
    return OptionError(f"{library} is not installed ({error}). Run: pip install 'llmxai[{extra}]'")
