"""Sources of an answer from a long prompt: how often the planted sentence comes first, and what it costs.

    python benchmarks/long_prompts.py --tokens 8000 --questions 20

Only questions that the model answers rightly count. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import resource
import time

from llmxai import load
from llmxai.evaluation import suite_rows
from llmxai.generation import answer, chat_inputs, encode_messages
from llmxai.methods import measure_effects
from llmxai.settings import Decoding, Removal

GIB = 2**20
"""Kibibytes, as in ru_maxrss."""


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--budget", type=int, default=Removal.budget)
    parser.add_argument("--recomputed", type=int, default=Removal.recomputed)
    parser.add_argument("--model", default="smollm2")
    asked = parser.parse_args()
    loaded = load(asked.model, dtype="float32")
    weights, right, first = peak(), 0, 0
    print(f"peak with the weights alone: {weights:.2f} GiB")
    print("| question | tokens | answer | generating, s | sources, s | forwards | recomputed | how | place | peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = suite_rows(
        "long", limit=10 * asked.questions, options={"tokens": [asked.tokens], "documents": asked.documents}
    )
    for row in rows:
        if right == asked.questions:
            break
        start = time.perf_counter()
        prompt = encode_messages(loaded, list(row.messages or ()), chat_inputs(**row.given))
        generation = answer(loaded, prompt, decoding=Decoding(max_new_tokens=16))
        said = "".join(generation.texts[generation.prompt_len :])
        generating = time.perf_counter() - start
        if str(row.response).lower() not in said.lower():
            print(f"| {row.id} | {len(generation.ids)} | {said!r}: wrong | {generating:.0f} | | | | | | |", flush=True)
            continue
        start = time.perf_counter()
        context = measure_effects(
            loaded, generation, removal=Removal(budget=asked.budget, recomputed=asked.recomputed)
        ).context
        seconds = time.perf_counter() - start
        assert context is not None
        ((number, begin, end),) = row.document_spans
        truth = set(generation.part("document", number).tokens(begin, end))
        drops = context.drop.tolist()
        inner = [i for i in range(context.roots, len(drops)) if context.pieces[i].kind in ("sentence", "paragraph")]
        inside = [
            i for i in inner if context.pieces[i].part >= 0 and _kind(generation, context.pieces[i]) == "document"
        ]
        order = sorted(inside, key=lambda i: -drops[i])
        hits = [k for k, i in enumerate(order, start=1) if truth & set(range(*context.pieces[i].tokens))]
        place = hits[0] if hits else 0
        right, first = right + 1, first + (place == 1)
        print(
            f"| {row.id} | {len(generation.ids)} | {said!r} | {generating:.0f} | {seconds:.0f} | {context.forwards} | "
            f"{context.recomputed:,} | {context.how} | {place} | {peak() - weights:.2f} |",
            flush=True,
        )
    print(f"\nThe planted sentence first: {first} of {right} questions that were answered rightly.")


def _kind(generation: object, piece: object) -> str:
    return str(generation.parts[piece.part].kind)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
