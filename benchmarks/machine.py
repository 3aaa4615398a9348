"""The machine that a benchmark ran on, as its results name it, and the files of its measurements and sections."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def surroundings() -> str:
    """Date, processor and how busy it is: the first line of a section."""
    return f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f}"


def apart(script: Path | str, *arguments: str) -> dict[str, Any]:
    """The figures that a script prints in a process of its own, as JSON on a line that begins with RESULT."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


def kept(samples: Path | None, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, once: a later call with the same file of JSON lines continues there.

    What has a `failure` is tried again.
    """
    text = samples.read_text() if samples is not None and samples.exists() else ""
    known = {one["of"]: one for one in map(json.loads, text.splitlines()) if "failure" not in one}
    if name not in known:
        known[name] = {"of": name, **work()}
        if samples is not None:
            samples.write_text(f"{text}{json.dumps(known[name])}\n")
    return dict(known[name])


def write_section(path: Path, title: str, lines: Sequence[str], *, introduction: str) -> None:
    """Put the section into the Markdown file, in the place of an earlier one of that title, and print it."""
    text = path.read_text(encoding="utf-8") if path.exists() else introduction
    head = f"## {title}\n"
    before, _, after = text.partition(head)
    after = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    body = "\n".join(lines)
    print(f"{head}\n{body}", flush=True)
    path.write_text(
        f"{before.rstrip()}\n\n{head}\n{body.rstrip()}\n" + (f"\n{after}" if after else ""), encoding="utf-8"
    )
