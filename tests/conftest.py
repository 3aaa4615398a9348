"""Fixtures. Tiny models are made in memory (tiny.py); `smollm2` is the embedded real model, loaded once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ended import Ended
from tiny import make_loaded

import llmxai
from llmxai import cli
from llmxai.models import LoadedModel

WORKER = "PYTEST_XDIST_WORKER" in os.environ
THREADS = 1 if WORKER else torch.get_num_threads()
LONG = ("explanation", "wheel", "site", "escapes", "mutated", "cluster", "durable", "hostile", "browser", "survival")
"""Files that take longest, which start first: otherwise one worker would wait for another's last file."""

if WORKER:  # for commands that tests start
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread for tiny models: threads that wait for each other cost more than they compute on a busy machine."""
    torch.set_num_threads(THREADS if item.get_closest_marker("slow") else 1)


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    return llmxai.load("smollm2", dtype="float32")


@pytest.fixture(scope="session")
def tiny_llama() -> LoadedModel:
    """Float32, frozen; tests that change a model make their own."""
    return make_loaded("llama")


@pytest.fixture(scope="session")
def llama64() -> LoadedModel:
    return make_loaded("llama", dtype=torch.float64)


@pytest.fixture(scope="session")
def gpt64() -> LoadedModel:
    """GPT-2 computes in float64 throughout; Llama's norms and rotary angles are float32 whatever the dtype."""
    return make_loaded("gpt2", dtype=torch.float64)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: LoadedModel) -> Path:
    """A tiny Llama as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_llama.model.save_pretrained(folder)
    tiny_llama.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ended]:
    """The command in this process, in an empty folder and without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def start(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["llmxai", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return Ended(code=int(ended.value.code or 0), out=captured.out, err=captured.err)

    return start
