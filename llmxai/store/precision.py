"""What quantisation changed, as plain JSON values and as one sentence."""

from __future__ import annotations

from statistics import median
from typing import Any

from llmxai.types import Explanation


def full_precision_of(explanation: Explanation) -> dict[str, Any] | None:
    """The comparison with full precision, with its medians; None where none was made."""
    full = explanation.full_precision
    if full is None:
        return None
    quantised = explanation.replay.logprobs
    differences = [own - other for own, other in zip(quantised, full.replay.logprobs, strict=True)]
    cosines = [cosine for cosine in full.cosines if cosine is not None]
    statuses = [check.status for check in explanation.checks]
    return {
        "model": full.model,
        "dtype": full.dtype,
        "digest": full.digest,
        "median_difference": median(map(abs, differences)),
        "largest_difference": max(map(abs, differences)),
        "median_cosine": median(cosines) if cosines else None,
        "first_choice": full.replay.ranks.count(1),
        "same_source": sum(full.same_source),
        "same_status": sum(own == other for own, other in zip(statuses, full.statuses, strict=True)),
        "targets": [
            {
                "logprob": full.replay.logprobs[t],
                "rank": full.replay.ranks[t],
                "difference": difference,
                "cosine": full.cosines[t],
                "same_source": full.same_source[t],
                "status": str(full.statuses[t]),
            }
            for t, difference in enumerate(differences)
        ],
    }


def precision_sentence(explanation: Explanation) -> str:
    """That the weights were quantised and, where it was measured, what that changed; empty at full precision."""
    quantization = explanation.environment["model"]["quantization"]
    if not quantization:
        return ""
    said = f"The model ran with {quantization}; the explanation is of those quantised weights."
    told = full_precision_of(explanation)
    if told is None:
        return f"{said} What quantisation changed was not measured."
    n = len(told["targets"])
    cosine = "" if told["median_cosine"] is None else f", of cosine {told['median_cosine']:.3f} in the median,"
    return (
        f"{said} Compared with the {told['dtype']} weights on the same answer: its log-probs differ by "
        f"{told['median_difference']:.2g} nats in the median and {told['largest_difference']:.2g} at most; the "
        f"gradient attributions{cosine} have the same first source for {told['same_source']} of {n} tokens; "
        f"{told['same_status']} of {n} have the same status, and {told['first_choice']} of {n} are also the full "
        f"model's first choice."
    )
