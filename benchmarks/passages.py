"""How often the verdict is right about sentences of documents, and how high the true one comes; on planted questions.

    python benchmarks/passages.py --questions 8 --samples passages.jsonl

The whole answer is the target and sentences are the units. For each question: the deletion path, the measured effects
and the verdict on both; then the verdict on the same contributions in `SHUFFLES` random orders. Every question is
written to `--samples` at once, and a later call continues there. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from llmxai import LoadedModel, load
from llmxai.crosscheck.verdict import candidates, sources_verdict
from llmxai.evaluation import Row, make_case, suite_rows
from llmxai.evaluation.metrics import source_ranks
from llmxai.generation import chat_inputs, encode_messages, force_response
from llmxai.methods import deletion_path, estimated, measure_effects
from llmxai.methods.perturbation.coarse import measured_context
from llmxai.methods.perturbation.removal import over_tokens, unit_sums
from llmxai.models.memory import ChunkSize
from llmxai.settings import CHUNK_TOKENS, Removal, Tolerance
from llmxai.types import Effects, Generation, Scores, Target

SUITES: dict[str, dict[str, Any]] = {
    "rag": {"documents": [4], "sentences": 2},
    "injection": {},
}
SHUFFLES = 20
TOLERANCE = Tolerance(relative=0.1, absolute=0.25)
"""Wider than the default: sums of sentences need less accuracy than words, and bfloat16 gives less."""
SUBSETS = 32
"""Random halves of the sentences."""


def sampled(loaded: LoadedModel, row: Row) -> dict[str, Any]:
    """The ranks and verdicts of one question, as plain values."""
    prompt = encode_messages(loaded, list(row.messages or ()), chat_inputs(**row.given))
    generation = force_response(loaded, prompt, response=str(row.response))
    case = make_case(loaded, row, generation, target="answer")
    assert case.truth is not None
    target, truth = case.target, {i for i, known in zip(case.features, case.truth.tolist(), strict=True) if known}
    path = deletion_path(loaded, generation, targets=[target], tolerance=TOLERANCE)
    removal = Removal(units="sentence", subsets=SUBSETS, answer=False)
    plain = measure_effects(loaded, generation, targets=[target], removal=removal)
    drops, _ = over_tokens(plain.drop, plain.units, len(generation.ids))
    ranks = {
        name: source_ranks(values[0, list(case.features)].double(), case.truth, case.features, generation)
        for name, values in (("measured", drops), ("deletion path", path.values))
    }
    context = measured_context(
        *(loaded, generation, [target], removal),
        size=ChunkSize(CHUNK_TOKENS),
        units=plain.units,
        masked=plain.f_masked[0],
    )
    if context is not None and len(context.context) > 1:
        effects = context.estimates[0]
        order = sorted(context.context, key=lambda i: -float(effects[i]))
        hit = next(k for k, i in enumerate(order, 1) if truth & set(range(*context.pieces[i].tokens)))
        ranks["documents' table"] = {"mrr_document": 1 / hit}
    status, first = judged(generation, path, plain, target, truth)
    shuffled = [
        judged(generation, in_random_order(path, plain, seed), plain, target, truth) for seed in range(SHUFFLES)
    ]
    return {
        "suite": row.source,
        "id": row.id,
        "tokens": len(generation.ids),
        "units": len(plain.units),
        "nodes": path.certificate.nodes[0] if path.certificate else 0,
        "f": float(plain.f_full[0]),
        "largest": float(plain.drop.max()),
        "ranks": ranks,
        "status": status,
        "first": first,
        "shuffled": shuffled,
    }


def judged(generation: Generation, path: Scores, plain: Effects, target: Target, truth: set[int]) -> tuple[str, bool]:
    """The verdict, and whether the first unit is the planted one."""
    effects = estimated(plain, path)
    status, _ = sources_verdict(generation, path, effects, 0, target=target)
    first = candidates(path, effects, 0)[0]
    return str(status), any(truth & set(range(*unit)) for unit in first.tokens)


def in_random_order(path: Scores, plain: Effects, seed: int) -> Scores:
    """The same sums of units, dealt to other units."""
    sums = torch.from_numpy(unit_sums(path.values, plain.units))
    order = torch.randperm(len(plain.units), generator=torch.Generator().manual_seed(seed))
    values, _ = over_tokens(sums[:, order], plain.units, path.values.shape[1])
    return replace(path, values=values)


def tables(samples: Sequence[dict[str, Any]]) -> list[str]:
    """MRR of the true sentence and document by method, then the verdicts."""
    lines = ["| suite | questions | method | MRR, sentence | MRR, document |", "| --- | --- | --- | --- | --- |"]
    suites = list(dict.fromkeys(one["suite"] for one in samples))
    for suite in suites:
        own = [one for one in samples if one["suite"] == suite]
        for method in ("measured", "documents' table", "deletion path"):
            sentence, document = (
                [one["ranks"][method][name] for one in own if name in one["ranks"].get(method, ())]
                for name in ("mrr_sentence", "mrr_document")
            )
            shown = [f"{mean(each):.2f}" if each else "" for each in (sentence, document)]
            lines.append(f"| {suite} | {len(own)} | {method} | {shown[0]} | {shown[1]} |")
    lines += [
        "",
        "| suite | confirmed | of them the planted sentence | contradicted | undecided | shuffled: confirmed |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for suite in (*suites, "all"):
        own = [one for one in samples if suite in (one["suite"], "all")]
        confirmed = [one for one in own if one["status"] == "confirmed"]
        wrong = [status for one in own for status, _ in one["shuffled"]]
        others = [sum(one["status"] == status for one in own) for status in ("contradicted", "undecided")]
        right = sum(one["first"] for one in confirmed)
        lines.append(
            f"| {suite} | {len(confirmed)} of {len(own)} | {right} of {len(confirmed)} | {others[0]} | {others[1]} | "
            f"{wrong.count('confirmed')} of {len(wrong)} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=8, help="of each suite")
    parser.add_argument("--samples", type=Path, required=True)
    given = parser.parse_args()
    known = [json.loads(line) for line in given.samples.read_text().splitlines()] if given.samples.exists() else []
    loaded = load(given.model, dtype=given.dtype)
    asked = [suite_rows(suite, limit=given.questions, options=options) for suite, options in SUITES.items()]
    for row in (row for rows in zip(*asked, strict=True) for row in rows):
        if row.id in {one["id"] for one in known}:
            continue
        known.append(sampled(loaded, row))
        with given.samples.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known[-1]) + "\n")
    print("\n".join(tables(known)))


if __name__ == "__main__":
    main()
