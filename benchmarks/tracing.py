"""Tracing through the answer side by side with FlashTrace: time, peak memory and planted sources. Writes TRACING.md.

Every measurement is a process of its own, one after the other. FlashTrace reads the same text, model and weights, with
eager attention, which it needs. Sources are those of the suite `trace`: the last word of an answer in steps.

Usage: python benchmarks/tracing.py [--model smollm2] [--repeats 3] [--questions 100] [--lengths 10/100 1000/10 10/1000]
       [--parts sources rows speed] [--samples tracing.jsonl]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import apart, kept, surroundings, write_section

from llmxai import load
from llmxai.evaluation import Row, make_case, suite_rows
from llmxai.evaluation.metrics import planted_truth
from llmxai.evaluation.planted_models import tracer_folder
from llmxai.evaluation.questions import TASKS
from llmxai.generation import answer, chat_inputs, encode_prompt, force_response
from llmxai.inputs import prompt_tokens
from llmxai.methods import METHODS, missing_rows, span_target, traced, tracing
from llmxai.methods.perturbation.removal import prompt_units
from llmxai.methods.tracing import Followed, followed_units, most_carried
from llmxai.models import LoadedModel
from llmxai.text import group_words
from llmxai.trace import Trace
from llmxai.types import Generation

OUT = Path(__file__).parent / "TRACING.md"
HOPS = (1, 3)
PARTS = ("sources", "rows", "speed")
QUESTION = "Omar plays the violin in Berlin and Lena plays the drums in Oslo. Describe both of them in a few sentences."
ANSWER = (
    "Omar is a musician who lives in Berlin, the capital of Germany. He plays the violin, and his instrument has four "
    "strings. Lena is a musician, too. She lives in Oslo, the capital of Norway, and she plays the drums. Both of them "
    "love music."
)
ENOUGH = 120.0
"""Seconds after which a measurement is not repeated."""
SENTENCE = "Item {i} is stored on shelf {shelf} next to the door. "


def sized(loaded: LoadedModel, prompt_len: int, answer_len: int) -> Generation:
    """A given answer to a raw prompt, both with exactly so many tokens."""
    text = "".join(SENTENCE.format(i=i, shelf=i * 7 % 53) for i in range((prompt_len + answer_len) // 8 + 2))
    whole = force_response(loaded, encode_prompt(loaded, text), response=text)
    prompt, said = whole.ids[: whole.prompt_len], whole.generated_ids
    ids = (*prompt[:prompt_len], *said[:answer_len])
    texts = (*whole.texts[:prompt_len], *whole.texts[whole.prompt_len : whole.prompt_len + answer_len])
    roles = (*whole.roles[:prompt_len], *whole.roles[whole.prompt_len : whole.prompt_len + answer_len])
    return Generation(
        ids=ids,
        prompt_len=prompt_len,
        roles=roles,
        texts=texts,
        words=group_words(texts, roles),
        logprobs=None,
        stop="given",
        request={"prompt": "".join(texts[:prompt_len])},
    )


def flashtrace(loaded: LoadedModel) -> Any:
    from flashtrace import FlashTrace

    loaded.model.set_attn_implementation("eager")  # it reads attention maps
    return FlashTrace(loaded.model, loaded.tokenizer)


def speed(tool: str, model: str, prompt_len: int, answer_len: int, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory of the sources of a whole answer."""
    loaded = load(model)
    generation = sized(loaded, prompt_len, answer_len)
    said, asked = ("".join(part) for part in (generation.texts[prompt_len:], generation.texts[:prompt_len]))
    if tool == "llmxai":
        targets = (span_target(generation),)
        method = METHODS["traced_deletion_path"].function

        def work() -> Any:
            return method(loaded, generation, targets=targets, units="auto")
    else:
        tracer, hops = flashtrace(loaded), int(tool.removeprefix("flashtrace-"))

        def work() -> Any:
            return tracer.trace(prompt=asked, target=said, hops=hops)

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < ENOUGH:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    peak = peak or resident("VmHWM") - before
    return {"seconds": seconds, "peak_gib": peak, "units": len(followed_units(generation))}


def resident(name: str) -> float:
    """Memory of this process in GiB: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def sources(questions: int) -> dict[str, Any]:
    """Reciprocal rank of the first planted source among the prompt's tokens, by task and method."""
    loaded = load(tracer_folder())
    names = ("deletion_path", "layer_integrated_gradients", "traced_deletion_path")
    found: dict[str, dict[str, list[float]]] = {}

    def enter(name: str, row: Row, scores: torch.Tensor, truth: torch.Tensor) -> None:
        ranks = found.setdefault(name, {}).setdefault(str(row.fields["task"]), [])
        ranks.append(planted_truth(scores.double(), truth)["mrr"])

    rows = list(suite_rows("trace", limit=questions, options=None))
    cases = [make_case(loaded, row, answer(loaded, row.asked, response=row.response), target="answer") for row in rows]
    for row, case in zip(rows, cases, strict=True):
        assert case.truth is not None
        for name in names:
            values = METHODS[name].function(loaded, case.generation, targets=(case.target,)).values
            enter(name, row, values[0, list(case.features)], case.truth)
    tracer = flashtrace(loaded)
    for row, case in zip(rows, cases, strict=True):
        assert case.truth is not None
        last = case.generation.n_targets - 1
        for hops in HOPS:
            told = tracer.trace(
                prompt=row.prompt,
                target=row.response,
                output_span=(last, last),
                reasoning_span=(0, last - 1),
                hops=hops,
            )
            if len(told.scores) != case.generation.prompt_len:
                raise RuntimeError(f"{row.id}: FlashTrace has {len(told.scores)} prompt tokens, not the model's own.")
            enter(f"FlashTrace, {hops} hops", row, torch.tensor(told.scores)[list(case.features)], case.truth)
    return {name: {task: sum(each) / len(each) for task, each in tasks.items()} for name, tasks in found.items()}


def rows(model: str) -> dict[str, Any]:
    """For the whole of `ANSWER`, traced with rows of few units: how far that is from a row for every unit.

    Also with one aggregated target a hop: the log-probs of the answer's units, each divided by its change of F (at
    least 1 nat) and weighted by the share that has reached it.
    """
    loaded = load(model)
    asked = prompt_tokens(loaded, [{"role": "user", "content": QUESTION}], chat_inputs())
    generation = force_response(loaded, asked, response=ANSWER)
    target, units = span_target(generation), prompt_units(generation)[0]
    more = missing_rows(generation, [target])
    own = METHODS["deletion_path"].function(loaded, generation, targets=(target,))
    found = METHODS["deletion_path"].function(loaded, generation, targets=more, tolerance=tracing.ROUGH)
    stacked = replace(
        own,
        values=torch.cat([own.values, found.values]),
        features=torch.cat([own.features, found.features]),
        certificate=None,
    )
    everything = Followed((target, *more), stacked)
    exact = traced(generation, [target], everything, units=units)
    totals = {"a row for every unit": (len(more), exact.total[0])}
    for most in (0, 4, 8, 16):
        tracing.MOST_ROWS = most
        chosen = (target, *most_carried(generation, Followed((target,), own), 1, more))
        trace = traced(generation, [target], Followed(chosen, everything.rows_for(chosen)), units=units)
        totals[f"rows of the {most} units that carry most"] = (len(chosen) - 1, trace.total[0])
    totals["one aggregated target a hop"] = aggregated(exact, everything)
    first = exact.total[0].argsort(descending=True)[:5].tolist()
    return {
        name: {
            "passes": passes,
            "distance": float((total - exact.total[0]).abs().sum() / 2),
            "first": len(set(first) & set(total.argsort(descending=True)[:5].tolist())),
        }
        for name, (passes, total) in totals.items()
    }


def aggregated(exact: Trace, everything: Followed) -> tuple[int, torch.Tensor]:
    """Hops until 2 % of the share are left on the answer, and the totals of the prompt's units."""
    owner = torch.full((everything.scores.values.shape[1],), len(exact.units))
    for number, (start, end) in enumerate(exact.units):
        owner[start:end] = number
    n, m = exact.n_sources, len(everything.targets) - 1
    sums = torch.zeros(m, len(exact.units) + 1, dtype=torch.float64)
    sums.index_add_(1, owner, everything.scores.values[1:].double())
    total, left, hops = exact.direct[0, :n].clone(), exact.direct[0, n : n + m], 0
    while left.sum() > 0.02 and hops < 20:
        row = ((left / sums.sum(dim=1).clamp(min=1.0))[:, None] * sums).sum(dim=0).clamp(min=0)
        shares = row / row.sum() * left.sum()
        total, left, hops = total + shares[:n], shares[n : n + m], hops + 1
    return hops, total


def measured(*arguments: str) -> dict[str, Any]:
    print(" ".join(arguments), file=sys.stderr, flush=True)
    return apart(__file__, "--one", *arguments)


def measured_once(samples: Path | None, *arguments: str) -> dict[str, Any]:
    return kept(samples, " ".join(arguments), lambda: {"load": os.getloadavg()[1], **measured(*arguments)})


def speed_lines(model: str, lengths: list[str], repeats: int, samples: Path | None) -> list[str]:
    tools = (*(f"flashtrace-{hops}" for hops in HOPS), "llmxai")  # the slow one last
    found = {
        (length, tool): measured_once(samples, "speed", tool, model, *length.split("/"), str(repeats))
        for tool in tools
        for length in lengths
    }
    loads = [one["load"] for one in found.values()]
    lines = [
        f"{surroundings()}. `{model}`, median of {repeats} (of fewer beyond {ENOUGH:.0f} s), the whole answer as one "
        f"target, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}. llmxai: `traced_deletion_path`; "
        f"FlashTrace {version('flashtrace')}. GiB: peak beside the weights. "
        f"Load average of the machine before each: {min(loads):.1f} to {max(loads):.1f}.\n",
        "| prompt/answer tokens | units of the answer | llmxai, s | GiB | "
        + " | ".join(f"FlashTrace, {hops} hops, s | GiB" for hops in HOPS)
        + " |",
        "| " + " | ".join(["---"] * (4 + 2 * len(HOPS))) + " |",
    ]
    for length in lengths:
        cells = [length, str(found[length, "llmxai"]["units"])]
        for tool in ("llmxai", *tools[:-1]):
            result = found[length, tool]
            cells += [f"{median(result['seconds']):.1f}", f"{result['peak_gib']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def source_lines(questions: int) -> list[str]:
    found = measured("sources", str(questions))
    lines = [
        f"{surroundings()}. Mean reciprocal rank of the first planted source among the prompt's tokens, {questions} "
        f"questions of the suite `trace`, the last word as target.\n",
        f"| method | {' | '.join(TASKS)} | mean |",
        "| " + " | ".join(["---"] * (2 + len(TASKS))) + " |",
    ]
    for name, tasks in found.items():
        values = [tasks[task] for task in TASKS]
        lines.append(f"| {name} | {' | '.join(f'{x:.2f}' for x in (*values, sum(values) / len(values)))} |")
    return lines


def row_lines(model: str) -> list[str]:
    found = measured("rows", model)
    lines = [
        f"{surroundings()}. `{model}`, an answer of 57 tokens as one target: total variation distance (0 to 1) of the "
        "traced shares from those with a row for every unit, and how many of the first five sources are the same.\n",
        "| followed | backward passes a node | distance | of the first five |",
        "| --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {name} | {one['passes']} | {one['distance']:.3f} | {one['first']} |" for name, one in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--lengths", nargs="+", default=["10/100", "1000/10", "10/1000"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--samples", type=Path, help="file of single measurements, which a later call reuses")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        what, *values = asked.one
        if what == "speed":
            tool, model, *numbers = values
            result = speed(tool, model, *map(int, numbers))
        elif what == "rows":
            result = rows(values[0])
        else:
            result = sources(int(values[0]))
        print(f"RESULT {json.dumps(result)}")
        return
    introduction = "# Tracing beside FlashTrace\n\nWritten by `make bench-tracing` (`benchmarks/tracing.py`).\n"
    if "sources" in asked.parts:
        write_section(asked.out, "Planted sources", source_lines(asked.questions), introduction=introduction)
    if "rows" in asked.parts:
        write_section(asked.out, "Rows of few units", row_lines(asked.model), introduction=introduction)
    if "speed" in asked.parts:
        lines = speed_lines(asked.model, asked.lengths, asked.repeats, asked.samples)
        write_section(asked.out, f"Time and memory, {asked.model}", lines, introduction=introduction)


if __name__ == "__main__":
    main()
