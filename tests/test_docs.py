"""The docs say what the code does: generated pages are current, examples run, links lead somewhere."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ended import Run
from tiny import (
    ARCHITECTURES,
    ENCODER_DECODERS,
    GROUPED,
    answered,
    certificate_of,
    make_encoder_decoder,
    make_loaded,
    make_tokenizer,
)

from llmxai.errors import OptionError
from llmxai.methods import METHODS, layer_integrated_gradients, require_method, token_targets
from llmxai.methods.targets import TargetRows
from llmxai.models import LoadedModel, embed, forward_logits
from llmxai.models.families import FAMILIES
from llmxai.names import AttentionStatus
from llmxai.runs import read_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "reports" / "README.md"])


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["docs/api.md", "docs/cli.md", "docs/record.schema.json", "recipes/schema.json"])
def test_generated_pages_are_current(page: str) -> None:
    written = (ROOT / page).read_text(encoding="utf-8")
    assert written == generator().PAGES[page](), "the docstrings or options changed: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))) <= targets


def blocks(page: str, kind: str) -> list[str]:
    """The code of that kind on a page of docs/, without its indentation."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(rf"^ *```{kind}\n(.*?)^ *```", text, re.DOTALL | re.M)]


def execute(code: str, page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    names = {"__name__": "example"} if names is None else names
    exec(compile(code, page, "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables of methods and families are afterwards what they were before."""
    before = {id(table): (table, dict(table)) for table in (METHODS, FAMILIES)}
    yield
    for table, entries in before.values():
        table.clear()
        table.update(entries)


@pytest.fixture
def added(tables: None) -> Any:
    """The method of the how-to, entered into the table."""
    del tables
    file, _ = blocks("add-a-method.md", "python")
    return execute(file, "add-a-method.md")["gradient_times_input"]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bart"])
def test_the_method_of_the_how_to_is_right(added: Any, family: str) -> None:
    """The scores of all tokens sum to d/ds F(s x) at s = 1, from a difference of two passes."""
    loaded = make_encoder_decoder(family) if family in ENCODER_DECODERS else make_loaded(family, dtype=torch.float64)
    loaded.model.double()
    generation = answered(loaded)
    targets = token_targets(generation)
    got = added(loaded, generation, features="all").values
    for t, target in enumerate(targets):
        assert (got[t, target.last + 1 :] == 0).all()
    x, rows, nearly = embed(loaded.model, generation.ids)[None].detach(), TargetRows.of(targets), 1e-6

    def f(scale: float) -> torch.Tensor:
        with torch.no_grad():
            return rows.values(
                forward_logits(
                    loaded.model,
                    x * scale,
                    ids=generation.ids,
                    positions=rows.positions,
                    source=generation.source_len,
                )
            )[0]

    assert (got.sum(dim=1) - (f(1 + nearly) - f(1 - nearly)) / (2 * nearly)).abs().max() < 1e-5
    content = added(loaded, generation)
    assert torch.equal(content.values, got * content.features)
    whole = layer_integrated_gradients(loaded, generation, features="all", baseline="zero", n_steps=64).values
    assert got.shape == whole.shape


def test_the_method_of_the_how_to_refuses_wrong_options(added: Any, tiny_llama: LoadedModel) -> None:
    for options, says in (({"power": 0}, "power is 0; expected at least 1"), ({"features": "words"}, "'words'")):
        with pytest.raises(OptionError, match=says):
            added(tiny_llama, answered(tiny_llama), **options)
        with pytest.raises(OptionError, match=says):
            require_method("gradient_times_input", options)


@pytest.mark.usefixtures("added")
def test_the_method_of_the_how_to_goes_through_explain_and_a_recipe(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run: Run,
    tiny_llama: LoadedModel,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    """As the page shows it, on a tiny model: next to an explanation, then in the table of a run."""
    monkeypatch.setattr("llmxai.inputs.load", lambda _name: tiny_llama)
    _, use = blocks("add-a-method.md", "python")
    explanation = execute(use, "add-a-method.md")["explanation"]
    assert "Source(" in capsys.readouterr().out
    scores = explanation.also["gradient_times_input"]
    assert scores.values.any()
    explanation.save(tmp_path / "explained")
    document = json.loads((tmp_path / "explained" / "explanation.json").read_text(encoding="utf-8"))
    assert document["scores"]["gradient_times_input"]["settings"] == {"features": "content", "power": 1}
    assert document["targets"][0]["sources"]["gradient_times_input"]
    (recipe,) = blocks("add-a-method.md", "yaml")
    (tmp_path / "times.yaml").write_text(recipe, encoding="utf-8")
    ended = run("run", tmp_path / "times.yaml", "--set", f"model.name={model_folder}", "--out", "out")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "rows: 2 done, 0 failed")
    table = (tmp_path / "out" / "tables" / "summary.md").read_text(encoding="utf-8")
    figures = list(csv.DictReader((tmp_path / "out" / "tables" / "figures.csv").read_text().splitlines()))
    for name in ("gradient_times_input", "gradient_times_input 2"):
        assert f"\n| {name} | " in table
        assert {line["figure"] for line in figures if line["method"] == name} >= {"mrr", "comprehensiveness"}
    assert "gradient_times_input" in run("methods").out
    assert run("recipes", "validate", tmp_path / "times.yaml").code == 0


def test_the_table_is_as_it_was_after_the_how_to() -> None:
    assert "gradient_times_input" not in METHODS
    assert "gru" not in FAMILIES


def test_the_first_example_of_how_to_add_a_family_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry, _, _ = blocks("add-a-family.md", "python")
    assert entry == '"cohere": GROUPED,\n'
    import matrix

    monkeypatch.setitem(ARCHITECTURES, "cohere", GROUPED)
    monkeypatch.setitem(matrix.CASES, "cohere", ("cohere", {}))
    row = matrix.run("cohere", tmp_path / "out")
    assert row.right, row


@pytest.mark.usefixtures("tables")
def test_the_family_of_ones_own_is_explained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With its row rollout is refused for what the model is; the gradients converge and are delivered."""
    _, model, use = blocks("add-a-family.md", "python")
    names = execute(model, "add-a-family.md") | {"tokenizer": make_tokenizer()}
    explanation = execute(use, "add-a-family.md", names)["explanation"]
    reason = "3 of its 3 layers have no softmax attention or mix tokens by something else as well (3 linear_attention)"
    assert reason in explanation.rollout.refused
    assert reason in explanation.variant.refused
    assert reason in capsys.readouterr().out
    assert all(certificate_of(explanation.gradients).converged)
    assert {check.attention for check in explanation.checks} == {AttentionStatus.REFUSED}
    assert explanation[0].top(1)
    assert explanation.effects is not None
    explanation.save(tmp_path / "out")
    assert "3 linear_attention" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_recipe_of_the_how_to_runs(run: Run, model_folder: Path, tmp_path: Path) -> None:
    """Its rows and its recipe are taken from the page; the model is a tiny one."""
    (rows,), (recipe,) = blocks("add-a-recipe.md", "json"), blocks("add-a-recipe.md", "yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "capitals.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "capitals.yaml").write_text(recipe, encoding="utf-8")
    assert run("recipes", "validate", "capitals.yaml").out == "capitals.yaml: valid\n"
    assert "max_nodes: 64" in run("recipes", "show", "capitals.yaml").out
    assert read_recipe(tmp_path / "capitals.yaml").name == "capitals"
    command = ["run", "capitals.yaml", "--set", f"model.name={model_folder}", "--out", "out"]
    ended = run(*command, "--set", "data.0.limit=1")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "rows: 1 done, 0 failed")
    ended = run(*command)
    assert (ended.code, ended.out.splitlines()[0]) == (0, "rows: 2 done, 0 failed")
    table = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [row["id"] for row in table] == ["france", "italy"]
    assert all(row["metric.saliency.mrr"] > 0 and row["n_targets"] == 6 for row in table)
    assert (tmp_path / "out" / "records" / "italy" / "report.html").exists()
