"""What the docs say of kills, power cuts, clocks and folders that vanish, tried at every file operation."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from logs import KEY, make_record, make_run
from test_hostile import KINDS, a_device, put_in_place_of
from test_manifest import data, done_again, finished, make_recipe, run_folder, signed
from tiny import make_loaded

from llmxai import Explanation, Settings, explain, save
from llmxai.commands.offline import report
from llmxai.errors import EvidenceError, UserError
from llmxai.evidence import begin, open_log, redact, verify
from llmxai.evidence.files import replacing, sweep
from llmxai.evidence.log import append, read_log
from llmxai.evidence.record import File, RecordKind
from llmxai.evidence.verifier.lines import Finding
from llmxai.runs import clear_removed, run_recipe
from llmxai.runs import worker as worker_module
from llmxai.runs.ledger import Ledger
from llmxai.store.folder import FILES
from tests.report.mutated import no_longer_than

__all__ = ["data", "finished", "run_folder", "signed"]
PUBLIC = KEY.public_key()
TEXT = b"person 1"
REPLACED = "3 files of earlier records were replaced by those of later ones"
OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.chmod")


# power cuts: an order of what reaches the disk


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and renamed, in order."""
    told: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def synced(descriptor: int) -> None:
        told.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(how: Callable[..., None]) -> Callable[..., None]:
        def move(source: Any, target: Any, **more: Any) -> None:
            told.append(("rename", os.path.abspath(target)))
            how(source, target, **more)

        return move

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "replace", renamed(replace))
    return told


def test_files_then_record_then_ledger_reach_the_disk_in_this_order(
    synced: list[tuple[str, str]], model_folder: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_recipe(make_recipe(model_folder, evaluate=None), run, root=data)
    for row in (f"cities-{i:05d}" for i in range(4)):
        place = str(run / "records" / row)
        moved = synced.index(("rename", place))
        before = [path for what, path in synced[:moved] if what == "sync" and f".{row}-" in path]
        assert {Path(path).name for path in before} >= {*FILES}
        named = synced.index(("sync", str(run / "records")), moved)
        entered = synced.index(("rename", str(run / "ledger" / f"{row}.json")))
        logged = [i for i, one in enumerate(synced) if one == ("sync", str(run / "evidence" / "log.jsonl"))]
        assert any(named < i < entered for i in logged), "the record is durable before the ledger says that it is done"
        assert synced.index(("sync", str(run / "ledger")), entered) == entered + 1
    for folder in (run, run / "evidence", run / "ledger"):
        assert ("sync", str(folder.parent)) in synced, "a new folder is durable, too"


@pytest.mark.parametrize("name", FILES)
def test_a_row_that_is_done_and_misses_a_file_is_done_again(
    run_folder: Path, model_folder: Path, data: Path, name: str
) -> None:
    (run_folder / "records" / "cities-00002" / name).unlink()
    assert verify(run_folder).exit == 1
    assert done_again(run_folder, model_folder, data) == ["cities-00002"]
    assert verify(run_folder, key=PUBLIC).exit == 0


def test_a_row_whose_files_were_redacted_is_not_done_again(run_folder: Path, model_folder: Path, data: Path) -> None:
    redact(run_folder, read_log(run_folder)[1][0].id, reason="asked", signer=KEY)
    clear_removed(run_folder, signer=KEY)
    assert done_again(run_folder, model_folder, data) == []


# redaction: killed at every file operation


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that is ended before its file operation of this number; whether it was."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if event in OPERATIONS and writes:
            count += 1
            if count > number:
                os._exit(9)

    sys.addaudithook(watch)
    try:
        work()
        os._exit(0)
    except BaseException:  # a test that fails must not go on in two processes
        os._exit(1)


def holding(run: Path, text: bytes) -> list[str]:
    found = []
    for path in run.parent.rglob("*"):
        if path.is_file() and path.name != "finished":
            seen = path.read_bytes()
            if path.suffix == ".parquet" or ".parquet-" in path.name:
                try:
                    seen = json.dumps(pq.read_table(path).to_pylist()).encode()
                except Exception:  # half a file
                    seen = path.read_bytes()
            found += [path.relative_to(run.parent).as_posix()] if text in seen else []
    return found


def take_out(run: Path, id: str) -> None:
    redact(run, id, reason="asked", signer=KEY)
    clear_removed(run, signer=KEY)


def test_a_redaction_that_is_killed_anywhere_leaves_no_text_behind_when_it_is_finished(
    finished: Path, tmp_path: Path
) -> None:
    id = read_log(finished)[1][0].id
    number = 0
    while True:
        run = tmp_path / "place" / "run"
        shutil.rmtree(run.parent, ignore_errors=True)
        shutil.copytree(finished, run)
        assert holding(run, TEXT)
        ended = killed_at(number, lambda run=run: take_out(run, id))
        assert verify(run).exit != 1, (number, verify(run).to_text())
        if not ended:
            break
        take_out(run, id)
        assert holding(run, TEXT) == [], number
        assert [path for path in run.rglob(".*") if path.name != ".lock"] == [], number
        verdict = verify(run, key=PUBLIC)
        assert (verdict.exit, verdict.uncovered) == (0, []), (number, verdict.to_text())
        number += 1
    assert number > 15, "there were hardly any operations: the test shows nothing"
    assert holding(run, TEXT) == []


# an explanation that replaces another one: killed at every file operation


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Explanation]:
    """A folder with an explanation, and another explanation to replace it."""
    out, how = tmp_path_factory.mktemp("explained") / "one", Settings(removal=None)
    first, second = (explain(make_loaded("llama"), text, max_new_tokens=2, settings=how) for text in ("One", "Two is"))
    save(first, out, attempt=begin(out / "evidence", signer=KEY))
    return out, second


def test_an_explanation_that_is_killed_while_it_replaces_another_is_never_called_tampered(
    explained: tuple[Path, Explanation], tmp_path: Path
) -> None:
    folder, second = explained
    seen, number = set(), 0
    while True:
        out = tmp_path / f"{number}" / "one"
        shutil.copytree(folder, out)
        again = lambda out=out: save(second, out, replace=True, attempt=begin(out / "evidence", signer=KEY))  # noqa: E731
        ended = killed_at(number, again)
        verdict = verify(out, key=PUBLIC)
        assert verdict.exit != 1, (number, verdict.to_text())
        if not ended:
            break
        seen |= {word for word in ("is missing", "was to replace it") if word in verdict.to_text()}
        spoil_each(out, verdict.exit)
        again()
        assert verify(out, key=PUBLIC).exit == 0, number
        number += 1
    assert number > 20, "there were hardly any operations: the test shows nothing"
    assert seen == {"is missing", "was to replace it"}


def spoil_each(out: Path, before: int) -> None:
    """Whatever was interrupted: a file with other contents than the old or the new ones is tampered."""
    if (out / "evidence" / "log.jsonl").read_bytes()[-1:] != b"\n":
        return  # half a record says nothing, and verify cannot tell (2) before and after
    for path in (out / name for name in FILES if (out / name).exists()):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"?")
        assert verify(out, key=PUBLIC).exit == 1, (path.name, before)
        path.write_bytes(data)


def test_after_its_record_an_explanation_that_replaced_another_is_checked_as_strictly(
    explained: tuple[Path, Explanation], tmp_path: Path
) -> None:
    folder, second = explained
    out = Path(shutil.copytree(folder, tmp_path / "one"))
    save(second, out, replace=True, attempt=begin(out / "evidence", signer=KEY))
    assert verify(out, key=PUBLIC).exit == 0
    for name in FILES:
        data = (out / name).read_bytes()
        for other in (data[:-1] + b"?", (folder / name).read_bytes()):
            (out / name).write_bytes(other)
            assert verify(out, key=PUBLIC).exit == 1, "changed, or the earlier one put back"
        (out / name).unlink()
        assert verify(out, key=PUBLIC).exit == 1
        (out / name).write_bytes(data)
    assert verify(out, key=PUBLIC).findings == [Finding("note", REPLACED)]


def test_only_a_manifest_without_files_may_announce_some(tmp_path: Path) -> None:
    """Else a record could name files and have them passed over."""
    make_run(tmp_path, 1)
    file = File("files/0.txt", 1, "0" * 64)
    for kind, artefacts in ((RecordKind.EXPLANATION, ()), (RecordKind.MANIFEST, (file,))):
        run = Path(shutil.copytree(tmp_path / "files", tmp_path / kind / "files")).parent
        shutil.copytree(tmp_path / "evidence", run / "evidence")
        with pytest.raises(EvidenceError, match="another type"):
            append(run / "evidence", replace(make_record(kind, artefacts=artefacts), announced=(file,)), signer=KEY)
        assert verify(run, key=PUBLIC).exit == 1


def test_pages_whose_making_is_killed_anywhere_are_covered_when_they_are_made_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = 0
    while True:
        run = tmp_path / f"{number}" / "run"
        shutil.copytree(finished, run)
        ended = killed_at(number, lambda run=run: report(run))
        assert verify(run, key=PUBLIC).exit != 1, number
        report(run)
        verdict = verify(run, key=PUBLIC)
        assert (verdict.exit, verdict.findings, verdict.uncovered) == (0, [], []), (number, verdict.to_text())
        if not ended:
            break
        shutil.rmtree(run.parent)
        number += 1
    assert number > 20, "there were hardly any operations: the test shows nothing"
    log = (run / "evidence" / "log.jsonl").read_bytes()
    report(run)
    assert (run / "evidence" / "log.jsonl").read_bytes() == log, "what is whole is left alone"
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not a_device], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["log.jsonl", "content.jsonl", "checkpoints.jsonl"])
def test_pages_are_made_whatever_is_in_the_place_of_the_evidence(
    explained: tuple[Path, Explanation], tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    out = Path(shutil.copytree(explained[0], tmp_path / "one"))
    put_in_place_of(out / "evidence" / name, kind)
    with no_longer_than(20), suppress(UserError):
        report(out)
    assert (out / "report.html").is_file()
    assert verify(out, key=PUBLIC).exit == 2


def test_what_a_killed_writer_left_is_swept_and_nothing_else(run_folder: Path) -> None:
    ours = [
        *(run_folder / name for name in (".rows.parquet-abcd1234", "ledger/.x.json-abcd1234", ".page-abcd1234")),
        *(run_folder / name for name in ("evidence/.content.jsonl-abcd1234", "index-data/.page-abcd1234")),
        run_folder / "records" / "cities-00002" / ".page-abcd1234",
        run_folder.with_name(".run-old-abcd1234"),
        run_folder / "records" / ".cities-00001-abcd1234",
    ]
    others = [run_folder / ".git-hooks", run_folder.with_name(".runs-abcd1234"), run_folder / ".hidden"]
    for path in (*ours, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(TEXT)
    (ours[-1]).unlink()
    shutil.copytree(run_folder / "records" / "cities-00001", ours[-1])
    redact(run_folder, read_log(run_folder)[1][0].id, reason="asked", signer=KEY)
    assert [path for path in ours if path.exists()] == []
    assert all(path.exists() for path in others)
    assert (run_folder / ".lock").exists()


def test_nothing_is_swept_under_a_run_that_is_at_work(run_folder: Path) -> None:
    scratch = run_folder / ".rows.parquet-abcd1234"
    scratch.write_bytes(b"being written")
    with FileLock(run_folder / ".lock", preserve_lock_file=True):
        sweep(run_folder)
        assert scratch.exists()
    sweep(run_folder)
    assert not scratch.exists()


def test_a_text_of_a_row_that_was_entered_and_not_cleaned_up_goes_too(run_folder: Path) -> None:
    """Killed between the ledger's entry and the removal of what it was prepared from."""
    entry = read_log(run_folder)[1][0]
    prepared = run_folder / "ledger" / "cities-00001.prepared"
    draft = {"record": {"id": entry.id}, "texts": {"input": TEXT.decode()}}
    prepared.write_text(json.dumps({"schema": "llmxai.row/1", "key": "k", "entry": {}, "draft": draft}))
    take_out(run_folder, entry.id)
    assert holding(run_folder, TEXT) == []


def test_a_table_that_is_killed_while_it_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"old")

    def write() -> None:
        with replacing(path) as stream:
            stream.write(b"new")

    numbers = 0
    while killed_at(numbers, write):
        assert path.read_bytes() == b"old"
        numbers += 1
    assert path.read_bytes() == b"new"
    assert numbers >= 2


# clocks


def told(run: Path) -> list[list[str]]:
    return [json.loads(record)["warnings"] for _, record in read_log(run)]


def test_a_clock_that_goes_backwards_is_noticed_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, 2, ended="2026-03-01T12:00:00.000Z")
    monkeypatch.setattr("llmxai.evidence.log.utc_now", lambda: "2026-02-28T12:00:00.000Z")
    append(tmp_path / "evidence", make_record(), signer=KEY)
    assert told(tmp_path)[:2] != told(tmp_path)[2:]
    (warning,) = told(tmp_path)[2]
    assert warning.startswith("The clock went backwards: an earlier record ended at 2026-03-01T12:00:00.000Z")
    assert verify(tmp_path, key=PUBLIC).findings == []


def test_an_attempt_that_ends_before_it_starts_is_noticed(tmp_path: Path) -> None:
    append(tmp_path / "evidence", make_record(ended="2020-01-01T00:00:00.000Z"), signer=KEY)
    assert told(tmp_path) == [["The clock went backwards: it ended at 2020-01-01T00:00:00.000Z, before it started."]]


def test_clocks_that_are_right_and_workers_that_end_in_any_order_are_not_noticed(tmp_path: Path) -> None:
    with open_log(tmp_path / "evidence") as log:
        for minute in (5, 3, 4):
            times = {"started": "2026-01-01T00:00:00.000Z", "ended": f"2026-01-01T00:0{minute}:00.000Z"}
            log.append(replace(make_record(), **times))
    assert told(tmp_path) == [[], [], []]


# folders that vanish


@pytest.mark.parametrize("explain", [True, False])
def test_a_run_whose_folder_is_removed_stops_with_a_sentence_and_does_not_bring_it_back(
    model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, explain: bool
) -> None:
    recipe = make_recipe(model_folder, **({"evaluate": None} if explain else {"explain": None}))
    name, done = ("explain" if explain else "answer"), []
    real = getattr(worker_module, name)

    def work(*what: Any, **how: Any) -> Any:
        done.append(1)
        if len(done) == 2:
            shutil.rmtree(tmp_path / "run")
        return real(*what, **how)

    monkeypatch.setattr(worker_module, name, work)
    with pytest.raises(UserError, match="was removed") as raised:
        run_recipe(recipe, tmp_path / "run", root=data)
    assert "\n" not in str(raised.value)
    assert len(done) == 2
    assert not (tmp_path / "run").exists()


def test_a_log_whose_folder_is_removed_is_not_begun_again(tmp_path: Path) -> None:
    def lose() -> None:
        with open_log(tmp_path / "e") as log:
            shutil.rmtree(tmp_path / "e")
            log.append(make_record())

    with pytest.raises(EvidenceError, match="was removed while the log was open"):
        lose()
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("name", ["log.jsonl", "content.jsonl", "checkpoints.jsonl"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    """Whoever can write the folder makes the next writer append to a file elsewhere."""
    make_run(tmp_path / "run", 1)
    target = tmp_path / "elsewhere"
    (tmp_path / "run" / "evidence" / name).rename(target)
    before = target.read_bytes()
    (tmp_path / "run" / "evidence" / name).symlink_to(target)
    with pytest.raises(EvidenceError, match="links are not followed"):
        append(tmp_path / "run" / "evidence", make_record(), texts={"input": "x"}, signer=KEY)
    assert target.read_bytes() == before


def test_a_text_that_no_reader_would_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmxai.evidence.log.LONGEST", 5000)
    with open_log(tmp_path / "evidence") as log:
        with pytest.raises(EvidenceError, match="more than 5000 bytes"):
            log.append(make_record(), texts={"input": "x" * 6000})
        log.append(make_record(), texts={"input": "x"})
    assert verify(tmp_path).findings == []


def test_the_ledger_alone_knows_nothing_of_the_log(run_folder: Path) -> None:
    ledger = Ledger(run_folder)
    key = json.loads((run_folder / "ledger" / "cities-00000.json").read_text())["key"]
    assert ledger.find("cities-00000", key=key) is not None
