"""Everything that a reader of a run relies on is covered by its log: tables, pages, plots, the ledger, the manifest."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives import serialization
from ended import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import KEY, make_run

from llmxai import Decoding, explain, save
from llmxai.evidence import Draft, Vouching, begin, export_bundle, open_log, redact, verify, vouched
from llmxai.evidence.log import read_log
from llmxai.evidence.verifier.check import read_held
from llmxai.explanation import Explanation
from llmxai.models import LoadedModel
from llmxai.runs import Recipe, clear_removed, run_recipe
from llmxai.runs import worker as worker_module
from llmxai.runs.scheduling import Job
from llmxai.settings import IntegratedGradients, Settings

N = 4
MUTATIONS = 700
PUBLIC = KEY.public_key()
PARTS = ("index.html", "manifest.json", "rows.parquet", "measures.parquet", "evaluation.html", "tables/figures.csv")


def make_recipe(model_place: Path, **changes: Any) -> Recipe:
    document = {
        "version": 2,
        "name": "tiny",
        "model": {"name": str(model_place), "dtype": "float32"},
        "data": [{"path": "cities.jsonl", "prompt": "The city of {{ name }} is", "response": " {{ city }}"}],
        "explain": {"gradients": {"max_nodes": 8}, "removal": None},
        "evaluate": {"methods": [{"method": "saliency"}], "metrics": ["aopc"], "resamples": 20},
    }
    return Recipe.model_validate(document | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def write_data(folder: Path) -> Path:
    lines = [{"name": f"person {i}", "city": ("Paris", "Rome")[i % 2]} for i in range(N)]
    (folder / "cities.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", autouse=True)
def signed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMXAI_SIGNING_KEY", signing_pem())
        yield


def signing_pem() -> str:
    pem = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


@pytest.fixture(scope="module")
def finished(model_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manifest") / "run"
    assert run_recipe(make_recipe(model_folder), out, root=data).ok == N
    return out


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def manifests(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(record) for _, record in read_log(run, manifests=True)]
    return [record for record in records if record["kind"] == "manifest"]


def files_of(run: Path) -> list[str]:
    found = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path for path in found if not path.endswith(".lock"))


def test_a_finished_run_is_covered_to_the_last_file(finished: Path) -> None:
    verdict = verify(finished, key=PUBLIC)
    assert (verdict.exit, verdict.findings, verdict.uncovered) == (0, [], [])
    assert verdict.records == N + 1
    (manifest,) = manifests(finished)
    listed = {file["path"] for file in manifest["artefacts"]}
    assert set(PARTS) <= listed
    assert not any(path.startswith(("records/", "ledger/", "evidence/")) for path in listed)
    for record in (json.loads(record) for _, record in read_log(finished)):
        assert record["entered"]["path"].startswith("ledger/cities-")
        assert len(record["artefacts"]) == 3


# 700 mutations of anything, by whoever holds no key: each is found, or listed as what nobody vouches for


def edit(run: Path, draw: Callable[[int], int]) -> str:
    name = files_of(run)[draw(len(files_of(run)))]
    content = bytearray((run / name).read_bytes())
    content[draw(len(content))] ^= 1 + draw(255)
    (run / name).write_bytes(content)
    return name


def grow(run: Path, draw: Callable[[int], int]) -> str:
    name = files_of(run)[draw(len(files_of(run)))]
    (run / name).write_bytes((run / name).read_bytes() + b" " * (1 + draw(3)))
    return name


def cut(run: Path, draw: Callable[[int], int]) -> str:
    name = files_of(run)[draw(len(files_of(run)))]
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: draw(len(content))])
    return name


def remove(run: Path, draw: Callable[[int], int]) -> str:
    name = files_of(run)[draw(len(files_of(run)))]
    (run / name).unlink()
    return name


def exchange(run: Path, draw: Callable[[int], int]) -> str:
    names = files_of(run)
    i, step = draw(len(names)), 1 + draw(len(names) - 1)
    one, two = run / names[i], run / names[(i + step) % len(names)]
    first, second = one.read_bytes(), two.read_bytes()
    if first == second:
        one.unlink()
    else:
        one.write_bytes(second)
        two.write_bytes(first)
    return names[i]


def add(run: Path, draw: Callable[[int], int]) -> str:
    name = ("records/evil/report.html", "ledger/cities-00009.json", "tables/more.csv", "NOTE.md", "evidence/more.jsonl")
    path = run / name[draw(len(name))]
    path.parent.mkdir(exist_ok=True)
    path.write_text("put in")
    return path.relative_to(run).as_posix()


def link(run: Path, draw: Callable[[int], int]) -> str:
    """The same bytes, but from elsewhere: whoever holds the other place changes them later."""
    name = files_of(run)[draw(len(files_of(run)))]
    aside = run.parent / "aside"
    shutil.copyfile(run / name, aside)
    (run / name).unlink()
    (run / name).symlink_to(aside)
    return name


def add_a_link(run: Path, draw: Callable[[int], int]) -> str:
    name = ("report.html", "records/more", "evidence/other", "tables/figures")[draw(4)]
    (run / name).symlink_to(run.parent)
    return f"{name} (a link)"


WAYS = (edit, edit, grow, cut, remove, exchange, add, link, add_a_link)
made: dict[str, int] = {}


@settings(
    max_examples=MUTATIONS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_every_mutation_is_found_or_listed(data: st.DataObject, finished: Path) -> None:
    spoilt = finished.with_name("spoilt")
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(finished, spoilt)
    way = data.draw(st.sampled_from(WAYS))
    name = way(spoilt, lambda n: data.draw(st.integers(0, n - 1)))
    verdict = verify(spoilt, key=PUBLIC, held=[read_held(finished / "evidence" / "checkpoints.jsonl")])
    if way in (add, add_a_link):
        assert (verdict.exit, verdict.uncovered) == (0, [name])
    else:
        assert verdict.exit != 0, (way.__name__, name)
    made[way.__name__] = made.get(way.__name__, 0) + 1


def test_that_many_mutations_were_made() -> None:
    assert sum(made.values()) >= MUTATIONS
    assert set(made) == {way.__name__ for way in WAYS}


# the life of a run


def test_the_same_run_again_and_a_retry_are_covered(run_folder: Path, model_folder: Path, data: Path) -> None:
    run_recipe(make_recipe(model_folder), run_folder, root=data)
    assert [bool(record["artefacts"]) for record in manifests(run_folder)] == [True, False, True]
    verdict = verify(run_folder, key=PUBLIC)
    assert (verdict.exit, verdict.findings, verdict.uncovered) == (0, [], [])


def test_while_it_runs_and_after_a_kill_nothing_is_called_tampered(
    run_folder: Path, model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are done again over those of a finished run; it is killed after each, and looked at."""
    lines = (data / "cities.jsonl").read_text().replace("Paris", "Oslo")
    (tmp_path / "cities.jsonl").write_text(lines)
    recipe, real, exits = make_recipe(model_folder), worker_module.Worker.do, []

    def do(self: Any, job: Job) -> None:
        real(self, job)
        exits.append(verify(run_folder, key=PUBLIC).exit)
        exits.append(verify(run_folder).exit)

    monkeypatch.setattr(worker_module.Worker, "do", do)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(worker_module.Worker, "do", lambda self, job: (real(self, job), os.kill(os.getpid(), 9)))
        run_recipe(recipe, run_folder, root=tmp_path)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert verify(run_folder).exit == 2
    run_recipe(recipe, run_folder, root=tmp_path)
    assert exits
    assert set(exits) <= {0, 2}
    verdict = verify(run_folder, key=PUBLIC)
    assert (verdict.exit, verdict.findings[1:], verdict.uncovered) == (0, [], [])
    assert "were replaced" in verdict.findings[0].what


def test_a_run_that_only_evaluates_has_evidence_too(model_folder: Path, data: Path, tmp_path: Path) -> None:
    recipe = make_recipe(model_folder, explain=None)
    run_recipe(recipe, tmp_path / "run", root=data)
    records = [json.loads(record) for _, record in read_log(tmp_path / "run")]
    assert [record["kind"] for record in records] == ["evaluation"] * N
    assert {record["model"]["digest"] for record in records} != {None}
    assert all(sorted(record["digests"]) == ["input", "input_ids", "output", "output_ids"] for record in records)
    rows = pq.read_table(tmp_path / "run" / "rows.parquet").to_pylist()
    assert [row["record"] for row in rows] == [record["id"] for record in records]
    verdict = verify(tmp_path / "run", key=PUBLIC)
    assert (verdict.exit, verdict.findings, verdict.uncovered) == (0, [], [])
    assert verify(export_bundle(tmp_path / "run", records[0]["id"], tmp_path / "b.zip"), key=PUBLIC).findings == []
    table = tmp_path / "run" / "tables" / "figures.csv"
    table.write_text(table.read_text().replace("saliency", "oracle"))
    assert "tables/figures.csv was changed" in str(verify(tmp_path / "run").first_bad)


def done_again(run: Path, model_place: Path, data: Path, **changes: Any) -> list[str]:
    """The rows that the same command does."""
    done: list[str] = []
    real = worker_module.Worker.do
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module.Worker, "do", lambda self, job: done.append(job.row.id) or real(self, job))
        run_recipe(make_recipe(model_place, **changes), run, root=data)
    return done


def test_an_entry_without_its_record_is_not_entered(run_folder: Path, model_folder: Path, data: Path) -> None:
    """Somebody writes a row's figures into the ledger: of a record that does not exist, or other than it says."""
    entry = json.loads((run_folder / "ledger" / "cities-00001.json").read_text())
    forged = entry | {"record": "0" * 24, "answer": " Oslo"}
    (run_folder / "ledger" / "cities-00001.json").write_text(json.dumps(forged))
    changed = json.loads((run_folder / "ledger" / "cities-00002.json").read_text()) | {"answer": " Oslo"}
    (run_folder / "ledger" / "cities-00002.json").write_text(json.dumps(changed))
    assert verify(run_folder).exit == 1
    assert done_again(run_folder, model_folder, data) == ["cities-00001", "cities-00002"]
    rows = pq.read_table(run_folder / "rows.parquet").to_pylist()
    assert " Oslo" not in {row["answer"] for row in rows}
    assert verify(run_folder, key=PUBLIC).exit == 0


def test_what_somebody_else_changed_is_not_vouched_for_by_the_next_run(
    run_folder: Path, model_folder: Path, data: Path
) -> None:
    """The run writes its tables anew; what it does not write stays as it was, and so does what is said of it."""
    (run_folder / "tables" / "more.csv").write_text("put in")
    (run_folder / "plots" / "old.svg").write_text("put in")
    (run_folder / "rows.parquet").write_bytes(b"another")
    run_recipe(make_recipe(model_folder), run_folder, root=data)
    verdict = verify(run_folder, key=PUBLIC)
    assert (verdict.exit, verdict.uncovered) == (0, ["plots/old.svg", "tables/more.csv"])
    assert manifests(run_folder)[1]["warnings"] == ["rows.parquet was changed after the last manifest"]


def test_a_file_that_is_gone_stays_missed(run_folder: Path) -> None:
    """Another command comes and goes, and the page of the evaluation is still known to be missing."""
    (run_folder / "evaluation.html").unlink()
    (run_folder / "tables" / "cost.csv").write_text("another")
    with vouched(run_folder, signer=KEY) as changing:
        changing()
        (run_folder / "index.pdf").write_bytes(b"%PDF")
    verdict = verify(run_folder, key=PUBLIC)
    found = {finding.what.partition(" ")[0] for finding in verdict.findings if finding.severity == "tampered"}
    assert found == {"evaluation.html", "tables/cost.csv"}
    assert verdict.uncovered == []


def test_a_command_that_is_killed_leaves_nothing_tampered_and_the_next_one_mends_it(run_folder: Path) -> None:
    with open_log(run_folder / "evidence", signer=KEY) as log:
        Vouching(log).changing()
    (run_folder / "index.html").write_text("half")
    verdict = verify(run_folder, key=PUBLIC)
    assert verdict.exit == 0
    assert set(PARTS) <= set(verdict.uncovered)
    with vouched(run_folder, signer=KEY) as changing:
        changing()
    verdict = verify(run_folder, key=PUBLIC)
    assert (verdict.exit, verdict.uncovered) == (0, ["index.html"])


def test_after_a_kill_between_record_and_ledger_nothing_can_be_told(run_folder: Path) -> None:
    """The last records are durable, their entries are not there yet: a run that goes on mends it."""
    with open_log(run_folder / "evidence", signer=KEY) as log:
        Vouching(log).changing()
        (_, record) = read_log(run_folder)[-1]
        body = {name: value for name, value in json.loads(record).items() if name != "chain"}
        body |= {"id": "f" * 24, "digests": {}, "content": {"mode": "none"}}
        again = Draft.from_json({"record": body, "texts": {}}).entering("ledger/new.json", b"{}")
        log.append(again.record)
    verdict = verify(run_folder, key=PUBLIC)
    assert verdict.exit == 2
    assert "ledger/new.json is missing: its run was interrupted" in verdict.to_text()
    (run_folder / "ledger" / "new.json").write_text("[]")
    assert verify(run_folder).exit == 1
    (run_folder / "ledger" / "new.json").write_text("{}")
    assert verify(run_folder).exit == 0


def test_redaction_leaves_the_run_covered(run_folder: Path) -> None:
    entry, _ = read_log(run_folder)[1]
    redact(run_folder, entry.id, reason="asked", signer=KEY)
    assert verify(run_folder, key=PUBLIC).exit == 0
    clear_removed(run_folder, signer=KEY)
    verdict = verify(run_folder, key=PUBLIC)
    assert (verdict.exit, verdict.findings, verdict.uncovered) == (0, [], [])
    ledger = run_folder / "ledger" / "cities-00001.json"
    ledger.write_text(ledger.read_text().replace("ok", "no"))
    assert verify(run_folder).exit == 1


def test_a_manifest_cannot_be_redacted(run: Run, run_folder: Path) -> None:
    (manifest,) = manifests(run_folder)
    ended = run("redact", manifest["id"], "--reason", "asked", "--run", run_folder)
    assert (ended.code, "is a manifest" in ended.err) == (2, True)


# `llmxai report` and `llmxai explain`


@pytest.fixture(scope="module")
def explanation(tiny_llama: LoadedModel) -> Explanation:
    how = Settings(gradients=IntegratedGradients(max_nodes=8), removal=None)
    return explain(tiny_llama, "Hello there", decoding=Decoding(max_new_tokens=2), settings=how)


def test_pages_that_are_made_again_are_covered(run: Run, run_folder: Path) -> None:
    log = run_folder / "evidence" / "log.jsonl"
    before = log.read_bytes()
    assert run("report", run_folder).code == 0
    assert log.read_bytes() != before, "the pages name the folder, which is a copy"
    before = log.read_bytes()
    assert run("report", run_folder).code == 0
    assert log.read_bytes() == before, "nothing changed, so nothing is said"
    (run_folder / "index.html").unlink()
    (run_folder / "rows.parquet").rename(run_folder / "x.parquet")
    assert verify(run_folder).exit == 1
    (run_folder / "x.parquet").rename(run_folder / "rows.parquet")
    assert run("report", run_folder).code == 0
    verdict = verify(run_folder, key=PUBLIC)
    assert (verdict.exit, verdict.findings, verdict.uncovered) == (0, [], [])
    assert manifests(run_folder)[3]["warnings"] == ["index.html was removed after the last manifest"]


def test_a_page_made_again_and_the_explanation_replaced(run: Run, explanation: Explanation, tmp_path: Path) -> None:
    out = tmp_path / "one"
    save(explanation, out, attempt=begin(out / "evidence", signer=KEY))
    (id,) = [entry.id for entry, _ in read_log(out)]
    assert run("review", "sign", id, "--decision", "approved", "--by", "r1", "--run", out).code == 0
    assert run("report", out).code == 0
    assert (out / "report.rebuilt.html").is_file()
    verdict = verify(out, key=PUBLIC)
    assert (verdict.exit, verdict.findings, verdict.uncovered) == (0, [], [])
    page = (out / "report.rebuilt.html").read_text()
    (out / "report.rebuilt.html").write_text(page.replace("approved", "rejected"))
    assert verify(out).exit == 1
    save(explanation, out, attempt=begin(out / "evidence", signer=KEY), replace=True)
    verdict = verify(out, key=PUBLIC)
    assert (verdict.exit, verdict.uncovered) == (0, [])


def test_without_the_key_the_pages_are_made_and_nobody_signs(
    run: Run, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMXAI_SIGNING_KEY")
    (run_folder / "index.html").write_text("old")
    assert run("report", run_folder).code == 0
    assert verify(run_folder).exit == 0
    assert verify(run_folder, key=PUBLIC).exit == 2


# what is not covered, as it is told


def test_old_logs_verify_as_before_and_what_they_do_not_name_is_listed(run: Run) -> None:
    gallery = Path(__file__).parents[2] / "tests" / "earlier" / "gallery"
    ended = run("verify", gallery)
    assert ended.code == 0
    assert ended.out.splitlines()[0].startswith(f"whole: {gallery}, 8 records, unsigned")
    assert "not covered: rows.parquet" in ended.out.splitlines()
    told = json.loads(run("verify", gallery, "--json").out)
    assert (told["verdict"], told["findings"], len(told["uncovered"])) == ("whole", [], 11)


def test_the_text_lists_some_and_json_all(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "run", 1)
    for i in range(50):
        (tmp_path / "run" / f"more-{i:02d}").write_text("x")
    lines = run("verify", tmp_path / "run").out.splitlines()
    assert lines[0].endswith("; 50 files in the folder are not covered")
    assert lines[1:3] == ["not covered: more-00", "not covered: more-01"]
    assert lines[-1] == "not covered: 30 more; --json lists them"
    assert len(json.loads(run("verify", tmp_path / "run", "--json").out)["uncovered"]) == 50


def test_a_log_among_other_things_lists_none_of_them(tmp_path: Path) -> None:
    """`DIR.evidence/` lies where DIR lies, among what is none of its business."""
    make_run(tmp_path / "x", 1)
    (tmp_path / "x" / "evidence").rename(tmp_path / "x" / "out.evidence")
    (tmp_path / "x" / "mine").write_text("x")
    verdict = verify(tmp_path / "x" / "out.evidence", key=PUBLIC)
    assert (verdict.exit, verdict.uncovered) == (0, [])


def test_a_deep_or_wide_folder_is_listed_without_end(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 1)
    here = os.open(tmp_path / "run", os.O_RDONLY)
    for _ in range(25):  # deeper than a path may be long
        os.mkdir("d" * 200, dir_fd=here)
        there = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    assert verify(tmp_path / "run").exit == 0
    assert len(verify(tmp_path / "run").uncovered) == 1
