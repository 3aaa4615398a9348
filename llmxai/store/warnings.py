"""The sentences of an explanation that stand beside its numbers."""

from __future__ import annotations

from llmxai.store.precision import precision_sentence
from llmxai.types import Explanation


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
