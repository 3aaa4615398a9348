"""The docs say what the code does: generated pages are current, examples run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, answered, make_loaded

from llmxai.methods import METHODS, layer_integrated_gradients
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


def test_the_example_of_how_to_add_a_method_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It equals integrated gradients with one node at the input, from a zero baseline."""
    text = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr("llmxai.methods.registry.METHODS", dict(METHODS))
    names: dict[str, Any] = {}
    exec(
        compile("\n".join(line[3:] for line in block.splitlines()), "add-a-method.md", "exec", dont_inherit=True), names
    )
    loaded = make_loaded("gpt2", dtype=torch.float64)
    generation = answered(loaded)
    got = names["gradient_times_input"](loaded, generation)
    nearly = 1e-6
    whole = layer_integrated_gradients(loaded, generation, features="all", baseline="zero", n_steps=64).values
    assert got.shape == whole.shape
    for t in range(generation.n_targets):
        seen = generation.prompt_len + t
        assert (got[t, seen:] == 0).all()
    x = loaded.model.get_input_embeddings()(torch.tensor([generation.ids])).detach()

    def f(scale: float) -> torch.Tensor:
        with torch.no_grad():
            logits = loaded.model(inputs_embeds=x * scale).logits[0, generation.prompt_len - 1 : -1]
        ids = torch.tensor(generation.generated_ids)
        return logits.log_softmax(dim=-1)[torch.arange(len(ids)), ids]

    slope = (f(1 + nearly) - f(1 - nearly)) / (2 * nearly)  # d/ds F(s x) at s = 1 is the sum of <dF/dx_i, x_i>
    assert (got.sum(dim=1) - slope).abs().max() < 1e-5


def test_the_example_of_how_to_add_a_family_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "add-a-family.md").read_text(encoding="utf-8")
    assert '"cohere": GROUPED,' in text
    import matrix

    monkeypatch.setitem(ARCHITECTURES, "cohere", ARCHITECTURES["llama"])
    monkeypatch.setitem(matrix.CASES, "cohere", ("cohere", {}))
    row = matrix.run("cohere", tmp_path / "out")
    assert row.right, row


def test_how_to_add_a_recipe_is_right(tmp_path: Path) -> None:
    """Its rows and its recipe are taken from the page as they stand."""
    text = (ROOT / "docs" / "add-a-recipe.md").read_text(encoding="utf-8")
    rows, recipe = (
        "\n".join(line[3:] for line in re.findall(rf"```{kind}\n(.*?)\n   ```", text, flags=re.S)[0].splitlines())
        for kind in ("json", "yaml")
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "capitals.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "capitals.yaml").write_text(recipe, encoding="utf-8")
    assert read_recipe(tmp_path / "capitals.yaml").name == "capitals"
    assert [json.loads(row)["evidence"] for row in rows.splitlines()] == ["Paris", "Rome"]
