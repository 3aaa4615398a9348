"""What engines cost, what a long run needs, and what follows for more devices; writes benchmarks/SCALE.md.

`make bench-scale` measures. `python benchmarks/scale.py --project RUN` reads the folder of any finished run, on
whatever device, and prints what its cost of a row comes to with more workers and rows.

Overheads and speed-ups are ratios within one run of the records' own times, so that a busy machine disturbs them less:
a row's record says when its work began and ended. `window`: from the first beginning to the last end. `busy`: the
sum over rows. overhead = window x workers / busy - 1. What comes before the window (starting Ray, loading the model in
each worker) is counted separately: it is paid once.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from machine import surroundings, write_section
from scipy.optimize import nnls
from transformers import LlamaConfig, LlamaForCausalLM

from llmxai.evaluation import Row
from llmxai.evidence import open_log
from llmxai.evidence.log import read_log
from llmxai.runs import Recipe, RunProgress, run_recipe
from llmxai.runs.engines import load_for
from llmxai.runs.ledger import Ledger
from llmxai.runs.scheduling import ROWS_A_WORKER, WINDOW, Job, Plan, Processes, Window, pack
from llmxai.runs.worker import Worker
from llmxai.runs.writer import RunWriter

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


def make_recipe(model: Path, folder: Path, *, rows: int, longest: int, answer: int, nodes: int) -> Recipe:
    """Rows of different lengths, prompts of up to `longest` words and given answers of up to `answer`."""
    draw = random.Random(0)

    def text_of(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    lines = [
        {"q": text_of(draw.randint(min(3, longest), longest)), "a": f" {text_of(1 + i % answer)}"} for i in range(rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = {"path": "rows.jsonl", "prompt": "{{ q }}", "response": "{{ a }}", "limit": rows}
    return Recipe.model_validate(
        {
            "version": 2,
            "name": "scale",
            "model": {"name": str(model), "dtype": "float32"},
            "data": [source],
            "explain": {"gradients": {"max_nodes": nodes}},
            "workers": {"token_budget": TOKEN_BUDGET},
        }
    )


def timed(recipe: Recipe, data: Path, out: Path, *, engine: Any, workers: int) -> Timed:
    began = time.perf_counter()
    if engine == "accelerate":
        (data / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)))
        command = [sys.executable, "-m", "llmxai", "run", str(data / "recipe.yaml"), "--out", str(out)]
        command += ["--engine", engine, "--workers", str(workers), "--progress", "none"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    else:
        assert run_recipe(recipe, out, root=data, engine=engine, workers=workers).failed == 0
    wall = time.perf_counter() - began
    records = [json.loads(record) for _, record in read_log(out)]
    spans = [tuple(datetime.fromisoformat(each[name]).timestamp() for name in ("started", "ended")) for each in records]
    window = max(end for _, end in spans) - min(start for start, _ in spans)
    table = pq.read_table(out / "rows.parquet")
    seconds = [end - start for start, end in spans]
    costs = [t * n for t, n in zip(table["n_tokens"].to_pylist(), table["n_targets"].to_pylist(), strict=True)]
    return Timed(engine, workers, len(records), wall, window, sum(seconds), costs, seconds)


def fit(costs: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """seconds = fixed + rate x tokens x targets: least squares, neither below 0."""
    columns = np.stack([np.ones(len(costs)), np.array(costs, dtype=float)], axis=1)
    (fixed, rate), _ = nnls(columns, np.array(seconds))
    return float(fixed), float(rate)


def expected(costs: Sequence[int], fixed: float, rate: float, *, workers: int) -> float:
    """Seconds that the rows take: batches are cut window by window, and each goes to the worker that is free first, as
    Ray hands them out."""
    jobs = [Job(i, Row("", "", prompt=""), "", "", cost, 1) for i, cost in enumerate(costs)]  # only the cost counts
    size = max(WINDOW, ROWS_A_WORKER * workers)
    free = [0.0] * workers
    for first in range(0, len(jobs), size):
        for batch in pack(jobs[first : first + size], budget=10**9, workers=workers):
            heapq.heapreplace(free, free[0] + sum(fixed + rate * job.cost for job in batch))
    return max(free)


def engines(rows: int, folder: Path) -> list[str]:
    model = save_model(folder / "model", hidden=256, layers=8)

    def run(engine: str, workers: int) -> Timed:
        recipe = make_recipe(model, folder, rows=rows * workers, longest=24, answer=3, nodes=64)
        return timed(recipe, folder, folder / f"{engine}{workers}", engine=engine, workers=workers)

    bare = run("local", 1)
    runs = [bare, run("ray", 1), run("ray", 2), run("accelerate", 2)]
    fixed, rate = fit(bare.costs, bare.seconds)
    lines = [
        "| engine | workers | rows | rows/s | of the bare loop's a worker | window, s | busy, s | overhead | before and"
        " after, s | window by the cost model, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in runs:
        speed = each.rows / each.window
        share = speed / each.workers / (bare.rows / bare.window)
        model_says = expected(each.costs, fixed, rate, workers=each.workers)
        lines.append(
            f"| {each.engine} | {each.workers} | {each.rows} | {speed:.3f} | {100 * share:.0f} % | {each.window:.1f} | "
            f"{each.busy:.1f} | {100 * each.overhead:+.1f} % | {each.wall - each.window:.1f} | {model_says:.1f} "
            f"({100 * (model_says / each.window - 1):+.0f} %) |"
        )
    slower = runs[2].busy / sum(fixed + rate * cost for cost in runs[2].costs) - 1
    note = (
        f"Cost of a row, fitted on the first line: {fixed:.3f} s + {1000 * rate:.3f} ms x tokens x targets. With two "
        f"workers of Ray on these two cores a row itself took {100 * slower:+.0f} % of that."
    )
    return [*lines, "", note]


def writer(rows: int, folder: Path) -> list[str]:
    """Rows a second that the one writer enters, with all of them prepared, and what planning a row takes."""
    model = save_model(folder / "tiny", hidden=32, layers=2)
    recipe = make_recipe(model, folder, rows=1, longest=3, answer=3, nodes=4)
    job = Job(0, Row("a", "s", prompt="the cat sat", response=" on"), "key", "0" * 24, 4, 1)
    worker = Worker.of(load_for(recipe.model, Processes()), recipe, run=folder / "first", signed_by=None)
    worker.do(job)
    found = Ledger(folder / "first").prepared("a", key="key")
    assert found is not None
    outcome, prepared = found
    assert prepared is not None
    lines = ["| rows ready at a time | rows entered a second |", "| --- | --- |"]
    for ready in (1, 100):
        ledger = Ledger(folder / f"ready{ready}")
        with open_log(folder / f"ready{ready}" / "evidence") as log:
            clerk = RunWriter(log, ledger, news=RunProgress("rows"), progress=lambda _news: None)
            jobs = tuple(replace(job, index=i, row=replace(job.row, id=f"r{i}")) for i in range(rows))
            clerk.expect(Window(jobs, frozenset(range(rows))))
            took = 0.0
            for i, each in enumerate(jobs):
                draft = replace(prepared, record=replace(prepared.record, id=f"{i:024d}"))
                ledger.prepare(each.row.id, outcome, draft)
                if (i + 1) % ready == 0:
                    began = time.perf_counter()
                    clerk.advance()
                    took += time.perf_counter() - began
            assert not clerk.waits
        lines.append(f"| {ready} | {rows / took:.0f} |")
    size = (folder / "ready1" / "evidence" / "log.jsonl").stat().st_size / rows
    plan = Plan(recipe, "model", worker.loaded.tokenizer, Ledger(folder / "planned"), set(), False)
    began = time.perf_counter()
    words = " ".join(random.Random(0).choices(WORDS, k=120))
    planned = list(plan.windows((Row(f"r{i}", "s", prompt=words, response=" on") for i in range(rows)), workers=800))
    took = 1000 * (time.perf_counter() - began) / sum(len(window.jobs) for window in planned)
    return [
        *lines,
        "",
        f"{rows} rows each; {size / 1000:.1f} kB a record in log.jsonl. This depends on the disk. A row of 120 "
        f"words is planned before (its key, its tokens, whether it is done) in {took:.2f} ms.",
    ]


def project(run: Path, workers: Sequence[int], rows: int, *, name: str) -> list[str]:
    """What a finished run's own rows, drawn again up to `rows`, would take with more workers of the same device."""
    table = pq.read_table(run / "rows.parquet").to_pylist()
    done = [row for row in table if row["status"] == "ok" and row["n_tokens"] and row["n_targets"]]
    if not done:
        raise SystemExit(f"{run}: holds no row that was explained, so there is nothing to compute from.")
    costs = [row["n_tokens"] * row["n_targets"] for row in done]
    fixed, rate = fit(costs, [row["seconds"] for row in done])
    drawn = random.Random(0).choices(costs, k=rows)
    lines = [
        f"From {len(done)} rows of {name}: a row takes {fixed:.3f} s + {1000 * rate:.4f} ms x tokens x targets "
        f"(mean {fixed + rate * sum(costs) / len(costs):.2f} s). {rows} rows drawn from them",
        "",
        "| workers | hours | rows/s | of a perfect division |",
        "| --- | --- | --- | --- |",
    ]
    alone = sum(fixed + rate * cost for cost in drawn)
    for count in workers:
        took = expected(drawn, fixed, rate, workers=count)
        lines.append(f"| {count} | {took / 3600:.2f} | {rows / took:.3g} | {100 * alone / count / took:.1f} % |")
    return lines


def memory(rows: int, folder: Path) -> list[str]:
    """Resident memory of the one process, every tenth of the way."""
    model = save_model(folder / "tiny", hidden=32, layers=2)
    recipe = make_recipe(model, folder, rows=rows, longest=1, answer=1, nodes=4)
    process, seen = psutil.Process(), dict[int, float]()

    def look(news: RunProgress) -> None:
        if news.stage == "rows" and news.rows % max(1, rows // 10) == 0:
            seen[news.rows] = process.memory_info().rss / 2**20

    began = time.perf_counter()
    run_recipe(recipe, folder / "long", root=folder, progress=look)
    took = time.perf_counter() - began
    values = list(seen.values())
    last, first = values[-1], values[0]
    after = process.memory_info().rss / 2**20
    return [
        "| rows | " + " | ".join(map(str, seen)) + " | tables and index written |",
        "| --- |" + " --- |" * (len(seen) + 1),
        "| MiB | " + " | ".join(f"{value:.0f}" for value in [*values, after]) + " |",
        "",
        f"{rows} rows in {took:.0f} s; {last - first:+.1f} MiB from row {next(iter(seen))} to the last.",
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=20, help="rows a worker")
    arguments.add_argument("--long", type=int, default=2000, help="rows of the memory test")
    arguments.add_argument("--parts", nargs="*", default=["engines", "memory", "writer"])
    arguments.add_argument(
        "--project", type=Path, metavar="RUN", help="compute from a finished run; nothing is measured"
    )
    arguments.add_argument("--workers", type=int, nargs="*", default=[1, 8, 800], help="of --project")
    arguments.add_argument("--of", type=int, default=50_000, help="rows of --project")
    asked = arguments.parse_args()
    if asked.project is not None:
        print("\n".join(project(asked.project, asked.workers, asked.of, name=str(asked.project))))
        return
    torch.set_num_threads(1)
    head = f"{surroundings()} at the start, torch {torch.__version__}, one thread a worker."
    with tempfile.TemporaryDirectory() as scratch:
        if "engines" in asked.parts:
            write("Engines", [head, "", *engines(asked.rows, Path(scratch))])
            note = project(Path(scratch) / "local1", asked.workers, asked.of, name="the first line above")
            write("Computed, not measured", [head, "", *note])
        if "memory" in asked.parts:
            write("Memory", [head, "", *memory(asked.long, Path(scratch))])
        if "writer" in asked.parts:
            write("The one writer", [head, "", *writer(1000, Path(scratch))])


def write(section: str, lines: list[str]) -> None:
    """Put the section into SCALE.md."""
    write_section(HERE / "SCALE.md", section, lines, introduction=INTRODUCTION)


if __name__ == "__main__":
    main()
