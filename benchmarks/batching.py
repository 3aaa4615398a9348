"""What passes that hold nodes of several prompts could save at most, for short prompts: `make bench-batching`.

A pass holds the nodes of one prompt, up to `chunk_tokens` tokens. Short prompts with few targets do not fill it, above
all in the later rounds of the refinement. Here every pass of some short prompts is timed, and then a full pass of the
same kind. If nodes of several prompts went through together, a token could cost no less than in a full pass, so

    bound = 1 - (tokens x cost of a token in a full pass, over all passes) / (time of all passes)

is more than any mixing of prompts can save: it would still have to pad, and to carry one cached prefix a row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from llmxai import explain, layer_integrated_gradients, load
from llmxai.generation import encode_prompt, given
from llmxai.methods._vjp import PathFunction
from llmxai.models import LoadedModel
from llmxai.types import Generation

FULL = 1024
ASKED = [
    ("The capital of France is", [" Paris", " Paris, not"]),
    ("Two plus three makes", [" five", " five, of"]),
    ("The opposite of hot is", [" cold", " cold, and"]),
    ("My dog is called Rex. My dog's name is", [" Rex", " Rex, and"]),
    ("Roses are red, violets are", [" blue", " blue, and"]),
    ("The first day of the week is", [" Monday", " Monday, and"]),
]
"""Prompts of 4 to 11 tokens, each with an answer of one token and one of three."""


@dataclass(frozen=True)
class Pass:
    """One call of the engine: a forward pass, and `backward` backward passes through its graph."""

    tokens: int
    backward: int
    seconds: float


@contextmanager
def timed() -> Iterator[list[Pass]]:
    """Every pass inside, in order."""
    passes: list[Pass] = []
    own = {name: getattr(PathFunction, name) for name in ("_values_of_chunk", "_slopes_of_chunk")}

    def wrapped(work: Callable[..., Any], *, slopes: bool) -> Callable[..., Any]:
        def call(self: PathFunction, items: Any, *more: Any) -> Any:
            started = time.perf_counter()
            result = work(self, items, *more)
            backward = max(len(node.targets) for node in more[0]) if slopes else 0
            tokens = len(items) * len(self.path.moving[self.live])
            passes.append(Pass(tokens, backward, time.perf_counter() - started))
            return result

        return call

    for name, work in own.items():
        setattr(PathFunction, name, wrapped(work, slopes=name == "_slopes_of_chunk"))
    try:
        yield passes
    finally:
        for name, work in own.items():
            setattr(PathFunction, name, work)


def costs(loaded: LoadedModel, answers: list[Generation], *, tokens: int) -> Callable[[int], float]:
    """From a number of backward passes to seconds a token, where about `tokens` go through at once.

    `answers`: one with one target, one with three.
    """
    found = {}
    for answer in answers:
        with timed() as passes:
            layer_integrated_gradients(loaded, answer, n_steps=max(1, tokens // len(answer.ids)))
        busiest = max(passes, key=lambda p: (p.tokens * (p.backward > 0), p.seconds))
        found[busiest.backward] = busiest.seconds / busiest.tokens
    per_backward = (found[3] - found[1]) / 2
    return lambda backward: found[1] + (backward - 1) * per_backward


def main() -> int:
    loaded = load(sys.argv[1] if len(sys.argv) > 1 else "smollm2", dtype="float32")
    print(f"{loaded.name}, {torch.get_num_threads()} thread(s), float32")
    sides = [[given(loaded, encode_prompt(loaded, text), response=r[k]) for text, r in ASKED] for k in (0, 1)]
    samples = [side[0] for side in sides]
    costs(loaded, samples, tokens=64)  # code that is loaded on first use
    print("tokens a pass   milliseconds a token, with 1 backward pass   with 3")
    for tokens in (32, 64, 128, 256, 512, FULL):
        cost = costs(loaded, samples, tokens=tokens)
        print(f"{tokens:>13}{1e3 * cost(1):>46.2f}{1e3 * cost(3):>9.2f}", flush=True)
    for side in sides:
        with timed() as passes:
            started = time.perf_counter()
            for answer in side:
                explain(loaded, generation=answer)
            whole = time.perf_counter() - started
        now = sum(p.seconds for p in passes)
        least = sum(p.tokens * cost(p.backward) for p in passes)
        print(
            f"{len(side)} prompts, {side[0].n_targets} target(s) each: {len(passes)} passes of "
            f"{sum(p.tokens for p in passes) / len(passes):.0f} tokens in the mean, {now:.1f} s of {whole:.1f} s "
            f"in all; in full passes {least:.1f} s: at most {1 - least / now:.0%} of the gradients' time and "
            f"{(now - least) / whole:.0%} of the whole could be saved",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
