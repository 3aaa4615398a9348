"""Sources of an answer from a long prompt: how often the planted sentence comes first, and what it costs.

    python benchmarks/long_prompts.py --tokens 8000 --questions 20 --out benchmarks/LONG.md

Only questions that the model answers rightly count: every token of the right answer is the most probable one. With
`--read-once`, the documents are read once for all questions about them, and the seconds are without that. Prints a
table in Markdown, row by row.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from transformers import DynamicCache

from llmxai import load
from llmxai.evaluation import Row, suite_rows
from llmxai.generation import chat_inputs, encode_messages, force_response
from llmxai.methods import measure_effects
from llmxai.methods.perturbation import coarse
from llmxai.models import LoadedModel, embed, forward_logits, frozen_eval, prefix_cache
from llmxai.models.forward import shortened
from llmxai.pieces import ContextEffects
from llmxai.settings import DTYPES, Removal
from llmxai.types import Generation

GIB = 2**20
"""Kibibytes, as in ru_maxrss."""
HEAD = "| question | tokens | answer | seconds | CPU seconds | load | forwards | recomputed | how | place | peak, GiB |"


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


@dataclass
class Asked:
    """Questions about the same documents with their right answers, and whether the model gives them."""

    rows: Sequence[Row]
    generations: Sequence[Generation]
    right: Sequence[bool]
    prefix: DynamicCache
    """Keys and values of what they share."""


def asked(loaded: LoadedModel, rows: Sequence[Row]) -> Asked:
    """The documents are read once for all of the questions."""
    generations = []
    for row in rows:
        prompt = encode_messages(loaded, list(row.messages or ()), chat_inputs(**row.given))
        generations.append(force_response(loaded, prompt, response=str(row.response)))
    shared = next(i for i, ids in enumerate(zip(*(each.ids for each in generations), strict=False)) if len({*ids}) > 1)
    ids = generations[0].ids[:shared]
    with torch.no_grad(), frozen_eval(loaded.model):
        prefix = prefix_cache(loaded.model, embed(loaded.model, ids)[None].to(loaded.dtype), ids)
        assert prefix is not None
        right = []
        for each in generations:
            own = range(each.prompt_len - 1 - shared, len(each.ids) - 1 - shared)
            logits = forward_logits(loaded.model, None, ids=each.ids[shared:], positions=own, prefix=prefix)
            right.append(tuple(logits[0].argmax(dim=-1).tolist()) == tuple(each.generated_ids))
    return Asked(rows, generations, right, prefix)


def read_once(prefix: DynamicCache) -> None:
    """Let `measure_effects` take the keys and values of what the questions share from `prefix`."""
    coarse.prefix_cache = lambda _model, _inputs, ids: shortened(prefix, len(ids))  # type: ignore[attr-defined]


def place_of(row: Row, generation: Generation, context: ContextEffects) -> int:
    """The rank of the planted sentence among the measured pieces of documents; 0 if it was not measured."""
    ((number, begin, end),) = row.document_spans
    truth = set(generation.part("document", number).tokens(begin, end))
    drops = context.drop.tolist()
    inner = [
        i
        for i, piece in enumerate(context.pieces[context.roots :], start=context.roots)
        if piece.kind in ("sentence", "paragraph") and generation.parts[piece.part].kind == "document"
    ]
    order = sorted(inner, key=lambda i: -drops[i])
    hits = [k for k, i in enumerate(order, start=1) if truth & set(range(*context.pieces[i].tokens))]
    return hits[0] if hits else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--budget", type=int, default=Removal.budget)
    parser.add_argument("--recomputed", type=int, default=Removal.recomputed)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read-once", action="store_true", help="the documents once for all questions about them")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    given = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)
        if given.out is not None:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    loaded = load(given.model, dtype=given.dtype)
    weights, tried, places = peak(), 0, []
    threads = torch.get_num_threads()
    say(f"\n{given.model} in {given.dtype}, {threads} threads; with the weights alone {weights:.2f} GiB.\n")
    say(HEAD)
    say("| --- " * HEAD.count(" | ") + "| --- |")
    options = {"tokens": [given.tokens], "documents": given.documents}
    rows = suite_rows("long", limit=10 * given.questions, options=options, seed=given.seed)
    for _, alike in groupby(rows, key=lambda row: row.documents):
        found = asked(loaded, list(alike))
        if given.read_once:
            read_once(found.prefix)
        for row, generation, right in zip(found.rows, found.generations, found.right, strict=True):
            if len(places) == given.questions:
                break
            tried += 1
            if not right:
                continue
            removal = Removal(budget=given.budget, recomputed=given.recomputed)
            start, cpu = time.perf_counter(), time.process_time()
            context = measure_effects(loaded, generation, removal=removal).context
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            assert context is not None
            places.append(place_of(row, generation, context))
            figures = (
                *(
                    row.id,
                    len(generation.ids),
                    row.response,
                    f"{seconds:.0f}",
                    f"{cpu:.0f}",
                    f"{os.getloadavg()[0]:.1f}",
                ),
                *(context.forwards, f"{context.recomputed:,}", context.how),
                *(places[-1], f"{peak() - weights:.2f}"),
            )
            say("| " + " | ".join(map(str, figures)) + " |")
        if len(places) == given.questions:
            break
    say(
        f"\nAnswered rightly: {len(places)} of {tried}. The planted sentence first: {places.count(1)} of {len(places)}."
    )


if __name__ == "__main__":
    main()
