"""When `llmxai explain` prints what; writes benchmarks/START.md (make bench-start).

The installed command explains the question of the demo, each time in a new process: on a pseudo-terminal, where a bar
is drawn, and through a pipe, where there are plain lines. What it prints is read as it comes, and each event is the
moment at which its words have arrived. One run before the others warms the caches and is not counted.
"""

from __future__ import annotations

import argparse
import errno
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.machine import surroundings
from llmxai.commands.explain import DEMO

OUT = Path(__file__).parent / "START.md"
COMMAND = Path(sys.executable).with_name("llmxai")
EVENTS = {
    "first byte": b"",
    "model loaded": b"generating",
    "answer": b"answer: ",
    "removal results": b"without",
}
"""What says that it has come: the first words of a stage or a result; for the first byte, anything."""
END = "end"
PLACES = {"terminal": True, "pipe": False}


@dataclass(frozen=True)
class Moment:
    """Since a command began: seconds by the clock, and seconds that it has computed, on all cores together."""

    clock: float
    computed: float


def times(command: Sequence[str | Path], *, terminal: bool) -> dict[str, Moment]:
    """When each event of a command came, and its end. Both of its outputs are read together."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = os.environ | {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    watched = psutil.Process(process.pid)
    found: dict[str, Moment] = {}
    text = b""
    while part := _read(ours):
        text += part
        now = _now(watched, began)
        found |= {event: now for event, words in EVENTS.items() if event not in found and words in text}
    os.close(ours)
    end = _now(watched, began)  # it has ended, and can be asked until it is waited for
    if process.wait() or found.keys() != EVENTS.keys():
        raise RuntimeError(f"exit {process.returncode}, events {list(found)}: {text.decode(errors='replace')}")
    return found | {END: end}


def _now(watched: psutil.Process, began: float) -> Moment:
    used = watched.cpu_times()
    return Moment(time.perf_counter() - began, used.user + used.system)


def _read(descriptor: int) -> bytes:
    """What has come; nothing at the end, which a terminal reports as an error."""
    try:
        return os.read(descriptor, 2**16)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def table(rows: Mapping[str, Sequence[Mapping[str, Moment]]]) -> list[str]:
    """Medians of every event by place, with the smallest and the largest, and the median of what was computed."""
    lines = ["| seconds to | " + " | ".join(rows) + " |", "| --- |" + " ---: |" * len(rows)]
    for event in (*EVENTS, END):
        cells = []
        for runs in rows.values():
            own = [run[event].clock for run in runs]
            computed = statistics.median(run[event].computed for run in runs)
            cells.append(f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f}); {computed:.2f}")
        lines.append(f"| {event} | " + " | ".join(cells) + " |")
    return lines


def report(rows: Mapping[str, Sequence[Mapping[str, Moment]]], note: str) -> str:
    (count,) = {len(runs) for runs in rows.values()}
    return "\n".join(
        [
            "# Time to the first byte and to the first result",
            "",
            f"Written by `make bench-start`: {surroundings()}{note}. `llmxai explain {DEMO!r}` with the embedded "
            f"model, each time in a new process: the median of {count} runs (smallest to largest), and behind the "
            f"semicolon the seconds of processor time by then, which other work on the machine hardly changes. The "
            f"model counts as loaded when the answer begins, and removal results come before the gradients.",
            "",
            *table(rows),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--note", default="", help="what else is to be known of the machine: 'shared with other work'")
    asked = parser.parse_args()
    rows: dict[str, list[dict[str, Moment]]] = {place: [] for place in PLACES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.runs + 1):
            for place, terminal in PLACES.items():
                out = Path(folder) / f"{place}-{number}"
                took = times([COMMAND, "explain", DEMO, "--max-new-tokens", "24", "--out", out], terminal=terminal)
                print(place, {event: f"{moment.clock:.2f} s" for event, moment in took.items()}, flush=True)
                if number:
                    rows[place].append(took)
    text = report(rows, f", {asked.note}" if asked.note else "")
    OUT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
