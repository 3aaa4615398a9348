"""Folders, bundles and proofs that were made to harm their reader: `verify` always ends, with 0, 1 or 2 and a sentence.

It never hangs, never prints a traceback, and opens nothing outside of what it was given.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ended import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import KEY, make_run
from test_bundle import alone, members_of, pack

from llmxai.evidence.bundle import consistency, export_bundle
from llmxai.evidence.keys import public_pem
from llmxai.evidence.redaction import redact, review
from llmxai.evidence.verifier.check import read_held, verify
from llmxai.evidence.verifier.folder import check_folder
from llmxai.evidence.verifier.lines import LISTED, LONGEST, Verification, parse_json, split_lines
from llmxai.evidence.verifier.proof import compact

LOG, CONTENT, CHECKPOINTS = (f"evidence/{name}.jsonl" for name in ("log", "content", "checkpoints"))
CASES = 5000
PUBLIC = KEY.public_key()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_original(tmp_path_factory.mktemp("hostile"))


def make_original(folder: Path) -> Path:
    """A signed run with a review and a redaction, its checkpoint, a bundle of it and a proof that it grew."""
    ids = make_run(folder / "run", 4)
    shutil.copy(folder / "run" / CHECKPOINTS, folder / "held.json")
    review(folder / "run", ids[1], decision="approved", by="r1", note="fine", signer=KEY)
    redact(folder / "run", ids[2], reason="asked", signer=KEY)
    export_bundle(folder / "run", ids[1], folder / "b.zip")
    (folder / "proof.json").write_text(json.dumps(consistency(folder / "held.json", None, run=folder / "run")))
    (folder / "K").write_bytes(public_pem(PUBLIC))
    return folder


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "place"))


def told(verdict: Verification) -> Verification:
    """What is printed is one line a finding, and nothing in it is obeyed by a terminal."""
    text = verdict.to_text() + json.dumps(verdict.to_json(), ensure_ascii=False)
    text.encode()
    assert all(character.isprintable() for line in verdict.to_text().split("\n") for character in line)
    uncovered = min(len(verdict.uncovered), LISTED + 1)
    assert len(verdict.to_text().split("\n")) == 1 + len(verdict.findings) + uncovered
    return verdict


# what is not a file


def a_folder(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("only root makes devices")


def a_link_to_the_same(path: Path) -> None:
    path.symlink_to(path.with_name(f"{path.name}.aside"))


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = (a_folder, a_fifo, a_device, a_link_to_the_same, a_link_to_nothing, a_link_to_itself, a_link_to_a_device)


def put_in_place_of(path: Path, kind: Callable[[Path], None]) -> None:
    path.rename(path.with_name(f"{path.name}.aside"))
    kind(path)


@pytest.mark.parametrize("kind", [*KINDS, a_socket])
@pytest.mark.parametrize("name", [LOG, CONTENT, CHECKPOINTS, "files/1.txt"])
def test_what_is_no_file_in_a_folder(place: Path, name: str, kind: Callable[[Path], None]) -> None:
    put_in_place_of(place / "run" / name, kind)
    verdict = told(verify(place / "run", key=PUBLIC))
    assert verdict.exit == 2, verdict.to_text()
    word = kind.__name__.removeprefix("a_").partition("_")[0]
    assert any(word in finding.what.lower() for finding in verdict.findings)


@pytest.mark.parametrize("folder", ["evidence", "files"])
def test_a_folder_behind_a_link_is_not_looked_into(place: Path, folder: str) -> None:
    put_in_place_of(place / "run" / folder, a_link_to_the_same)
    verdict = told(verify(place / "run", key=PUBLIC))
    assert verdict.exit == 2
    assert "links are not followed" in verdict.to_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["b.zip", "proof.json", "held.json", "K"])
def test_what_is_no_file_among_those_that_are_named(
    place: Path, name: str, kind: Callable[[Path], None], run: Run
) -> None:
    put_in_place_of(place / name, kind)
    options = {"held.json": ["--checkpoint", place / name], "K": ["--pubkey", place / name]}
    subject = place / "run" if name in options else place / name
    for ended in (alone(subject, *options.get(name, [])), run("verify", subject, *options.get(name, []))):
        code = ended.code if hasattr(ended, "code") else ended.returncode
        said = "".join(map(str, (getattr(ended, each, "") for each in ("out", "err", "stdout", "stderr"))))
        assert (code, "Traceback" in said) == (2, False), said
        assert said.strip()


def test_a_folder_that_is_named_by_a_link_is_looked_into(place: Path) -> None:
    (place / "latest").symlink_to("run")
    assert verify(place / "latest", key=PUBLIC).exit == 0


def test_what_may_not_be_read(place: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    for name in (LOG, "files/1.txt", "files"):
        (place / "run" / name).chmod(0)
        assert told(verify(place / "run")).exit == 2
        (place / "run" / name).chmod(0o755)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "/", "nothing", "a\0b", ""])
def test_paths_that_lead_to_no_evidence(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(verify(path)).exit == 2


# JSON that no parser should be given

DEEP = b"[" * 200_000 + b"]" * 200_000
HOSTILE = {
    "deep": DEEP,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "infinite": b"1e999",
    "minus infinite": b"-1e999",
    "not a number": b"NaN",
    "Infinity": b"Infinity",
    "many digits": b"1" * 5000,
    "a key twice": b'{"a":1,"a":2}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_ends_with_2(place: Path, name: str) -> None:
    data = HOSTILE[name]
    with pytest.raises(ValueError, match=r"deep|no number|digits|twice"):
        parse_json(data)
    (place / "proof.json").write_bytes(data)
    assert told(verify(place / "proof.json")).exit == 2
    (place / "proof.json").write_bytes(b'{"schema":"llmxai.consistency/1","old":%b,"new":{},"path":[]}' % data)
    assert told(verify(place / "proof.json")).exit == 2
    for member in ("proof.json", "record.json", "content.json", "checkpoint.json"):
        members = [(each, data if each == member else old) for each, old in members_of(place / "b.zip")]
        verdict = told(verify(pack(members, place / "c.zip"), key=PUBLIC))
        assert verdict.exit == 2, (member, verdict.to_text())
    checkpoint = (place / "held.json").read_bytes()
    for line in (data, hostile_checkpoint(checkpoint, data)):
        (place / "held.json").write_bytes(line)
        with pytest.raises(ValueError, match="not a checkpoint"):
            read_held(place / "held.json")
        ended = alone(place / "run", "--checkpoint", place / "held.json")
        assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
        (place / "run" / CHECKPOINTS).write_bytes(line + b"\n")
        verdict = told(verify(place / "run"))
        assert verdict.exit == 2, verdict.to_text()


def hostile_checkpoint(line: bytes, data: bytes) -> bytes:
    """With a payload whose size is hostile."""
    envelope = json.loads(line.splitlines()[0])
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["size"] = "HERE"
    payload = json.dumps(statement).encode().replace(b'"HERE"', data)
    return compact({**envelope, "payload": base64.b64encode(payload).decode()})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_with_the_right_hash_ends_with_2(place: Path, name: str) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        records[-1]["options"] = {"x": "HERE"}

    rewrite(place / "run", change, here=HOSTILE[name])
    verdict = told(verify(place / "run"))
    assert verdict.exit == 2, verdict.to_text()


def rewrite(run: Path, change: Callable[[list[dict[str, Any]]], object], *, here: bytes = b"null") -> None:
    """The log with its records changed and chained again, as whoever can write the folder could; no checkpoints."""
    records = [json.loads(line)["record"] for line in (run / LOG).read_bytes().splitlines()]
    change(records)
    lines, prev = [], "0" * 64
    for record in records:
        if isinstance(record.get("chain"), dict) and isinstance(record["chain"].get("prev"), str):
            record["chain"]["prev"] = prev
        body = json.dumps(record, separators=(",", ":"), sort_keys=True).encode().replace(b'"HERE"', here)
        prev = hashlib.sha256(body).hexdigest()
        lines.append(b'{"hash":"%b","record":%b}\n' % (prev.encode(), body))
    (run / LOG).write_bytes(b"".join(lines))
    (run / CHECKPOINTS).unlink(missing_ok=True)


def test_what_a_terminal_would_obey_is_not_printed(place: Path) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        records[0]["id"] = "\x1b[2K\rwhole: everything\u202e\n"
        records[0]["schema"] = "\x1b[2J" + "x" * 5000
        records[1]["id"] = "\ud800"
        records[1]["artefacts"][0]["path"] = "\x1b]0;title\x07"

    rewrite(place / "run", change)
    verdict = told(verify(place / "run"))
    assert verdict.exit == 1
    assert max(map(len, verdict.to_text().split("\n"))) < 1000
    ended = alone(place / "run")
    assert (ended.returncode, ended.stderr) == (1, "")


# size


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("name", [LOG, CONTENT, CHECKPOINTS])
def test_a_line_of_100_mb_that_never_ends_takes_linear_time(place: Path, name: str) -> None:
    taken = {}
    with (place / "run" / name).open("ab") as stream:
        for megabytes in (25, 100):
            stream.truncate((place / "run" / name).stat().st_size)
            stream.seek(0, 2)
            stream.write(b'{"hash":"' + b"0" * (megabytes * 10**6))
            stream.flush()
            taken[megabytes] = cpu(lambda: told(verify(place / "run", key=PUBLIC)))
            assert verify(place / "run", key=PUBLIC).exit == 2
            assert split_lines(place / "run" / name)[1] > megabytes * 10**6
    assert taken[100] < 5
    assert taken[100] < 8 * max(taken[25], 0.1)


def test_a_line_that_is_too_long_is_a_sentence(place: Path) -> None:
    whole = (place / "run" / LOG).read_bytes()
    (place / "run" / LOG).write_bytes(b"[" * (LONGEST + 2) + b"\n" + whole)
    verdict = told(verify(place / "run"))
    assert verdict.exit == 2
    assert "longer than" in verdict.to_text()


def test_many_texts_that_no_record_names_take_linear_time(place: Path) -> None:
    taken = {}
    for n in (10_000, 40_000):
        (place / "run" / CONTENT).write_bytes(b"".join(b'{"id":"%d"}\n' % i for i in range(n)))
        taken[n] = cpu(lambda: verify(place / "run"))
    assert taken[40_000] < 8 * max(taken[10_000], 0.1)


def test_a_file_is_read_once_however_often_it_is_named(place: Path) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        records[0]["artefacts"] *= 2

    rewrite(place / "run", change)
    assert "is no record" in told(verify(place / "run")).to_text()


def test_a_file_of_another_size_is_not_read(place: Path) -> None:
    os.truncate(place / "run" / "files" / "0.txt", 2**42)  # without taking any disk
    assert cpu(lambda: told(verify(place / "run"))) < 2
    assert verify(place / "run").exit == 1


def test_a_file_that_is_larger_than_any_of_ours_is_not_read(place: Path) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        records[0]["artefacts"][0]["bytes"] = 2**42

    rewrite(place / "run", change)
    os.truncate(place / "run" / "files" / "0.txt", 2**42)
    assert cpu(lambda: told(verify(place / "run"))) < 2
    assert verify(place / "run").exit == 2


# fuzzing: 5,000 cases, of bytes, of JSON that is hashed again, and of what lies where


opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes | Path):
        opened.append(os.path.abspath(os.fsdecode(arguments[0])))


sys.addaudithook(_watch)


@contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    global opened
    opened = []
    try:
        yield
        outside = [path for path in opened if not Path(path).is_relative_to(folder)]
    finally:
        opened = None
    assert outside == [], "something outside was opened"


VALUES = (
    *(b"null", b"true", b"0", b"-1", b"1.5", b"1e300", b"9007199254740993", b'""', b"[]", b"{}", b'[""]', b"[[]]"),
    *(
        b'"../../secret"',
        b'"/dev/zero"',
        b'"a/../../b"',
        b'"a\\u0000b"',
        b'"\\ud800"',
        b'"\\u001b[2J"',
        b'"."',
        b'"..' + b'"',
    ),
    *(b'{"records":"abc"}', b'{"records":[1]}', b'{"sha256":1}', b'"%b"' % (b"0" * 64), b'"redaction"', b'"prune"'),
    *(b"[" * 5000 + b"]" * 5000, b"1e999", b"NaN", b"1" * 5000, b'{"a":1,"a":2}', b'"' + b"x" * 5000 + b'"'),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def changed(document: Any, data: st.DataObject) -> tuple[Any, bytes]:
    """The document with one value exchanged for HERE, or left out, and what is to stand there."""
    *way, last = data.draw(st.sampled_from([place for place in places(document) if place]))
    inner = document
    for key in way:
        inner = inner[key]
    if data.draw(st.integers(0, 5)) == 0:
        del inner[last]
    else:
        inner[last] = "HERE"
    return document, data.draw(st.sampled_from(VALUES))


def changed_bytes(old: bytes, data: st.DataObject) -> bytes:
    at, end = sorted(data.draw(st.tuples(*[st.integers(0, len(old))] * 2)))
    how = data.draw(st.sampled_from(["flip", "insert", "cut", "drop", "double", "value"]))
    if how == "flip" and at < len(old):
        return old[:at] + bytes([old[at] ^ data.draw(st.integers(1, 255))]) + old[at + 1 :]
    if how == "insert":
        return old[:at] + data.draw(st.binary(min_size=1, max_size=40)) + old[at:]
    if how == "value":
        return old[:at] + data.draw(st.sampled_from(VALUES)) + old[at:]
    if how == "double":
        return old[:end] + old[at:]
    return old[:at] if how == "cut" else old[:at] + old[end:]


def fuzz_bytes_of_the_folder(place: Path, data: st.DataObject) -> Path:
    name = data.draw(st.sampled_from([LOG, CONTENT, CHECKPOINTS, "files/0.txt"]))
    (place / "run" / name).write_bytes(changed_bytes((place / "run" / name).read_bytes(), data))
    return place / "run"


def fuzz_records(place: Path, data: st.DataObject) -> Path:
    here = b"null"

    def change(records: list[dict[str, Any]]) -> None:
        nonlocal here
        _, here = changed(records[data.draw(st.integers(0, len(records) - 1))], data)

    records = [json.loads(line)["record"] for line in (place / "run" / LOG).read_bytes().splitlines()]
    change(records)
    rewrite(place / "run", lambda old: old.__setitem__(slice(None), records), here=here)
    return place / "run"


def fuzz_texts(place: Path, data: st.DataObject) -> Path:
    """A text is changed, and its record names it nevertheless."""
    lines = (place / "run" / CONTENT).read_bytes().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    old = hashlib.sha256(lines[at]).hexdigest()
    stored, here = changed(json.loads(lines[at]), data)
    lines[at] = json.dumps(stored).encode().replace(b'"HERE"', here)
    (place / "run" / CONTENT).write_bytes(b"".join(line + b"\n" for line in lines))

    def change(records: list[dict[str, Any]]) -> None:
        for record in records:
            if record["content"]["sha256"] == old:
                record["content"]["sha256"] = hashlib.sha256(lines[at]).hexdigest()

    rewrite(place / "run", change)
    return place / "run"


def fuzz_checkpoints(place: Path, data: st.DataObject) -> Path:
    lines = (place / "run" / CHECKPOINTS).read_bytes().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    envelope = json.loads(lines[at])
    if data.draw(st.booleans()):
        statement, here = changed(json.loads(base64.b64decode(envelope["payload"])), data)
        payload = json.dumps(statement).encode().replace(b'"HERE"', here)
        lines[at] = compact({**envelope, "payload": base64.b64encode(payload).decode()})
    else:
        envelope, here = changed(envelope, data)
        lines[at] = compact(envelope).replace(b'"HERE"', here)
    (place / "run" / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))
    return place / "run"


def fuzz_what_lies_there(place: Path, data: st.DataObject) -> Path:
    name = data.draw(st.sampled_from([LOG, CONTENT, CHECKPOINTS, "files/0.txt", "files", "evidence"]))
    kind = data.draw(st.sampled_from([kind for kind in KINDS if kind is not a_device]))
    put_in_place_of(place / "run" / name, kind)
    return place / "run"


def fuzz_a_proof(place: Path, data: st.DataObject) -> Path:
    old = (place / "proof.json").read_bytes()
    if data.draw(st.booleans()):
        (place / "proof.json").write_bytes(changed_bytes(old, data))
    else:
        proof, here = changed(json.loads(old), data)
        (place / "proof.json").write_bytes(json.dumps(proof).encode().replace(b'"HERE"', here))
    return place / "proof.json"


def fuzz_bytes_of_a_bundle(place: Path, data: st.DataObject) -> Path:
    (place / "b.zip").write_bytes(changed_bytes((place / "b.zip").read_bytes(), data))
    return place / "b.zip"


def fuzz_members(place: Path, data: st.DataObject) -> Path:
    members = members_of(place / "b.zip")
    at = data.draw(st.integers(0, len(members) - 1))
    name, old = members[at]
    if name.endswith(".json") and data.draw(st.booleans()):
        document, here = changed(json.loads(old), data)
        members[at] = (name, json.dumps(document).encode().replace(b'"HERE"', here))
    else:
        members[at] = (name, changed_bytes(old, data))
    return pack(members, place / "b.zip")


FUZZERS = (
    *(fuzz_bytes_of_the_folder, fuzz_records, fuzz_records, fuzz_texts, fuzz_checkpoints, fuzz_what_lies_there),
    *(fuzz_a_proof, fuzz_bytes_of_a_bundle, fuzz_members),
)
tried: dict[str, int] = {}


@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_whatever_it_is_given_it_ends_with_a_sentence(data: st.DataObject, original: Path) -> None:
    fuzz_once(data, original)


def fuzz_once(data: st.DataObject, original: Path) -> Verification:
    """Spoil a copy in one way and verify it."""
    place = fresh(original)
    fuzz = data.draw(st.sampled_from(FUZZERS))
    subject = fuzz(place, data)
    held = [read_held(original / "held.json")] if subject.is_dir() and data.draw(st.booleans()) else []
    with nothing_outside(place):
        verdict = verify(subject, key=PUBLIC if data.draw(st.booleans()) else None, held=held)
    told(verdict)
    assert verdict.exit in (0, 1, 2)
    assert verdict.exit == 0 or verdict.findings
    tried[fuzz.__name__] = tried.get(fuzz.__name__, 0) + 1
    return verdict


def fresh(original: Path) -> Path:
    """A copy in which nothing is spoilt: what the case before changed is written anew."""
    place = original.with_name(f"{original.name}-case")
    if not place.exists() or list(place.rglob("*.aside")):
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(original, place, copy_function=shutil.copyfile))
    for path in original.rglob("*"):
        copy = place / path.relative_to(original)
        if path.is_file() and (not copy.exists() or copy.read_bytes() != path.read_bytes()):
            copy.write_bytes(path.read_bytes())
    return place


def test_that_many_cases_were_tried() -> None:
    """Runs after them; every way of spoiling was among them."""
    assert sum(tried.values()) >= CASES
    assert set(tried) == {fuzz.__name__ for fuzz in FUZZERS}


def test_the_folder_itself_still_verifies(original: Path) -> None:
    assert check_folder(original / "run", key=PUBLIC, held=[read_held(original / "held.json")]).findings == []
    assert verify(original / "b.zip", key=PUBLIC).findings == []
    assert verify(original / "proof.json", key=PUBLIC).findings == []
