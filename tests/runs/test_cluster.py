"""Ray Data gives what one process gives: the same rows, maps, ids and order, also where an actor is killed.

One cluster of two nodes (local processes) for the module; it is shut down at its end, and no process of it is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from settings import N, make_recipe, records_of
from test_survival import assert_same_run, worked_by

from llmxai.errors import ModelLoadError, OptionError
from llmxai.evaluation import Row
from llmxai.evidence import verify
from llmxai.runs import RunOutcome, RunProgress, cluster, run_recipe
from llmxai.runs.ledger import Ledger
from llmxai.runs.scheduling import Job

pytest.importorskip("ray")
STORE = 100 * 2**20


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """Two nodes of two CPUs each, as processes of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        import ray.data
        from ray.cluster_utils import Cluster

    paths = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    handler = signal.getsignal(signal.SIGTERM)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    node = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(num_cpus=2, object_store_memory=STORE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        signal.signal(signal.SIGTERM, handler)
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        # rows this small are all done by the actor that is ready first, unless it waits for the other
        ray.data.DataContext.get_current().wait_for_min_actors_s = 120
        try:
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()
            for name, value in paths.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=20)
    assert [child.name() for child in alive if "ray" in child.name()] == []


def actors() -> list[psutil.Process]:
    """The processes of actors that explain."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()) and "Explainer" in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def one_killed(ledger: Path) -> Iterator[list[int]]:
    """As soon as a further row is prepared, an actor goes, wherever it is in its next one."""
    killed: list[int] = []
    ended = threading.Event()
    before = set(ledger.glob("cities-*"))

    def kill_one() -> None:
        while not ended.wait(0.02) and not killed:
            if set(ledger.glob("cities-*")) - before:
                for process in actors()[:1]:
                    process.kill()
                    killed.append(process.pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


@pytest.mark.usefixtures("two_nodes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
class TestCluster:
    def test_two_nodes_give_what_one_process_gives(
        self, whole: Path, data: Path, model_folder: Path, tmp_path: Path
    ) -> None:
        told: list[RunProgress] = []
        outcome = run_recipe(
            make_recipe(model_folder), tmp_path / "run", root=data, engine="ray", workers=2, progress=told.append
        )
        assert (outcome.ok, outcome.failed) == (N - 1, 1)
        assert_same_run(tmp_path / "run", whole)
        assert len(worked_by(tmp_path / "run")) == 2, "each of the two actors did some of the rows"
        rows = [news for news in told if news.stage == "rows"]
        assert [news.rows for news in rows] == list(range(1, N + 1))
        assert (rows[-1].engine, rows[-1].failed) == ("ray", 1)
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["engine"] == "ray"

    def test_it_stops_when_asked_and_goes_on_though_an_actor_is_killed(
        self, whole: Path, data: Path, model_folder: Path, tmp_path: Path
    ) -> None:
        recipe, out, fresh = make_recipe(model_folder), tmp_path / "run", list[int]()

        def call(**how: Any) -> RunOutcome:
            return run_recipe(recipe, out, root=data, workers=1, progress=lambda news: fresh.append(news.fresh), **how)

        first = call(stop=lambda: bool(fresh) and fresh[-1] == 2)
        assert (first.ok, first.stopped) == (2, True)
        before = (out / "records" / "cities-00000" / "explanation.json").read_bytes()
        stopped = call(engine="ray", stop=lambda: True)
        assert stopped.stopped
        assert stopped.ok + stopped.failed < N - 1, "too little is left to kill anybody"
        assert verify(out).exit != 1
        fresh.clear()
        with one_killed(out / "ledger") as killed:
            assert not call(engine="ray").stopped
        assert len(killed) == 1, "nobody was killed: the test shows nothing"
        assert max(fresh) == N - stopped.ok - stopped.failed, "what is done is not done again"
        assert (out / "records" / "cities-00000" / "explanation.json").read_bytes() == before
        assert_same_run(out, whole)

    def test_a_model_that_cannot_be_loaded_is_our_error(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="nowhere"):
            run_recipe(make_recipe(tmp_path / "nowhere"), tmp_path / "run", root=data, engine="ray", workers=1)
        (record,) = records_of(tmp_path / "run")
        assert record["kind"] == "refusal"


def test_without_ray_the_error_says_what_to_install(
    data: Path, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'llmxai\[ray\]'"):
        run_recipe(make_recipe(model_folder), tmp_path / "run", root=data, engine="ray")


def test_a_row_that_takes_its_worker_down_fails_in_the_end(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster: what an actor does with a row that was begun before and never ended."""
    batches = tmp_path / "batches"
    batches.mkdir()
    recipe = make_recipe(model_folder, evaluate=None).model_dump_json()
    actor = cluster.Explainer(recipe, str(tmp_path / "run"), str(batches), None, "/")
    job = Job(0, Row("a", "s", prompt="Hello", response=" you"), "key", "record", 2, 1)
    pq.write_table(pa.table({"job": [job.to_json()]}), batches / "0000000.parquet")
    real = cluster.Worker.do

    def do(self: Any, job: Job) -> None:
        if isinstance(job.row, Row):
            raise SystemExit(1)
        real(self, job)

    monkeypatch.setattr(cluster.Worker, "do", do)
    for _death in range(cluster.DEATHS):
        with pytest.raises(SystemExit):
            actor({"id": np.array([0])})
    assert list(actor({"id": np.array([0])})["done"]) == ["a"]
    found = Ledger(tmp_path / "run").prepared("a", key="key")
    assert found is not None
    assert (found[0]["status"], "died 3 times" in found[0]["error"]) == ("failed", True)
    Ledger(tmp_path / "run").commit("a", found[0])
    monkeypatch.setattr(cluster.Worker, "do", lambda _self, _job: pytest.fail("done again"))
    assert list(actor({"id": np.array([0])})["done"]) == ["a"], (
        "a batch that is given out again after its rows are done"
    )


def test_rows_that_ended_actors_had_in_hand_are_recorded(model_folder: Path, tmp_path: Path) -> None:
    """Without a cluster: one row is done, one was begun, one was about to be begun and one was not."""
    batches, run = tmp_path / "batches", tmp_path / "run"
    batches.mkdir()
    recipe = make_recipe(model_folder, evaluate=None)
    actor = cluster.Explainer(recipe.model_dump_json(), str(run), str(batches), None, "/")
    jobs = [
        Job(i, Row(name, "s", prompt="Hello", response=" you"), "key", f"id of {name}", 2, 1)
        for i, name in enumerate("abc")
    ]
    actor.worker.do(actor._begun(jobs[0]))
    actor._begun(jobs[1])
    actor._begun(jobs[2])
    marks = batches / "c.begun"
    marks.write_text(marks.read_text()[:-10])
    cluster.draft_begun(batches, run, recipe, signed_by=None)
    ((path, draft),) = Ledger(run).aborted()
    assert path.name == "b.aborted"
    assert (draft.record.id, draft.record.kind, draft.record.purpose) == ("id of b", "failure", "recipe tiny, row b")
    assert draft.record.error is not None
    assert draft.record.error.interrupted
    assert (draft.texts["input"], draft.texts["output"]) == ("Hello", " you")
    assert "an actor computed this row" in draft.texts["error"]
