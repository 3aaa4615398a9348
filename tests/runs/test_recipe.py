"""Recipes: what is refused, and in which words; the schema and the shipped recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llmxai.errors import RecipeError
from llmxai.runs import find_recipe, json_schema, list_recipes, read_recipe

ROOT = Path(__file__).parents[2] / "recipes"
GOOD = {"version": 1, "name": "mine", "data": [{"suite": "needle"}]}


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", list_recipes(ROOT), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_right(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description


def test_there_are_recipes() -> None:
    found = {p.stem for p in list_recipes(ROOT)}
    assert {"smoke", "standard", "faithfulness", "planted", "sanity", "defaults"} <= found


def test_the_schema_file_has_not_drifted() -> None:
    """Mend with: llmxai recipes schema > recipes/schema.json"""
    assert json.loads((ROOT / "schema.json").read_text(encoding="utf-8")) == json_schema()


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path))
    assert recipe.model.name == "smollm2"
    assert recipe.explain is not None
    assert recipe.evaluate is None
    assert recipe.data[0].label == "needle"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modle": {}}, r"unknown key 'modle'. Did you mean 'model'\? Known there: data, decoding, description"),
        ({"model": {"dtpye": "float32"}}, r"unknown key 'model.dtpye'. Did you mean 'dtype'\?"),
        ({"data": [{"suite": "needle", "limt": 3}]}, r"unknown key 'data.0.limt'. Did you mean 'limit'\?"),
        ({"evaluate": {"methods": [{"method": "saliency", "optoins": {}}]}}, r"Did you mean 'options'\?"),
        ({"data": [{"suite": "nedle"}]}, r"unknown suite 'nedle'. Did you mean 'needle'\?"),
        ({"data": [{"suite": "needle", "options": {"length": 3}}]}, r"no option 'length'. Did you mean 'lengths'\?"),
        ({"evaluate": {"methods": [{"method": "salience"}]}}, r"unknown method 'salience'. Did you mean 'saliency'\?"),
        (
            {"evaluate": {"methods": [{"method": "lime", "options": {"sample": 3}}]}},
            r"method 'lime' has no option 'sample'. Did you mean 'samples'\?",
        ),
        ({"data": [{}]}, "give exactly one of suite, path, saved and hub; given: none"),
        ({"data": [{"suite": "needle", "path": "x.csv"}]}, "given: suite, path"),
        ({"data": [{"suite": "needle", "prompt": "x"}]}, "a suite brings its own rows, so take out prompt"),
        ({"data": [{"path": "x.csv"}]}, "give either a prompt template or messages"),
        ({"data": [{"suite": "needle"}, {"suite": "needle"}]}, "two data sources share the label 'needle'"),
        ({"data": []}, "'data' is"),
        ({"explain": None}, "nothing to do: give explain or evaluate"),
        ({"version": 2}, "version is 2 and this llmxai reads 1"),
        ({"evaluate": {"methods": [{"method": "lime"}, {"method": "lime"}]}}, "two methods share the name 'lime'"),
        ({"evaluate": {"methods": [{"method": "lime"}], "metrics": ["lsd"]}}, "'evaluate.metrics.0' is 'lsd'"),
        ({"decoding": {"temperature": -1}}, "'decoding.temperature' is -1"),
        ({"name": "Not a name"}, "'name' is 'Not a name'"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        read_recipe(write(tmp_path, **changes))
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_version_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\ndata: [{suite: needle}]\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="'version' is missing"):
        read_recipe(path)


@pytest.mark.parametrize(("text", "says"), [("a: [", "is not YAML"), ("- 1", "holds a list"), ("\x00", "is not YAML")])
def test_what_is_no_recipe(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=says):
        read_recipe(path)


def test_settings_from_the_command_line(tmp_path: Path) -> None:
    settings = ["data.0.limit=3", "model.dtype=bfloat16", "explain=null", "evaluate.methods=[{method: lime}]"]
    recipe = read_recipe(write(tmp_path), settings=settings)
    assert recipe.data[0].limit == 3
    assert recipe.model.dtype == "bfloat16"
    assert recipe.explain is None
    assert recipe.evaluate is not None
    assert recipe.evaluate.methods[0].name == "lime"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.0.limit", "expected a.b=value"),
        ("data.7.limit=1", "'7' is no place in a list of 1"),
        ("data.x=1", "'x' is no place in a list"),
        ("name.first=1", "'name' holds 'mine', which has no keys inside"),
        ("model.dtpye=float32", "Did you mean 'dtype'"),
        ("name=[", "the value is not YAML"),
    ],
)
def test_settings_that_cannot_be_put(setting: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        read_recipe(write(tmp_path), settings=[setting])


def test_finding_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parent)
    assert find_recipe("smoke").name == "smoke.yaml"
    assert find_recipe(str(write(tmp_path))).name == "mine.yaml"
    with pytest.raises(RecipeError, match=r"smok: no such recipe file. Did you mean 'smoke'\?"):
        find_recipe("smok")
