"""What is left after kills, full disks, forgeries and hostile files; writes benchmarks/SURVIVAL.md.

`make bench-survival` runs it. Everything is made from nothing with a tiny model of random weights. The kills, the
mutations and the fuzzing are those of the tests (tests/evidence, tests/report/mutated.py), here with counts. What
survives undetected is listed by name.

A full disk is a small tmpfs in a mount namespace of its own (`unshare -rm`, Linux).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("", "evidence"))]

import torch  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from logs import OTHER_KEY, make_record, make_run  # noqa: E402
from test_hostile import fuzz_once, make_original, rewrite  # noqa: E402
from test_manifest import files_of, signing_pem  # noqa: E402
from test_tampering import cut_the_tail_cleanly  # noqa: E402

from benchmarks.interrupted import PUBLIC, Stage, Table, disks_in_a_namespace, full_disks, kills, random_kills, say  # noqa: E402
from benchmarks.machine import surroundings  # noqa: E402
from llmxai.evidence import verify  # noqa: E402
from llmxai.evidence.files import describe  # noqa: E402
from llmxai.evidence.log import append  # noqa: E402
from llmxai.evidence.record import RecordKind  # noqa: E402
from llmxai.evidence.verifier.check import read_held  # noqa: E402
from tests.report import mutated  # noqa: E402

OUT = ROOT / "benchmarks" / "SURVIVAL.md"
HOLDERS = ("nothing", "public key", "key and checkpoint")


# files that are changed, and by what they are found


def at_byte(where: float) -> Callable[[Path, Path], None]:
    def edit(path: Path, _other: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(where * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return edit


def exchanged(path: Path, other: Path) -> None:
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def linked(path: Path, _other: Path) -> None:
    aside = path.parent.with_name("aside")
    shutil.copyfile(path, aside)
    path.unlink()
    path.symlink_to(aside)


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "first byte": at_byte(0),
    "middle byte": at_byte(0.5),
    "last byte": at_byte(1),
    "a byte more": lambda path, _: path.write_bytes(path.read_bytes() + b" "),
    "cut in half": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "last line removed": lambda path, _: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1])),
    "emptied": lambda path, _: os.truncate(path, 0),
    "removed": lambda path, _: path.unlink(),
    "exchanged": exchanged,
    "a link to the same": linked,
}


def kind_of(name: str) -> str:
    if name.startswith("evidence/"):
        return name
    first, _, last = name.partition("/")
    return f"{first}/.../{last.rpartition('/')[2]}" if first == "records" else f"{first}/" if last else name


def held_by(holder: str, run: Path) -> dict[str, Any]:
    key = {} if holder == "nothing" else {"key": PUBLIC}
    return key | ({"held": [read_held(run / "evidence" / "checkpoints.jsonl")]} if "checkpoint" in holder else {})


def mutations(stage: Stage) -> tuple[Table, list[str]]:
    """Every file of a finished run in every way: found (1 or 2), or not, by holder. And what is not found, by name."""
    whole, spoilt = stage.place / "finished", stage.place / "spoilt" / "run"
    names = files_of(whole)
    tried, found, survivors = Counter[str](), Counter[tuple[str, str]](), []
    for i, name in enumerate(names):
        for way, change in WAYS.items():
            shutil.rmtree(spoilt.parent, ignore_errors=True)
            shutil.copytree(whole, spoilt)
            change(spoilt / name, spoilt / names[(i + 1) % len(names)])
            if all(there(spoilt / each) == there(whole / each) for each in names):
                continue  # it had one line, or the other file had the same bytes
            tried[kind_of(name)] += 1
            for holder in HOLDERS:
                exit = verify(spoilt, **held_by(holder, whole)).exit
                found[kind_of(name), holder] += exit != 0
                if exit == 0:
                    survivors.append(f"{kind_of(name)}, {way}: not found with {holder} held")
    say("mutations", tried.total())
    rows = [(kind, tried[kind], *(found[kind, holder] for holder in HOLDERS)) for kind in sorted(tried)]
    return rows, sorted(set(survivors))


def there(path: Path) -> bytes | str | None:
    return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.exists() else None


# forgeries, by someone who can write the folder and does not hold the key


def change_a_file(run: Path) -> None:
    (run / "files" / "6.txt").write_text("forged\n")


def name_it(run: Path, signer: Any, announced: bool = False) -> None:
    change_a_file(run)
    file = describe(run / "files" / "6.txt", base=run)
    record = make_record(artefacts=(file,))
    if announced:
        record = replace(record, kind=RecordKind.MANIFEST, artefacts=(), announced=(file,))
    append(run / "evidence", record, signer=signer)


def forget(run: Path) -> None:
    shutil.rmtree(run / "evidence")


def chain_again(run: Path) -> None:
    rewrite(run, lambda records: records[1].update(purpose="forged"))


def sign_again(run: Path) -> None:
    chain_again(run)
    append(run / "evidence", make_record(), signer=OTHER_KEY)


def without_checkpoints(run: Path) -> None:
    (run / "evidence" / "checkpoints.jsonl").unlink()


def another_log(run: Path) -> None:
    """Of the same owner, and whole: last week's run in the place of this one."""
    shutil.rmtree(run)
    make_run(run, 7, checkpoint_every=3)


FORGERIES: dict[str, Callable[[Path], object]] = {
    "a file changed": change_a_file,
    "a file added, which no record names": lambda run: (run / "more.txt").write_text("x"),
    "a file changed, and an unsigned record that names it appended": lambda run: name_it(run, None),
    "the same, signed with another key": lambda run: name_it(run, OTHER_KEY),
    "a file changed, and an unsigned record that announces it appended": lambda run: name_it(run, None, announced=True),
    "the last records, texts, files and checkpoints cut off": lambda run: cut_the_tail_cleanly(run, lambda _: 0),
    "the checkpoints removed": without_checkpoints,
    "a record changed, and the log chained again without checkpoints": chain_again,
    "the same, signed with another key, all of it": sign_again,
    "the run exchanged for another whole run of the same owner": another_log,
    "the log removed": forget,
}


def forgeries(stage: Stage) -> Table:
    whole, spoilt = stage.place / "signed" / "run", stage.place / "forged" / "run"
    make_run(whole, 7, checkpoint_every=3)
    rows = []
    for name, forge in FORGERIES.items():
        shutil.rmtree(spoilt.parent, ignore_errors=True)
        shutil.copytree(whole, spoilt)
        forge(spoilt)
        verdicts = [verify(spoilt, **held_by(holder, whole)) for holder in HOLDERS]
        listed = " (listed)" if all(verdict.uncovered for verdict in verdicts) and not verdicts[0].exit else ""
        rows.append((name, *(f"{verdict.exit}{listed}" for verdict in verdicts)))
    say("forgeries", len(rows))
    return rows


# hostile input


def fuzzing(stage: Stage, *, cases: int) -> tuple[Counter[int], float]:
    """Exits of `verify` and the longest time of a case; a case that raises anything ends the benchmark."""
    original, exits, longest = make_original(stage.place / "hostile"), Counter[int](), 0.0

    @settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def fuzz(data: st.DataObject) -> None:
        nonlocal longest
        start = time.process_time()
        exits[fuzz_once(data, original).exit] += 1
        longest = max(longest, time.process_time() - start)

    fuzz()
    say("fuzzing", exits)
    return exits, longest


def damaged(stage: Stage, *, cases: int) -> Table:
    """By kind of damage: cases, pages, tables, paragraphs, and anything else, which is a fault."""
    place = stage.place / "damaged"
    place.mkdir()
    mutated.prepare(place)
    told, tried = Counter[tuple[str, str]](), Counter[str]()
    for number in range(cases):
        draw = random.Random(number)
        case, kind = mutated.damage(place, draw)
        tried[kind] += 1
        try:
            told.update((kind, word) for word in mutated.read_all(case, draw))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            told[kind, "else"] += 1
            print(f"case {number}, {kind}: {error!r}", file=sys.stderr)
    say("damaged folders", tried.total())
    words = ("page", "table", "paragraph", "else")
    return [(kind.replace("_", " "), tried[kind], *(told[kind, word] for word in words)) for kind in sorted(tried)]


# what is written


def table(*head: str, rows: Table) -> list[str]:
    right = ["---", *["---:"] * (len(head) - 1)]
    return [*(f"| {' | '.join(map(str, row))} |" for row in (head, right, *rows)), ""]


def in_short(found: dict[str, Any]) -> list[str]:
    """The table that docs/verify.md quotes."""
    dead, disks, changed, forged = found["kills"], found["disks"], found["mutations"], found["forgeries"]
    exits, harmed = found["exits"], found["damaged"]
    made = sum(row[1] for row in changed)
    rows: Table = [
        ("kills at a file operation", sum(row[2] for row in dead), f"{sum(row[3] for row in dead)} called tampered"),
        ("the same, done again", sum(row[2] for row in dead), f"{sum(row[4] for row in dead)} not whole"),
        ("kills of a run at random moments", found["random"], "0 rows lost, the run is whole"),
        ("full disks", sum(row[1] for row in disks), f"{sum(row[3] for row in disks)} called tampered"),
        ("the same, done again with room", sum(row[1] for row in disks), f"{sum(row[5] for row in disks)} not whole"),
        *(
            (f"files changed, {holder} held", made, f"{made - sum(row[2 + i] for row in changed)} not found")
            for i, holder in enumerate(HOLDERS)
        ),
        *(
            (f"forgeries, {holder} held", len(forged), _survived([row[1 + i] for row in forged]))
            for i, holder in enumerate(HOLDERS)
        ),
        ("`verify`, fuzzed", exits.total(), "0 tracebacks, 0 files opened outside"),
        (
            "`report` and `table` on damaged folders",
            sum(row[1] for row in harmed),
            f"{sum(r[5] for r in harmed)} faults",
        ),
    ]
    return table("what was done", "cases", "of which", rows=rows)


def _survived(exits: list[str]) -> str:
    return f"{exits.count('0')} not found, {exits.count('0 (listed)')} listed as not covered"


def report(found: dict[str, Any], survivors: list[str]) -> str:
    exits = found["exits"]
    lines = [
        "# Survival: kills, full disks, changed files, forgeries and hostile input",
        "",
        f"Written by `make bench-survival`: {surroundings()}. Everything is made from nothing with a tiny model.",
        "",
        "## In short",
        "",
        *in_short(found),
        "## Kills",
        "",
        "A process is ended before one of its file operations (open for writing, rename, remove, make a folder, ...), "
        "`verify` looks, and the work is done again.",
        "",
        *table(
            *(
                "what was killed",
                "operations",
                "kills",
                "called tampered",
                "not whole when done again",
                "files left over",
            ),
            rows=found["kills"],
        ),
        f"A run that was killed {found['random']} times at random moments came to its end, whole and signed.",
        "",
        "## Full disks",
        "",
        "A tmpfs with too little room; then there is room, and the work is done again. A refusal is one paragraph.",
        "",
        *(
            table(
                *("what ran out of room", "full", "had room", "called tampered", "tracebacks"),
                *("not whole when done again", "files left over"),
                rows=[(name, full, fits, *rest) for name, full, fits, *rest in found["disks"]],
            )
            if found["disks"]
            else ["Not measured: this machine has no `unshare -rm`.", ""]
        ),
        "## Changed files",
        "",
        f"Every file of a finished, signed run in {len(WAYS)} ways: how many are found, by what the reader holds.",
        "",
        *table("file", "changes", *HOLDERS, rows=found["mutations"]),
        "Not found:",
        "",
        *([f"- {each}" for each in survivors] or ["- nothing"]),
        "",
        "## Forgeries",
        "",
        "By someone who can write the folder and does not hold the key: the exit status of `verify`. 0: it survives.",
        "",
        *table("forgery", *HOLDERS, rows=found["forgeries"]),
        "## Fuzzing of `verify`",
        "",
        f"{exits.total():,} folders, bundles and proofs (tests/evidence/test_hostile.py): {exits[0]:,} ended with 0 "
        f"(the change is harmless, or nothing contradicts it), {exits[1]:,} with 1, {exits[2]:,} with 2. No traceback, "
        f"and nothing was opened outside; the longest took {found['longest']:.2f} s of processor time.",
        "",
        "## Damaged folders for `report` and `table`",
        "",
        "tests/report/mutated.py; each is read by both.",
        "",
        *table("damage", "folders", "pages", "tables", "paragraphs", "anything else", rows=found["damaged"]),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=3, help="every how many operations a whole run is killed")
    parser.add_argument("--disks", type=int, default=18, help="sizes of disks for each kind of work")
    parser.add_argument("--fuzz", type=int, default=5000, help="cases for verify")
    parser.add_argument("--damaged", type=int, default=3000, help="folders for report and table")
    parser.add_argument("--disks-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    os.environ["LLMXAI_SIGNING_KEY"] = signing_pem()
    warnings.simplefilter("ignore", DeprecationWarning)  # forks of a process that has threads
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="survival-") as folder:
        stage = Stage.make(Path(folder))
        if asked.disks_only:
            for name, fate, fits in full_disks(stage, steps=asked.disks):
                figures = (fate.tried, fits, fate.tampered, fate.tracebacks, fate.not_whole, fate.left)
                print("disk", name, *figures, sep="\t", flush=True)
            return
        changed, survivors = mutations(stage)
        found: dict[str, Any] = {"mutations": changed, "forgeries": forgeries(stage)}
        found["exits"], found["longest"] = fuzzing(stage, cases=asked.fuzz)
        found["damaged"] = damaged(stage, cases=asked.damaged)
        found["disks"] = disks_in_a_namespace(asked.disks)
        found["kills"] = kills(stage, stride=asked.stride)
        found["random"] = random_kills(stage)
    text = report(found, survivors)
    asked.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
