"""One undisturbed run of the tiny recipe for all tests of runs; those that change something copy it."""

from __future__ import annotations

from pathlib import Path

import pytest
from settings import N, make_data, make_recipe

from llmxai.runs import run_recipe


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="session")
def whole(data: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    outcome = run_recipe(make_recipe(model_folder), out, root=data)
    assert (outcome.ok, outcome.failed) == (N - 1, 1)
    return out
