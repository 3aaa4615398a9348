"""How long it takes to append and to verify records; writes benchmarks/EVIDENCE.md (make bench-evidence).

Sizes double up to --records; time a record must stay about the same if both are linear.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.environment import this_tool
from llmxai.evidence import Record, RecordKind, append, open_log, verify
from llmxai.evidence.record import new_id
from llmxai.evidence.sealing import utc_now

HERE = Path(__file__).parent
TEXTS = {"input": "Which city is the capital of France?", "output": "Paris.", "input_ids": "[1,2,3]"}
SINGLE = 1000


def make_record() -> Record:
    now = utc_now()
    return Record(new_id(), RecordKind.EXPLANATION, "recipe", now, now, this_tool(), input_tokens=40, output_tokens=1)


def measure(n: int, folder: Path) -> dict[str, float]:
    """Seconds to append `n` signed records in groups, to verify them, and to open the log again for one more."""
    signer = Ed25519PrivateKey.generate()
    start = time.perf_counter()
    with open_log(folder / "evidence", signer=signer) as log:
        log.append_many((make_record(), TEXTS) for _ in range(n))
    appended = time.perf_counter()
    verdict = verify(folder, key=signer.public_key())
    verified = time.perf_counter()
    assert (verdict.exit, verdict.records) == (0, n), verdict.to_text()
    append(folder / "evidence", make_record(), texts=TEXTS, signer=signer)
    one_more = time.perf_counter()
    size = sum(path.stat().st_size for path in (folder / "evidence").iterdir())
    return {
        "append": appended - start,
        "verify": verified - appended,
        "one more": one_more - verified,
        "MB": size / 1e6,
    }


def single(n: int, folder: Path) -> float:
    """Seconds to append `n` records one by one, each durable before the next."""
    with open_log(folder / "evidence") as log:
        start = time.perf_counter()
        for _ in range(n):
            log.append(make_record(), texts=TEXTS)
        return time.perf_counter() - start


def report(rows: dict[int, dict[str, float]], one_by_one: float) -> str:
    lines = [
        "# Evidence: time to append and to verify",
        "",
        f"Written by `make bench-evidence` on {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}. Signed, a checkpoint every 1,000 records, texts stored; groups of 500 with one "
        f"fsync each for texts and log.",
        "",
        "| records | append, s | us a record | verify, s | us a record | open and append one more, s | log, MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n, row in rows.items():
        lines.append(
            f"| {n:,} | {row['append']:.2f} | {row['append'] / n * 1e6:.0f} | {row['verify']:.2f} "
            f"| {row['verify'] / n * 1e6:.0f} | {row['one more']:.2f} | {row['MB']:.1f} |"
        )
    lines += [
        "",
        f"One by one, each record durable (two fsyncs) before the next: {one_by_one / SINGLE * 1e3:.2f} ms a record "
        f"({SINGLE:,} records); this depends on the disk. A log that is opened for one record is read and checked once "
        f"first, so a run should keep its log open (`open_log`).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    wanted = parser.parse_args().records
    sizes = sorted({max(1, wanted // part) for part in (8, 4, 2, 1)})
    rows = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows[n] = measure(n, Path(folder))
        print(n, rows[n], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        one_by_one = single(SINGLE, Path(folder))
    text = report(rows, one_by_one)
    (HERE / "EVIDENCE.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
