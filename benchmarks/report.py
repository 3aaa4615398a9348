"""How big the report's pages are and how fast they answer, in Chromium; writes benchmarks/REPORT.md.

A page of 300 generated and 4,000 input tokens, with every method and removals; an index of 5,000 records in one page,
and one of 50,000 with separate data pages. Made-up numbers: size and speed do not depend on them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import Browser, sync_playwright

from benchmarks.machine import processor
from llmxai.report import build_index, build_view, render_index, render_report, to_columns, write_index
from llmxai.report.export import find_chromium
from tests.report.run_sample import made_up
from tests.report.sample import long

ROOT = Path(__file__).parents[1]
RUNS = 5
# From the click to the frame after the one in which it was drawn; style, layout and paint are in it
CLICKS = """async () => {
  const frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  const times = [];
  for (const word of [...document.querySelectorAll('.target')].slice(100, 130)) {
    await frame();
    const start = performance.now();
    word.click();
    await frame();
    times.push(performance.now() - start);
  }
  return times }"""
LOADED = "() => performance.timing.loadEventEnd - performance.timing.navigationStart"
TYPED = """async () => {
  const search = document.getElementById('search'), times = [];
  for (const text of ['c', 'ci', 'cit', 'city', 'city p', 'city peru']) {
    const start = performance.now();
    search.value = text;
    search.dispatchEvent(new Event('input'));
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - start);
  }
  return times }"""
# Each act until the table shows what it asks for; the first letter of a search reads all data pages
ACTS = """async () => {
  const byId = (id) => document.getElementById(id), times = {};
  const drawn = async () => {
    do await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    while (byId('found').hasAttribute('aria-busy'));
  };
  const act = async (name, what) => {
    const start = performance.now();
    what();
    await drawn();
    times[name] = performance.now() - start;
  };
  const type = (text) => () => { byId('search').value = text; byId('search').dispatchEvent(new Event('input')); };
  const click = (key) => () => document.querySelector(`th[data-key=${key}] button`).click();
  await act('next page of the table (reads a data page)', () => byId('next').click());
  await act('filter', () => { byId('only').value = 'disagree'; byId('only').dispatchEvent(new Event('change')); });
  await act('all again', () => byId('clear').click());
  await act('first letter of a search (reads the other data pages)', type('c'));
  await act('a further letter', type('ci'));
  await act('a second word', type('city peru'));
  await act('order by a number', click('probability'));
  await act('order by a text', click('answer'));
  return times }"""
LONG = 50_000


def main() -> None:
    start = time.perf_counter()
    page = render_report(build_view(*long()))
    index = render_index(build_index(made_up(5000), name="5,000 records"))
    print(f"made in {time.perf_counter() - start:.1f} s", flush=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chromium = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        opened, clicks = measure(chromium, Path(folder) / "page.html", page, CLICKS)
        listed, typed = measure(chromium, Path(folder) / "index.html", index, TYPED)
        long_rows = measure_long(chromium, Path(folder) / "long")
        version = chromium.version
        chromium.close()
    rows = [
        ("page: size", f"{len(page.encode()) / 1e6:.2f} MB", "under 5 MB"),
        ("page: opens (median of 5)", f"{statistics.median(opened):.0f} ms", ""),
        ("page: click to repaint, median", f"{statistics.median(clicks):.0f} ms", "under 100 ms"),
        ("page: click to repaint, 95th percentile", f"{statistics.quantiles(clicks, n=20)[-1]:.0f} ms", ""),
        ("index: size", f"{len(index.encode()) / 1e6:.2f} MB", ""),
        ("index: opens (median of 5)", f"{statistics.median(listed):.0f} ms", "under 2000 ms"),
        ("index: a letter typed in the search, median", f"{statistics.median(typed):.0f} ms", ""),
        *long_rows,
    ]
    text = report(rows, version)
    (ROOT / "benchmarks" / "REPORT.md").write_text(text, encoding="utf-8")
    print(text)


def measure(chromium: Browser, path: Path, text: str, script: str) -> tuple[list[float], list[float]]:
    """Milliseconds from the start of loading to the end of the load event, and of each act of the script."""
    path.write_text(text, encoding="utf-8")
    opened, acts = [], []
    for _ in range(RUNS):
        took, done = visit(chromium, path, script)
        opened.append(took)
        acts.extend(done)
    return opened, acts


def measure_long(chromium: Browser, run: Path) -> list[tuple[str, str, str]]:
    """The index of a run of 50,000 records, written from its rows.parquet as `llmxai run` writes it."""
    (run / "records").mkdir(parents=True)
    pq.write_table(pa.table(to_columns(made_up(LONG))), run / "rows.parquet")
    start = time.perf_counter()
    index = write_index(run)
    made = time.perf_counter() - start
    visits = [visit(chromium, index, ACTS) for _ in range(RUNS)]
    data = list((run / "index-data").iterdir())
    size = sum(path.stat().st_size for path in data) / 1e6
    name = f"index of {LONG:,}"
    return [
        (f"{name}: size", f"{index.stat().st_size / 1e6:.2f} MB, and {len(data)} data pages of {size:.1f} MB", ""),
        (f"{name}: written from rows.parquet", f"{made:.1f} s", ""),
        (f"{name}: opens (median of 5)", f"{statistics.median(took for took, _ in visits):.0f} ms", "under 3000 ms"),
        *(
            (f"{name}: {act}, median of 5", f"{statistics.median(acts[act] for _, acts in visits):.0f} ms", "")
            for act in visits[0][1]
        ),
    ]


def visit(chromium: Browser, path: Path, script: str) -> tuple[float, Any]:
    """Milliseconds from the start of loading to the end of the load event, and what the script gives after it."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(path.as_uri(), wait_until="load")
    tab.wait_for_function("performance.timing.loadEventEnd > 0")
    opened, done = float(tab.evaluate(LOADED)), tab.evaluate(script)
    tab.close()
    return opened, done


def report(rows: list[tuple[str, str, str]], version: str) -> str:
    load = os.getloadavg()[0]
    return "\n".join(
        [
            "# Pages: size and speed",
            "",
            "`make bench-report`. A page of 300 generated and 4,000 input tokens, every method and removals; an index "
            "of 5,000 records in one page, and one of 50,000 with separate data pages. Numbers are made up.",
            "",
            f"Chromium {version}, {processor()}, {os.cpu_count()} cores, load average {load:.1f} at the end: other "
            "work ran at the same time if that is above 1, and times are longer for it.",
            "",
            "| what | measured | wanted |",
            "| --- | --- | --- |",
            *(f"| {what} | {measured} | {wanted} |" for what, measured, wanted in rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
