"""The log while it is written: durable, repaired after a kill, one writer at a time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from logs import KEY, make_record, make_run

from llmxai.errors import EvidenceError
from llmxai.evidence.log import append, open_log, read_log
from llmxai.evidence.verifier.folder import check_folder
from llmxai.evidence.verifier.proof import read_checkpoint

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]


def bodies(run: Path) -> list[dict]:
    return [json.loads(record) for _, record in read_log(run)]


def test_what_stands_in_a_line(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    lines = (tmp_path / "evidence" / "log.jsonl").read_bytes().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert sorted(first) == ["hash", "record"]
    assert first["record"]["chain"] == {"log": second["record"]["chain"]["log"], "prev": "0" * 64, "seq": 0}
    assert second["record"]["chain"]["prev"] == first["hash"]
    assert b"question" not in b"".join(lines)  # texts lie apart


def test_append_says_where_the_record_stands(tmp_path: Path) -> None:
    for seq in range(3):
        record = make_record()
        receipt = append(tmp_path / "evidence", record, texts={"input": "a"}, signer=KEY)
        assert (receipt.id, receipt.seq, receipt.signed, receipt.repaired) == (record.id, seq, True, ())
    assert check_folder(tmp_path, key=KEY.public_key()).findings == []


def test_groups_and_checkpoints_every_n(tmp_path: Path) -> None:
    with open_log(tmp_path / "evidence", signer=KEY, checkpoint_every=10) as log:
        receipts = log.append_many(((make_record(), {"input": "x"}) for _ in range(47)), group=5)
        assert [receipt.seq for receipt in receipts] == list(range(47))
    points = [read_checkpoint(line) for line in (tmp_path / "evidence/checkpoints.jsonl").read_bytes().splitlines()]
    assert [point.size for point in points] == [10, 20, 30, 40, 47]
    assert check_folder(tmp_path, key=KEY.public_key()).findings == []


def test_closing_twice_signs_once(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    before = (tmp_path / "evidence/checkpoints.jsonl").read_bytes()
    with open_log(tmp_path / "evidence", signer=KEY) as log:
        log.checkpoint()
    assert (tmp_path / "evidence/checkpoints.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["log.jsonl", "content.jsonl", "checkpoints.jsonl"])
def test_a_torn_line_is_cut_off_and_said(tmp_path: Path, name: str) -> None:
    make_run(tmp_path, 3)
    path = tmp_path / "evidence" / name
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"hash":"00')
    assert check_folder(tmp_path, key=KEY.public_key()).exit == 2
    receipt = append(tmp_path / "evidence", make_record(), signer=KEY)
    assert receipt.repaired == (f"{name}: a torn last line of 11 bytes was cut off; a writer was interrupted.",)
    assert path.read_bytes().startswith(whole)
    assert [body["kind"] for body in bodies(tmp_path)] == ["explanation"] * 3 + ["repair", "explanation"]
    assert bodies(tmp_path)[3]["warnings"] == list(receipt.repaired)
    assert check_folder(tmp_path, key=KEY.public_key()).findings == []


def test_a_text_without_its_record_is_cut_off_and_said(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    path = tmp_path / "evidence" / "content.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id":"lost","salt":"00","texts":{"input":"personal"}}\n')
    assert check_folder(tmp_path).exit == 2
    receipt = append(tmp_path / "evidence", make_record())
    assert "1 texts without a record were cut off" in receipt.repaired[0]
    assert path.read_bytes() == whole


def test_nothing_is_appended_to_a_log_that_is_not_whole(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    path = tmp_path / "evidence" / "log.jsonl"
    spoilt = path.read_bytes().replace(b'"seq":1', b'"seq":7')
    path.write_bytes(spoilt)
    with pytest.raises(EvidenceError, match=r"record 1 was changed.*llmxai verify.*--out"):
        append(tmp_path / "evidence", make_record())
    assert path.read_bytes() == spoilt


def test_nothing_is_appended_after_a_cut(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    path = tmp_path / "evidence" / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-100])  # not a torn line: a checkpoint covers it
    with pytest.raises(EvidenceError, match="a checkpoint covers 3 records and 2 are here"):
        append(tmp_path / "evidence", make_record())


def test_a_log_that_gets_shorter_while_it_is_open(tmp_path: Path) -> None:
    with open_log(tmp_path / "evidence") as log:
        log.append(make_record())
        (tmp_path / "evidence/log.jsonl").write_bytes(b"")
        with pytest.raises(EvidenceError, match="became shorter"):
            log.append(make_record())
        (tmp_path / "evidence/log.jsonl").unlink()
        log._offset = 0  # let it close
        log.checkpoint = lambda: None  # type: ignore[method-assign]


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, 2)
    before = (tmp_path / "evidence/log.jsonl").read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with open_log(tmp_path / "evidence") as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(EvidenceError, match=r"cannot be written.*No space left"):
                log.append(make_record(), texts={"input": "x"})
        assert (tmp_path / "evidence/log.jsonl").read_bytes() == before
        log.append(make_record())
    assert check_folder(tmp_path).exit == 0


def test_where_no_log_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EvidenceError, match="cannot be written"):
        append(tmp_path / "file" / "evidence", make_record())


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from logs import KEY, make_record
from llmxai.evidence.log import open_log
with open_log({folder!r}, signer=KEY, checkpoint_every=7) as log:
    for i in range({n}):
        receipt = log.append(make_record(), texts={{"input": "question", "output": "x" * 3000}})
        print(receipt.seq, receipt.id, flush=True)
"""


def writer(folder: Path, n: int) -> subprocess.Popen[str]:
    code = WRITER.format(tests=str(TESTS), folder=str(folder), n=n)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def test_three_writers_at_once(tmp_path: Path) -> None:
    writers = [writer(tmp_path / "evidence", 30) for _ in range(3)]
    told = [line.split() for each in writers for line in each.communicate(timeout=300)[0].splitlines()]
    assert [each.returncode for each in writers] == [0, 0, 0]
    assert sorted(int(seq) for seq, _ in told) == list(range(90))
    assert {int(seq): id for seq, id in told} == {entry.seq: entry.id for entry, _ in read_log(tmp_path)}
    assert check_folder(tmp_path, key=KEY.public_key()).findings == []


def test_kills_at_random_moments_lose_nothing_that_was_told(tmp_path: Path) -> None:
    """kill -9 while writing: what `append` returned is there, and the log opens and goes on."""
    rng = random.Random(8)
    told: dict[int, str] = {}
    for _ in range(8):
        process = writer(tmp_path / "evidence", 100_000)
        assert process.stdout is not None
        told.update(seq_and_id(process.stdout.readline()))
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                told.update(seq_and_id(line))
        process.wait()
        process.stdout.close()
    append(tmp_path / "evidence", make_record(), signer=KEY)
    log = {entry.seq: entry.id for entry, _ in read_log(tmp_path)}
    assert len(told) >= 8
    assert {seq: log.get(seq) for seq in told} == told
    assert check_folder(tmp_path, key=KEY.public_key()).findings == []


def seq_and_id(line: str) -> dict[int, str]:
    seq, id = line.split()
    return {int(seq): id}


def test_a_write_torn_at_every_byte_is_repaired(tmp_path: Path) -> None:
    """What a kill inside one write can leave, without waiting for luck: any prefix of the line."""
    make_run(tmp_path / "run", 1, signer=None)
    path = tmp_path / "run" / "evidence" / "log.jsonl"
    first = path.read_bytes()
    second = first.replace(b'"seq":0', b'"seq":1')
    for torn in range(1, len(second) - 1, 211):
        (tmp_path / "run/evidence/checkpoints.jsonl").unlink(missing_ok=True)
        path.write_bytes(first + second[:torn])
        receipt = append(tmp_path / "run" / "evidence", make_record())
        assert receipt.seq == 2
        assert f"torn last line of {torn} bytes" in receipt.repaired[0]
        assert check_folder(tmp_path / "run").exit == 0
