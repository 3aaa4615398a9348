"""What engines cost and what a long run needs; writes benchmarks/SCALE.md (make bench-scale).

Overheads and speed-ups are ratios within one run of the records' own times, so that a busy machine disturbs them less:
a row's record says when its work began and ended. `window`: from the first beginning to the last end. `busy`: the
sum over rows. overhead = window x workers / busy - 1. What comes before the window (starting Ray, loading the model in
each worker) is told apart: it is paid once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from machine import processor
from transformers import LlamaConfig, LlamaForCausalLM

from llmxai.evidence.reading import read_log
from llmxai.runs import News, Recipe, run_recipe
from llmxai.runs.jobs import Job, pack

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from tiny import make_tokenizer  # noqa: E402  (the tokenizer of the tests)

INTRODUCTION = """# Runs at scale

Written by `make bench-scale` (benchmarks/scale.py), section by section.
"""
TOKEN_BUDGET = 16384
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "Paris", "in", "France", "red", "hat")


@dataclass(frozen=True)
class Timed:
    """One run. Seconds."""

    engine: str
    workers: int
    rows: int
    wall: float
    window: float
    busy: float
    costs: list[int]
    """tokens x targets of each row."""
    seconds: list[float]

    @property
    def overhead(self) -> float:
        return self.window * self.workers / self.busy - 1


def save_model(folder: Path, *, hidden: int, layers: int) -> Path:
    """A Llama of random weights with the tests' tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_recipe(model: Path, folder: Path, *, rows: int, longest: int, nodes: int) -> Recipe:
    """Rows of different lengths with given answers."""
    draw = random.Random(0)

    def said(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    lines = [{"q": said(draw.randint(3, longest)), "a": f" {said(1 + i % 3)}"} for i in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = {"path": "rows.jsonl", "prompt": "{{ q }}", "response": "{{ a }}", "limit": rows}
    return Recipe.model_validate(
        {
            "version": 1,
            "name": "scale",
            "model": {"name": str(model), "dtype": "float32"},
            "data": [source],
            "explain": {"max_nodes": nodes},
            "workers": {"token_budget": TOKEN_BUDGET},
        }
    )


def timed(recipe: Recipe, data: Path, out: Path, *, engine: Any, workers: int) -> Timed:
    began = time.perf_counter()
    outcome = run_recipe(recipe, out, root=data, engine=engine, workers=workers)
    wall = time.perf_counter() - began
    assert outcome.failed == 0, outcome
    records = [json.loads(record) for _, record in read_log(out)]
    spans = [tuple(datetime.fromisoformat(each[name]).timestamp() for name in ("started", "ended")) for each in records]
    window = max(end for _, end in spans) - min(start for start, _ in spans)
    table = pq.read_table(out / "rows.parquet")
    seconds = [end - start for start, end in spans]
    costs = [t * n for t, n in zip(table["n_tokens"].to_pylist(), table["n_targets"].to_pylist(), strict=True)]
    return Timed(engine, workers, outcome.ok, wall, window, sum(seconds), costs, seconds)


def fit(run: Timed) -> tuple[float, float]:
    """seconds = fixed + rate x tokens x targets, by least squares."""
    costs = np.array(run.costs)
    rate, fixed = np.polyfit(costs, np.array(run.seconds), 1)
    return float(fixed), float(rate)


def expected(costs: list[int], fixed: float, rate: float, *, workers: int) -> float:
    """Seconds that the rows take: each batch goes to the worker that is free first, as Ray hands them out."""
    jobs = [Job(i, None, "", "", cost, 1) for i, cost in enumerate(costs)]  # type: ignore[arg-type]  (only the cost counts)
    free = [0.0] * workers
    for batch in pack(jobs, budget=10**9, workers=workers):
        first = free.index(min(free))
        free[first] += sum(fixed + rate * job.cost for job in batch)
    return max(free)


def engines(rows: int, folder: Path) -> list[str]:
    model = save_model(folder / "model", hidden=256, layers=12)

    def run(engine: str, workers: int) -> Timed:
        recipe = make_recipe(model, folder, rows=rows * workers, longest=24, nodes=64)
        return timed(recipe, folder, folder / f"{engine}{workers}", engine=engine, workers=workers)

    bare = run("local", 1)
    runs = [bare, run("ray", 1), run("ray", 2)]
    fixed, rate = fit(bare)
    lines = [
        "| engine | workers | rows | rows/s in window | window, s | busy, s | overhead | the rest, s | expected, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in runs:
        model_says = expected(each.costs, fixed, rate, workers=each.workers)
        lines.append(
            f"| {each.engine} | {each.workers} | {each.rows} | {each.rows / each.window:.3f} | {each.window:.1f} | "
            f"{each.busy:.1f} | {100 * each.overhead:+.1f} % | {each.wall - each.window:.1f} | {model_says:.1f} |"
        )
    told = f"Cost of a row, fitted on the first line: {fixed:.3f} s + {1000 * rate:.3f} ms x tokens x targets."
    return [*lines, "", told]


def memory(rows: int, folder: Path) -> list[str]:
    """Resident memory of the one process, every tenth of the way."""
    model = save_model(folder / "tiny", hidden=32, layers=2)
    process, seen = psutil.Process(), dict[int, float]()

    def look(news: News) -> None:
        if news.stage == "rows" and news.rows % max(1, rows // 10) == 0:
            seen[news.rows] = process.memory_info().rss / 2**20

    began = time.perf_counter()
    run_recipe(make_recipe(model, folder, rows=rows, longest=3, nodes=4), folder / "long", root=folder, progress=look)
    took = time.perf_counter() - began
    values = list(seen.values())
    last, middle = values[-1], values[len(values) // 2]
    return [
        "| rows | " + " | ".join(map(str, seen)) + " |",
        "| --- |" + " --- |" * len(seen),
        "| MiB | " + " | ".join(f"{value:.0f}" for value in values) + " |",
        "",
        f"{rows} rows in {took:.0f} s; {last - middle:+.1f} MiB from row {list(seen)[len(values) // 2]} to the last.",
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=20, help="rows a worker")
    arguments.add_argument("--long", type=int, default=2000, help="rows of the memory test")
    arguments.add_argument("--parts", nargs="*", default=["engines", "memory"])
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    head = f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread a worker; load average "
    head += f"{os.getloadavg()[1]:.1f} (5 minutes) at the start"
    with tempfile.TemporaryDirectory() as scratch:
        if "engines" in asked.parts:
            write("Engines", [head, "", *engines(asked.rows, Path(scratch))])
        if "memory" in asked.parts:
            write("Memory", [head, "", *memory(asked.long, Path(scratch))])


def write(section: str, lines: list[str]) -> None:
    """Put the section into SCALE.md, in the place of an earlier one of that name."""
    path = HERE / "SCALE.md"
    text = path.read_text(encoding="utf-8") if path.exists() else INTRODUCTION
    title = f"## {section}\n"
    before, _, after = text.partition(title)
    after = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    told = "\n".join([f"{datetime.now(UTC):%Y-%m-%d}. {lines[0]}.", *lines[1:]])
    print(told)
    path.write_text(f"{before.rstrip()}\n\n{title}\n{told}\n" + (f"\n{after}" if after else ""), encoding="utf-8")


if __name__ == "__main__":
    main()
