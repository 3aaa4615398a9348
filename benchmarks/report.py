"""How big the report's pages are and how fast they answer, in Chromium; writes benchmarks/REPORT.md.

A page of 300 generated and 4,000 input tokens, with every method and a referee; an index of 5,000 records. Made-up
numbers: size and speed do not depend on them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from benchmarks.machine import processor
from llmxai.report import build_index, build_view, render_index, render_report
from llmxai.report.pdf import find_chromium
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
    ]
    text = report(rows, version)
    (ROOT / "benchmarks" / "REPORT.md").write_text(text, encoding="utf-8")
    print(text)


def measure(chromium: Browser, path: Path, text: str, script: str) -> tuple[list[float], list[float]]:
    """Milliseconds from the start of loading to the end of the load event, and of each act of the script."""
    path.write_text(text, encoding="utf-8")
    opened, acts = [], []
    for _ in range(RUNS):
        tab = chromium.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(path.as_uri(), wait_until="load")
        tab.wait_for_function("performance.timing.loadEventEnd > 0")
        opened.append(float(tab.evaluate(LOADED)))
        acts.extend(tab.evaluate(script))
        tab.close()
    return opened, acts


def report(rows: list[tuple[str, str, str]], version: str) -> str:
    load = os.getloadavg()[0]
    return "\n".join(
        [
            "# Pages: size and speed",
            "",
            "`make bench-report`. A page of 300 generated and 4,000 input tokens, every method and a referee; an index "
            "of 5,000 records. Numbers are made up.",
            "",
            f"Chromium {version}, {processor()}, {os.cpu_count()} cores, load average {load:.1f} at the end: other "
            "work ran beside it where that is above 1, and times are longer for it.",
            "",
            "| what | measured | wanted |",
            "| --- | --- | --- |",
            *(f"| {what} | {measured} | {wanted} |" for what, measured, wanted in rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
