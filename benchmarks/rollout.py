"""Rollout at length, and which variant finds a planted source: writes ROLLOUT.md.

Every length is measured in a process of its own, so that the peak memory is its own. The variants answer questions
whose answer stands in the prompt among others of its kind (tests/questions.py).

Usage: python benchmarks/rollout.py [--lengths 512 1024 2048 4096 8192] [--questions 2] [--only lengths|variants]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import apart, processor
from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the planted questions are also what the tests use

from questions import FAMILIES, Question, make_question  # noqa: E402

from llmxai import LoadedModel, load  # noqa: E402
from llmxai.explain import variant_names  # noqa: E402
from llmxai.generation import encode_messages, encode_prompt, force_response  # noqa: E402
from llmxai.methods import METHODS, leave_one_out  # noqa: E402
from llmxai.methods.features import moving_tokens  # noqa: E402
from llmxai.types import Generation, predicting_position  # noqa: E402

TARGETS = 32
LENGTHS = (512, 1024, 2048, 4096, 8192)
WEIGHTED_LENGTHS = (128, 256, 512, 1024)
TOP = 5


def long_generation(loaded: LoadedModel, tokens: int) -> Generation:
    """`tokens` tokens, the last `TARGETS` of them the answer."""
    text = " ".join(f"Item {i} is stored on shelf {i * 7 % 53}." for i in range(30))
    short = force_response(loaded, encode_prompt(loaded, text), response="Shelf 31.")
    whole = [i % short.prompt_len for i in range(tokens)]  # the same list of items again and again
    return Generation(
        ids=tuple(short.ids[i] for i in whole),
        prompt_len=tokens - TARGETS,
        roles=tuple(short.roles[i] for i in whole[:-TARGETS]) + (short.roles[-1],) * TARGETS,
        texts=tuple(short.texts[i] for i in whole),
        words=(),
        logprobs=None,
        stop="given",
        request={},
    )


def one(method: str, tokens: int) -> None:
    """Measure in this process and print a line of JSON."""
    loaded = load("smollm2", dtype="float32")
    generation = long_generation(loaded, tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    rollout = METHODS[method].function(loaded, generation)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "seconds": seconds,
        "before_gib": before / 2**20,
        "peak_gib": peak / 2**20,
        "sum": float(rollout.values.sum(dim=1).mean()),
        "sink": float(rollout.values[:, 0].mean()),
        "targets": generation.n_targets,
    }
    print("RESULT " + json.dumps(figures))


def measure(method: str, tokens: int) -> dict[str, Any]:
    figures = apart(__file__, "--one", method, str(tokens))
    print(f"{method} {tokens} {figures}", file=sys.stderr, flush=True)
    return figures


def lengths_table(lengths: Sequence[int], weighted: Sequence[int]) -> list[str]:
    """Seconds and peak memory, and the memory that all eager maps at once would take."""
    lines = [
        f"## Time and memory, {TARGETS} targets\n",
        "| method | tokens | seconds | peak GiB of the process | of it before the method | eager maps, GiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, some in (("attention_rollout", lengths), ("gradient_weighted_rollout", weighted)):
        for tokens in some:
            f = measure(method, tokens)
            maps = 30 * 9 * tokens**2 * 4 / 2**30
            lines.append(
                f"| {method} | {tokens} | {f['seconds']:.1f} | {f['peak_gib']:.2f} | {f['before_gib']:.2f} | "
                f"{maps:.1f} |"
            )
    return [*lines, ""]


def ask(loaded: LoadedModel, question: Question) -> tuple[Generation, int, list[int]]:
    """The given answer, the target that says the value, and the prompt tokens where the fact states it."""
    tokens = encode_messages(loaded, [{"role": "user", "content": question.prompt}])
    generation = force_response(loaded, tokens, response=question.response)
    ends = np.cumsum([len(text) for text in generation.texts])
    whole = "".join(generation.texts)
    fact = whole.index(question.fact)
    stated_at = whole.index(question.value, fact)
    answered_at = whole.index(question.value, int(ends[generation.prompt_len - 1]))
    # a token begins where the one before ends; the space in front belongs to the word
    source = np.flatnonzero(
        (ends > stated_at) & (ends - [len(t) for t in generation.texts] < stated_at + len(question.value))
    )
    target = int(np.flatnonzero(ends > answered_at)[0]) - generation.prompt_len
    return generation, target, source.tolist()


def variants_table(loaded: LoadedModel, questions: Sequence[Question]) -> list[str]:
    """Mean reciprocal rank of the source among the prompt's content, and more, for every variant."""
    names = ["attention_rollout", *variant_names(), "leave_one_out"]
    found: dict[str, list[tuple[float, bool, float, float, float]]] = {name: [] for name in names}
    for question in questions:
        generation, target, source = ask(loaded, question)
        position = predicting_position(generation.prompt_len, target)
        moving = moving_tokens(generation, features="content")[: generation.prompt_len]
        features = np.array([i for i in range(generation.prompt_len) if moving[i] and i <= position])
        start = time.perf_counter()
        drops = leave_one_out(loaded, generation, units="token")
        seconds = time.perf_counter() - start
        lost = drops.values[target].abs().numpy()[features]
        for name in names:
            if name == "leave_one_out":
                row, sink = lost, 0.0
            else:
                start = time.perf_counter()
                rollout = METHODS[name].function(loaded, generation)
                seconds = time.perf_counter() - start
                row, sink = rollout.values[target].numpy()[features], float(rollout.values[target, 0])
            places = {int(features[i]): rank for rank, i in enumerate(np.argsort(-row, kind="stable"), 1)}
            rank = min(places[i] for i in source)
            rho = float(stats.spearmanr(row, lost).statistic) if np.ptp(row) else float("nan")
            found[name].append((1 / rank, rank <= TOP, rho, sink, seconds))
        print(question.prompt[-40:], {n: round(found[n][-1][0], 2) for n in names}, file=sys.stderr, flush=True)
    lines = [
        f"## Which variant finds the source: {len(questions)} planted questions, {len(FAMILIES)} families\n",
        "| method | MRR of the source | in the top 5 | Spearman with abs. leave-one-out | mass on the first token "
        "| seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in sorted(found.items(), key=lambda item: -np.mean([row[0] for row in item[1]])):
        mrr, hits, rho, sink, seconds = (np.nanmean(column) for column in zip(*rows, strict=True))
        first = "" if name == "leave_one_out" else f"{sink:.2f}"
        lines.append(f"| {name} | {mrr:.2f} | {hits:.0%} | {rho:.2f} | {first} | {seconds:.1f} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "TOKENS"), help=argparse.SUPPRESS)
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--weighted-lengths", type=int, nargs="*", default=list(WEIGHTED_LENGTHS))
    parser.add_argument("--questions", type=int, default=2, help="Planted questions a family.")
    parser.add_argument("--only", choices=("lengths", "variants"))
    options = parser.parse_args()
    if options.one:
        one(options.one[0], int(options.one[1]))
        return
    text = [
        "# Rollout\n",
        f"`python benchmarks/rollout.py {' '.join(sys.argv[1:])}`. {processor()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')}. "
        f"SmolLM2-135M-Instruct, float32, 30 layers, 9 heads.\n",
    ]
    if options.only != "variants":
        text += lengths_table(options.lengths, options.weighted_lengths)
    if options.only != "lengths":
        questions = [make_question(family, seed=seed) for family in FAMILIES for seed in range(options.questions)]
        text += variants_table(load("smollm2", dtype="float32"), questions)
    if options.only is None:
        (HERE / "ROLLOUT.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
