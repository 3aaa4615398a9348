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


def refusals_of(explanation: Explanation) -> dict[str, str]:
    """By method, why a rollout is not defined for the model."""
    return {one.method: one.refused for one in (explanation.rollout, explanation.variant) if one.refused is not None}


def warnings_of(explanation: Explanation) -> list[str]:
    """What a reader has to know beside the numbers, in plain sentences."""
    generation = explanation.generation
    warnings = []
    if generation.stop == "length":
        warnings.append(f"The answer was cut at {generation.n_targets} tokens, before the model ended it.")
    if generation.stop == "given":
        warnings.append("The answer was given, not generated: the model may never have said it by itself.")
    if generation.classes:
        warnings.append(
            f"The model is a classifier: the one token of the answer is its class {generation.generated_ids[0]} "
            f"({generation.texts[-1]!r}) of {len(generation.classes)}, not a word that it wrote."
        )
    if generation.source_len:
        warnings.append(
            f"The model is an encoder-decoder: it read the first {generation.source_len} tokens whole, as the source, "
            f"and wrote the answer from them and from what it had written before."
        )
    if sentence := precision_sentence(explanation):
        warnings.append(sentence)
    for reason in dict.fromkeys(refusals_of(explanation).values()):
        methods = " and ".join(name for name, why in refusals_of(explanation).items() if why == reason)
        warnings.append(f"{methods.replace('_', ' ').capitalize()} refused. {reason}")
    return warnings
