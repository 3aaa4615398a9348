"""The benchmarks take an hour and no test runs them; what they take from the package must at least be there, and what
the docs quote of them is what they wrote."""

from __future__ import annotations

import ast
import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import answered, make_loaded

from llmxai.methods import token_targets
from llmxai.methods.perturbation.removal import half_subsets

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmxai")]
    missing = [
        f"{node.module}.{alias.name}"
        for node in taken
        for alias in node.names
        if not hasattr(importlib.import_module(str(node.module)), alias.name)
    ]
    assert missing == []


@pytest.mark.parametrize("units", [5, 8, 9, 11, 13, 33])
@pytest.mark.parametrize(("more", "tested"), [(192, 200), (0, 0)])
def test_the_masks_of_a_calibration_are_found_again(
    units: int, more: int, tested: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only F is stored; its masks are drawn again from how many figures there are. None is one that was fitted on."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fresh_masks = importlib.import_module("calibrate_tables").fresh_masks
    kept = half_subsets(units, 64, seed=0).numpy()
    first = fresh_masks(kept, more=more, tested=tested, free=9)
    again = fresh_masks(kept, more=len(first[0]), tested=len(first[1]), free=9)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    halves = [mask.tobytes() for mask in (*kept, *first[0], *first[1])]
    assert len(set(halves)) == len(halves)
    assert {int(mask.sum()) for mask in (*first[0], *first[1])} <= {units // 2}


def test_scores_of_words_are_spread_over_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of two words gets a share of each, and the sum stays."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spread = importlib.import_module("peer_tools").spread
    assert spread([[0, 1], range(1, 3)], [2.0, 4.0], 4).tolist() == [1, 3, 2, 0]


def test_the_end_mark_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captum and Inseq explain every token that was generated; by default, the end mark is no target here."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    every_token = importlib.import_module("worker").every_token
    loaded = make_loaded("llama")
    said = answered(loaded)
    ended = replace(said, stop="eos")
    assert every_token(said) == token_targets(said)
    assert every_token(ended)[:-1] == token_targets(ended)
    assert every_token(ended)[-1].ids == said.ids[-1:]


def test_a_stopped_benchmark_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is not measured again; what failed is."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kept = importlib.import_module("machine").kept
    samples = tmp_path / "samples.jsonl"
    assert kept(samples, "a", lambda: {"f": 1}) == {"of": "a", "f": 1}
    assert kept(samples, "b", lambda: {"failure": "killed"})["failure"] == "killed"
    assert kept(samples, "a", lambda: pytest.fail("measured again")) == {"of": "a", "f": 1}
    assert kept(samples, "b", lambda: {"f": 2}) == {"of": "b", "f": 2}
    assert kept(samples, "b", lambda: pytest.fail("measured again")) == {"of": "b", "f": 2}
    assert kept(None, "a", lambda: {"f": 3}) == {"of": "a", "f": 3}


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n\n")[2].partition("\n## ")[0].strip()


def test_the_docs_quote_what_was_counted_of_survival() -> None:
    """Every figure of the short table, and by name all that is not found."""
    written = (BENCHMARKS / "SURVIVAL.md").read_text(encoding="utf-8")
    docs = (BENCHMARKS.parent / "docs" / "verify.md").read_text(encoding="utf-8").splitlines()
    short, forged, changed = (
        section(written, title).splitlines() for title in ("In short", "Forgeries", "Changed files")
    )
    rows = [*short, *(line for line in forged if line[:1] == "|"), *(line for line in changed if line[:2] == "- ")]
    assert len(rows) > 20
    assert [line for line in rows if line not in docs] == []
