"""How work is dealt out: nothing lost, nothing twice, about equal, within the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings import make_recipe

from llmxai.evaluation import Row
from llmxai.runs.data import FailedRow
from llmxai.runs.ledger import Ledger
from llmxai.runs.scheduling import BATCHES_A_WORKER, Job, Plan, pack, share

sizes = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 300)), max_size=60)


def jobs_of(sizes: list[tuple[int, int]]) -> list[Job]:
    return [Job(i, Row(f"r{i}", "s", prompt="x"), "key", "id", tokens, n) for i, (tokens, n) in enumerate(sizes)]


@given(sizes, st.integers(1, 9))
def test_shares_are_about_equal(sizes: list[tuple[int, int]], count: int) -> None:
    jobs = jobs_of(sizes)
    shares = share(jobs, count)
    assert sorted(job.index for part in shares for job in part) == list(range(len(jobs)))
    loads = [sum(job.cost for job in part) for part in shares]
    assert max(loads) - min(loads) <= max((job.cost for job in jobs), default=0)


@given(sizes, st.integers(1, 5000), st.integers(1, 9))
def test_batches_keep_the_budget(sizes: list[tuple[int, int]], budget: int, workers: int) -> None:
    jobs = jobs_of(sizes)
    batches = pack(jobs, budget=budget, workers=workers)
    assert sorted(job.index for batch in batches for job in batch) == list(range(len(jobs)))
    for i, batch in enumerate(batches):
        rest = [job for later in batches[i:] for job in later]
        assert len(batch) == 1 or sum(job.tokens for job in batch) <= budget
        assert len(batch) == 1 or sum(job.cost for job in batch) <= sum(job.cost for job in rest) / (
            workers * BATCHES_A_WORKER
        )
        assert len(batch) == 1 or len(batch) <= len(rest) / (workers * BATCHES_A_WORKER)
    costs = [job.cost for batch in batches for job in batch]
    assert costs == sorted(costs, reverse=True), "the costliest first"


def test_a_job_survives_its_way_to_an_actor() -> None:
    messages = ({"role": "user", "content": "ß </script>"},)
    row = Row("a", "s", messages=messages, response=" b", spans=((0, 1), (3, 4)), fields={"depth": 0.5})
    for job in (Job(3, row, "k", "id", 5, 2), Job(4, FailedRow("b", "s", "why"), "k", "id", 0, 0)):
        assert Job.from_json(job.to_json()) == job


@pytest.mark.parametrize(("workers", "size"), [(1, 128), (8, 128), (9, 144), (40, 640)])
def test_a_window_has_rows_for_every_worker(tmp_path: Path, workers: int, size: int) -> None:
    recipe = make_recipe(tmp_path)
    plan = Plan(recipe, "model", lambda _text, **_how: {"input_ids": [1]}, Ledger(tmp_path), set(), False)
    rows = (Row(f"r{i}", "s", prompt="x", response="y") for i in range(size + 1))
    windows = plan.windows(rows, workers=workers)
    assert len(next(windows).jobs) == size
    assert [job.index for job in next(windows).jobs] == [size]
    assert list(windows) == []
