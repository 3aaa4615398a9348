"""A thousand random edits of a signed run, every one found; and what can be said without a key."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import KEY, OTHER_KEY, make_run

from llmxai.evidence.redaction import review
from llmxai.evidence.verifier.check import read_held, verify
from llmxai.evidence.verifier.folder import check_folder
from llmxai.evidence.verifier.proof import Checkpoint

LOG, CONTENT, CHECKPOINTS = (f"evidence/{name}.jsonl" for name in ("log", "content", "checkpoints"))
N = 7
EDITS = 1000
made: dict[str, int] = {}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven records, a review, four checkpoints; and a second log by the same key to take lines from."""
    folder = tmp_path_factory.mktemp("tampering")
    ids = make_run(folder / "run", N, checkpoint_every=3)
    review(folder / "run", ids[2], decision="approved", by="r1", note="fine", signer=KEY)
    make_run(folder / "other", N, checkpoint_every=3)
    return folder


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != ".lock")


Draw = Callable[[int], int]
"""A number from 0 up to but without n."""


def edit_byte(run: Path, draw: Draw) -> None:
    path = run / files_of(run)[draw(len(files_of(run)))]
    data = bytearray(path.read_bytes())
    data[draw(len(data))] ^= 1 + draw(255)
    path.write_bytes(data)


def insert_bytes(run: Path, draw: Draw) -> None:
    path = run / files_of(run)[draw(len(files_of(run)))]
    data, place = path.read_bytes(), 0
    place = draw(len(data) + 1)
    path.write_bytes(data[:place] + bytes([draw(256)] * (1 + draw(3))) + data[place:])


def cut_file(run: Path, draw: Draw) -> None:
    path = run / files_of(run)[draw(len(files_of(run)))]
    data = path.read_bytes()
    path.write_bytes(data[: draw(len(data))])


def remove_line(run: Path, draw: Draw) -> None:
    path = run / (LOG, CONTENT, CHECKPOINTS)[draw(3)]
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[draw(len(lines))]
    path.write_bytes(b"".join(lines))


def swap_lines(run: Path, draw: Draw) -> None:
    path = run / (LOG, CONTENT, CHECKPOINTS)[draw(3)]
    lines = path.read_bytes().splitlines(keepends=True)
    i, step = draw(len(lines)), 1 + draw(len(lines) - 1)
    j = (i + step) % len(lines)
    lines[i], lines[j] = lines[j], lines[i]
    path.write_bytes(b"".join(lines))


def duplicate_line(run: Path, draw: Draw) -> None:
    path = run / (LOG, CONTENT, CHECKPOINTS)[draw(3)]
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(draw(len(lines) + 1), lines[draw(len(lines))])
    path.write_bytes(b"".join(lines))


def line_of_another_log(run: Path, draw: Draw) -> None:
    name = (LOG, CONTENT, CHECKPOINTS)[draw(3)]
    others = (run.parent / "other" / name).read_bytes().splitlines(keepends=True)
    lines = (run / name).read_bytes().splitlines(keepends=True)
    lines[draw(len(lines))] = others[draw(len(others))]
    (run / name).write_bytes(b"".join(lines))


def remove_file(run: Path, draw: Draw) -> None:
    (run / files_of(run)[draw(len(files_of(run)))]).unlink()


def exchange_artefacts(run: Path, draw: Draw) -> None:
    i, step = draw(N), 1 + draw(N - 1)
    one, two = (run / "files" / f"{k}.txt" for k in (i, (i + step) % N))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def cut_the_tail_cleanly(run: Path, draw: Draw) -> None:
    """Remove the last records with their texts, files and checkpoints: what is left is a whole, signed, older log."""
    keep = (3, 6)[draw(2)]
    for name, n in ((LOG, keep), (CONTENT, keep), (CHECKPOINTS, keep // 3)):
        lines = (run / name).read_bytes().splitlines(keepends=True)
        (run / name).write_bytes(b"".join(lines[:n]))
    for i in range(keep, N):
        (run / "files" / f"{i}.txt").unlink()


OPERATIONS = (
    *(edit_byte, edit_byte, insert_bytes, cut_file, remove_line, swap_lines, duplicate_line, line_of_another_log),
    *(remove_file, exchange_artefacts, cut_the_tail_cleanly),
)


@settings(
    max_examples=EDITS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_random_edit_is_found(data: st.DataObject, original: Path) -> None:
    run, spoilt = original / "run", original / "spoilt"
    restore(run, spoilt)
    operation = data.draw(st.sampled_from(OPERATIONS))
    operation(spoilt, lambda n: data.draw(st.integers(0, n - 1)))
    verdict = check_folder(spoilt, key=KEY.public_key(), held=[held_of(run)])
    assert verdict.exit != 0, operation.__name__
    made[operation.__name__] = made.get(operation.__name__, 0) + 1


def restore(run: Path, spoilt: Path) -> None:
    """Undo the last edit."""
    if not spoilt.exists():
        shutil.copytree(run, spoilt)
    for name in files_of(run):
        data = (run / name).read_bytes()
        if not (spoilt / name).exists() or (spoilt / name).read_bytes() != data:
            (spoilt / name).write_bytes(data)


def test_that_many_edits_were_made(original: Path) -> None:
    """Runs after the thousand; every kind of edit was among them."""
    assert (original / "spoilt").exists()
    assert sum(made.values()) >= EDITS
    assert set(made) == {operation.__name__ for operation in OPERATIONS}


def held_of(run: Path) -> Checkpoint:
    return read_held(run / CHECKPOINTS)


def test_the_original_is_whole(original: Path) -> None:
    run = original / "run"
    for held in ([], [held_of(run)]):
        verdict = check_folder(run, key=KEY.public_key(), held=held)
        assert (verdict.exit, verdict.records, verdict.findings) == (0, N + 1, [])
    assert "signed by key" in verdict.signature
    unchecked = check_folder(run)
    assert unchecked.exit == 0
    assert unchecked.signature.startswith("signatures not checked")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("seq", [0, 4, N])
def test_a_changed_record_is_named(run: Path, seq: int) -> None:
    lines = (run / LOG).read_bytes().splitlines(keepends=True)
    lines[seq] = lines[seq].replace(b'"entry":"python"', b'"entry":"cli"')
    (run / LOG).write_bytes(b"".join(lines))
    bad = check_folder(run).first_bad
    assert bad is not None
    assert (bad.seq, bad.what) == (seq, "was changed: its bytes do not have its hash")
    assert bad.record is not None
    assert bad.record.encode() in lines[seq]


def test_a_changed_artefact_names_its_record(run: Path) -> None:
    (run / "files" / "3.txt").write_bytes(b"artefact 3!\n")
    bad = check_folder(run).first_bad
    assert bad is not None
    assert bad.seq == 3
    assert "files/3.txt was changed" in bad.what


def test_a_tail_that_is_cut_with_its_checkpoints_needs_a_held_one(run: Path) -> None:
    held = held_of(run)
    cut_the_tail_cleanly(run, lambda _: 0)
    assert check_folder(run, key=KEY.public_key()).exit == 0  # what the docs say: an intact tail is not proved
    verdict = check_folder(run, key=KEY.public_key(), held=[held])
    assert verdict.exit == 1
    assert "the end of the log was cut off" in str(verdict.first_bad)


def test_a_tail_that_is_cut_without_its_checkpoints_is_found(run: Path) -> None:
    lines = (run / LOG).read_bytes().splitlines(keepends=True)
    (run / LOG).write_bytes(b"".join(lines[:-1]))
    assert "covers 1 more: the end of the log was cut off" in str(check_folder(run).first_bad)


def test_a_log_that_is_written_anew_by_another_is_not_signed_by_the_key(tmp_path: Path) -> None:
    make_run(tmp_path / "forged", N, signer=OTHER_KEY)
    verdict = check_folder(tmp_path / "forged", key=KEY.public_key())
    assert verdict.exit == 2
    assert "signed, but not by key" in verdict.signature


def test_a_log_that_is_written_anew_contradicts_a_held_checkpoint(original: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "forged", N + 1, signer=None)
    verdict = check_folder(tmp_path / "forged", held=[held_of(original / "run")])
    assert verdict.exit == 1
    assert "is of another log" in str(verdict.first_bad)


def test_an_unsigned_log_says_so(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 3, signer=None)
    verdict = check_folder(tmp_path / "run")
    assert (verdict.exit, verdict.signature) == (0, "unsigned: no key vouches for it")
    demanding = check_folder(tmp_path / "run", key=KEY.public_key())
    assert demanding.exit == 2
    assert demanding.findings[0].seq == 0


def test_a_signed_log_that_goes_on_unsigned_says_from_where(run: Path) -> None:
    make_run(run, 1, signer=None)
    verdict = check_folder(run, key=KEY.public_key())
    assert verdict.exit == 2
    assert [(f.severity, f.seq) for f in verdict.findings if f.severity == "unclear"] == [("unclear", N + 1)]


def test_stripped_signatures_are_tampering(run: Path) -> None:
    text = (run / CHECKPOINTS).read_bytes()
    start = text.index(b'[{"keyid"')
    (run / CHECKPOINTS).write_bytes(text[:start] + b"[]" + text[text.index(b"]", start) + 1 :])
    assert "not signed by the key that its statement names" in str(check_folder(run).first_bad)


@pytest.mark.parametrize("there", ["nothing", "empty"])
def test_where_there_is_no_log_nothing_can_be_told(tmp_path: Path, there: str) -> None:
    if there == "empty":
        (tmp_path / "evidence").mkdir()
        (tmp_path / LOG).write_bytes(b"")
    verdict = check_folder(tmp_path)
    assert verdict.exit == 2
    assert "there is no record" in verdict.findings[0].what


# what is crafted with the right hashes, by whoever can write the folder, must be told and never end in a traceback


def crafted(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A log of one record, changed and hashed again."""
    make_run(run, 1, signer=None)
    (run / CHECKPOINTS).unlink()
    record = json.loads((run / LOG).read_bytes())["record"]
    change(record)
    body = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    (run / LOG).write_bytes(b'{"hash":"%b","record":%b}\n' % (hashlib.sha256(body).hexdigest().encode(), body))


@pytest.mark.parametrize(
    "change",
    [
        {"artefacts": 5},
        {"artefacts": [{"path": "a"}]},
        {"chain": None},
        {"chain": {"log": "a", "prev": "0" * 64, "seq": False}},
        {"content": None},
        {"digests": [1]},
        {"link": {"records": 7}},
        {"kind": "prune", "link": None},
        {"id": {"a": 1}},
    ],
    ids=str,
)
def test_a_crafted_record_of_another_form_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    crafted(tmp_path, lambda record: record.update(change))
    verdict = check_folder(tmp_path)
    assert verdict.exit == 1
    assert "is no record" in str(verdict.first_bad)


@pytest.mark.parametrize("path", ["../outside", "/etc/hosts", "a\0b"])
def test_a_crafted_path_is_never_followed(tmp_path: Path, path: str) -> None:
    crafted(tmp_path / "run", lambda record: record.update(artefacts=[{"path": path, "sha256": "0" * 64, "bytes": 1}]))
    assert "outside the folder" in str(check_folder(tmp_path / "run").first_bad)


def test_a_folder_in_the_place_of_a_file_and_texts_of_another_form(tmp_path: Path) -> None:
    line = b'{"id":"x","salt":5,"texts":{}}'

    def change(record: dict[str, Any]) -> None:
        record["content"]["sha256"] = hashlib.sha256(line).hexdigest()
        record["artefacts"] = [{"path": "files", "sha256": "0" * 64, "bytes": 1}]

    crafted(tmp_path, change)
    (tmp_path / CONTENT).write_bytes(line + b"\n")
    verdict = check_folder(tmp_path)
    assert verdict.exit == 1
    assert [f.severity for f in verdict.findings] == ["tampered", "unclear"]


def test_a_held_checkpoint_is_not_passed_over_for_a_bundle(original: Path, tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"")
    verdict = verify(tmp_path / "b.zip", held=[held_of(original / "run")])
    assert (verdict.exit, verdict.findings[0].severity) == (2, "unclear")
