"""Work that is killed at every file operation, or runs out of disk, and is done again: used by survival.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("", "evidence"))]

from logs import KEY, make_record, make_run  # noqa: E402
from test_durable import killed_at, take_out  # noqa: E402
from test_manifest import make_recipe, write_data  # noqa: E402
from tiny import make_loaded  # noqa: E402
from typer import Exit  # noqa: E402

from llmxai import Explanation, Settings, explain, save  # noqa: E402
from llmxai.commands.offline import report  # noqa: E402
from llmxai.errors import UserError  # noqa: E402
from llmxai.evidence import begin, verify  # noqa: E402
from llmxai.evidence.log import append, read_log  # noqa: E402
from llmxai.runs import run_recipe  # noqa: E402

PUBLIC = KEY.public_key()
TEXTS = {"input": "Which city? " * 2000, "output": "Paris."}
ROOMY = 64 * 1024
"""KiB of a disk that is not full."""
Table = list[tuple[Any, ...]]


def say(what: str, found: object) -> None:
    print(f"{what}: {found}", flush=True)


@dataclass
class Stage:
    """What all works start from, made once."""

    place: Path
    explanations: tuple[Explanation, ...]

    @classmethod
    def make(cls, place: Path) -> Stage:
        loaded, how = make_loaded("llama"), Settings(removal=None)
        stage = cls(place, tuple(explain(loaded, text, max_new_tokens=2, settings=how) for text in ("One", "Two is")))
        loaded.model.save_pretrained(place / "model")
        loaded.tokenizer.save_pretrained(place / "model")
        write_data(place)
        stage.save(place / "explained", 0)
        stage.run(place / "finished")
        make_run(place / "logged", 3)
        return stage

    def save(self, out: Path, which: int) -> None:
        save(self.explanations[which], out, replace=True, attempt=begin(out / "evidence", signer=KEY))

    def run(self, out: Path, **changes: Any) -> None:
        run_recipe(make_recipe(self.place / "model", **changes), out, root=self.place)


def pages(run: Path) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        report(run)


@dataclass(frozen=True)
class Work:
    """Something that writes, on a copy of `base` (None: into a new folder)."""

    name: str
    base: str | None
    do: Callable[[Stage, Path], object]

    def prepare(self, stage: Stage, run: Path) -> None:
        shutil.rmtree(run.parent, ignore_errors=True)
        run.parent.mkdir(parents=True)
        if self.base is not None:
            shutil.copytree(stage.place / self.base, run)


WORKS = (
    Work("an explanation into a new folder", None, lambda stage, run: stage.save(run, 0)),
    Work("an explanation in the place of another", "explained", lambda stage, run: stage.save(run, 1)),
    Work(
        "a record appended", "logged", lambda _, run: append(run / "evidence", make_record(), texts=TEXTS, signer=KEY)
    ),
    Work("pages of a run made again", "finished", lambda _, run: pages(run)),
    Work("a row of a run redacted", "finished", lambda _, run: take_out(run, read_log(run)[1][0].id)),
    Work("a run of 4 rows", None, lambda stage, run: stage.run(run, evaluate=None)),
)


@dataclass
class Fate:
    """How often a work was disturbed, and what was found afterwards."""

    tried: int = 0
    tampered: int = 0
    tracebacks: int = 0
    not_whole: int = 0
    """After it was done again."""
    left: int = 0
    """Files that no record covers, after it was done again."""

    def look(self, run: Path) -> None:
        self.tampered += verify(run).exit == 1

    def look_again(self, run: Path) -> None:
        verdict = verify(run, key=PUBLIC)
        self.not_whole += verdict.exit != 0
        self.left += len(verdict.uncovered)


def kills(stage: Stage, *, stride: int) -> Table:
    """Each work, ended before its first, second, ... file operation, and then done again."""
    rows = []
    for work in WORKS:
        fate, run, number = Fate(), stage.place / "kill" / "run", 0
        step = stride if work.name.startswith("a run") else 1
        while True:
            work.prepare(stage, run)
            if not killed_at(number, lambda work=work, run=run: work.do(stage, run)):
                break
            fate.tried += 1
            if run.exists():
                fate.look(run)
            work.do(stage, run)
            fate.look_again(run)
            number += step
        say(f"killed: {work.name}", fate)
        every = "each" if step == 1 else f"one in {step}"
        rows.append((work.name, every, fate.tried, fate.tampered, fate.not_whole, fate.left))
    return rows


def random_kills(stage: Stage) -> int:
    """A run that is killed at random moments until it gets through: how often. It must be whole then."""
    folder = stage.place / "random"
    folder.mkdir()
    tests = ROOT / "tests" / "runs"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    code = f"from settings import make_data; from pathlib import Path; make_data(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    command = [sys.executable, tests / "killed.py", stage.place / "model", folder, folder / "run", "2"]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=True)
    verdict = verify(folder / "run", key=PUBLIC)
    assert (verdict.exit, verdict.uncovered) == (0, []), verdict.to_text()
    assert len(list((folder / "run" / "records").iterdir())) == 5, "of 6 rows, one of which cannot be explained"
    return int(done.stdout.split()[-1])


def sizes_of(stage: Stage, work: Work, disk: Path, steps: int) -> list[int]:
    """KiB between what is there before the work and what it needs."""
    work.prepare(stage, disk / "x" / "run")
    before = used(disk)
    work.do(stage, disk / "x" / "run")
    needs = used(disk) + 64  # what it replaces is there twice for a moment
    even = {before + (needs - before) * i // steps for i in range(steps)}
    return sorted(even | {before + 4 * i for i in range(steps // 3)})


def used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def mounted(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)


def full_disks(stage: Stage, *, steps: int) -> Iterator[tuple[str, Fate, int]]:
    """In a mount namespace: each work on disks of growing size, then done again with room. Yields work, fate, fits."""
    disk = stage.place / "disk"
    disk.mkdir()
    for work in WORKS:
        mounted(disk, ROOMY)
        sizes = sizes_of(stage, work, disk, steps if not work.name.startswith("a run") else max(2, steps // 3))
        subprocess.run(["umount", str(disk)], check=True)
        fate, fits = Fate(), 0
        for size in sizes:
            mounted(disk, ROOMY)
            run = disk / "x" / "run"
            work.prepare(stage, run)
            subprocess.run(["mount", "-o", f"remount,size={max(size, used(disk), 4)}k", str(disk)], check=True)
            try:
                work.do(stage, run)
                fits += 1
            except (UserError, Exit):  # what a command ends with after a paragraph
                fate.tried += 1
            except Exception as error:
                fate.tried, fate.tracebacks = fate.tried + 1, fate.tracebacks + 1
                print(f"{work.name}, {size} KiB: {error!r}", file=sys.stderr)
            subprocess.run(["mount", "-o", f"remount,size={ROOMY}k", str(disk)], check=True)
            if run.exists():
                fate.look(run)
            work.do(stage, run)
            fate.look_again(run)
            subprocess.run(["umount", str(disk)], check=True)
        yield work.name, fate, fits


def disks_in_a_namespace(steps: int) -> Table:
    """`full_disks` in a process of its own, which may mount; empty where that is not possible."""
    command = ["unshare", "-rm", sys.executable, ROOT / "benchmarks/survival.py", "--disks-only", "--disks", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("disk\t")]
    if done.returncode or not found:
        print(done.stderr, file=sys.stderr)
    rows = [(name, *map(int, figures)) for name, *figures in found]
    say("full disks", rows)
    return rows
