"""Tracing through the answer side by side with FlashTrace: time, peak memory and planted sources. Writes TRACING.md.

Every measurement is a process of its own, one after the other. FlashTrace reads the same text, model and weights, with
eager attention, which it needs. Sources are those of the suite `trace`: the last word of an answer in steps.

Usage: python benchmarks/tracing.py [--model smollm2] [--repeats 3] [--questions 100] [--lengths 10/100 1000/10 10/1000]
       [--parts sources speed]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import surroundings, write_section

from llmxai import load
from llmxai.evaluation import Row, make_case, suite_rows
from llmxai.evaluation.metrics import planted_truth
from llmxai.evaluation.planted_models import tracer_folder
from llmxai.evaluation.questions import TASKS
from llmxai.generation import answer, encode_prompt, force_response
from llmxai.methods import METHODS, span_target
from llmxai.methods.tracing import followed_units
from llmxai.models import LoadedModel
from llmxai.text import group_words
from llmxai.types import Generation

OUT = Path(__file__).parent / "TRACING.md"
HOPS = (1, 3)
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

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < ENOUGH:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    peak = peak or (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"seconds": seconds, "peak_gib": peak, "units": len(followed_units(generation))}


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


def measured(*arguments: str) -> dict[str, Any]:
    print(" ".join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, __file__, "--one", *arguments], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


def speed_lines(model: str, lengths: list[str], repeats: int) -> list[str]:
    lines = [
        f"{surroundings()}. `{model}`, median of {repeats}, the whole answer as one target. llmxai: the answer and "
        f"each of its units to the default tolerance of the deletion path; FlashTrace {version('flashtrace')}.\n",
        "| prompt/answer tokens | units of the answer | llmxai, s | GiB | "
        + " | ".join(f"FlashTrace, {hops} hops, s | GiB" for hops in HOPS)
        + " |",
        "| " + " | ".join(["---"] * (4 + 2 * len(HOPS))) + " |",
    ]
    for length in lengths:
        prompt_len, answer_len = length.split("/")
        cells = [length]
        for tool in ("llmxai", *(f"flashtrace-{hops}" for hops in HOPS)):
            result = measured("speed", tool, model, prompt_len, answer_len, str(repeats))
            cells += [str(result["units"])] if tool == "llmxai" else []
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--lengths", nargs="+", default=["10/100", "1000/10", "10/1000"])
    parser.add_argument("--parts", nargs="+", default=["sources", "speed"], choices=["sources", "speed"])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        what, *values = asked.one
        if what == "speed":
            tool, model, *numbers = values
            result = speed(tool, model, *map(int, numbers))
        else:
            result = sources(int(values[0]))
        print(f"RESULT {json.dumps(result)}")
        return
    introduction = "# Tracing beside FlashTrace\n\nWritten by `make bench-tracing` (`benchmarks/tracing.py`).\n"
    if "sources" in asked.parts:
        write_section(asked.out, "Planted sources", source_lines(asked.questions), introduction=introduction)
    if "speed" in asked.parts:
        lines = speed_lines(asked.model, asked.lengths, asked.repeats)
        write_section(asked.out, f"Time and memory, {asked.model}", lines, introduction=introduction)


if __name__ == "__main__":
    main()
