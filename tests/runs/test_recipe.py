"""Recipes: what is refused, and in which words; the schema and the shipped recipes."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
import yaml

from llmxai import IntegratedGradients, Settings, Tolerance
from llmxai.errors import RecipeError
from llmxai.methods import METHODS, require_method
from llmxai.runs import find_recipe, json_schema, read_recipe, recipe_names

ROOT = Path(__file__).parents[2] / "recipes"
GOOD = {"version": 2, "name": "mine", "data": [{"suite": "needle"}]}


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", recipe_names(ROOT).values(), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_right(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description


@pytest.mark.parametrize("path", recipe_names(ROOT).values(), ids=lambda path: path.stem)
def test_no_shipped_recipe_explains_with_a_smaller_budget_than_the_default(path: Path) -> None:
    """With fewer nodes most of its own records would be unconverged, which says nothing of the method."""
    explain = read_recipe(path).explain
    if explain is None:
        return
    default = Settings()
    for own, usual in ((explain.gradients, default.gradients), (explain.deletion, default.deletion)):
        assert own.n_steps is None
        assert own.max_nodes >= usual.max_nodes


def test_there_are_recipes() -> None:
    found = {*recipe_names(ROOT)}
    assert {"smoke", "standard", "faithfulness", "planted", "sanity", "defaults"} <= found


def test_the_schema_file_has_not_drifted() -> None:
    """Where it has: make docs."""
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
        ({"data": [{"suite": "needle", "prompt": "x"}]}, "a suite has its own rows; remove prompt"),
        ({"data": [{"path": "x.csv"}]}, "give either a prompt template or messages"),
        ({"data": [{"suite": "needle"}, {"suite": "needle"}]}, "two data sources share the label 'needle'"),
        ({"data": []}, "'data' is"),
        ({"explain": None}, "nothing to do: give explain or evaluate"),
        ({"version": 3}, "version is 3 and this llmxai reads 1 to 2"),
        ({"evaluate": {"methods": [{"method": "lime"}, {"method": "lime"}]}}, "two methods share the name 'lime'"),
        ({"evaluate": {"methods": [{"method": "lime"}], "metrics": ["lsd"]}}, "'evaluate.metrics.0' is 'lsd'"),
        ({"decoding": {"temperature": -1}}, "decoding: temperature is -1"),
        ({"decoding": {"temprature": 1}}, r"unknown key 'decoding.temprature'. Did you mean 'temperature'\?"),
        ({"explain": {"gradients": {"max_nodes": 2}}}, "explain.gradients: max_nodes is 2; expected at least 4"),
        ({"explain": {"max_nodes": 64}}, r"'explain.max_nodes'. Did you mean 'gradients.max_nodes'\?"),
        ({"explain": {"also": ["lim"]}}, r"unknown method 'lim'. Did you mean 'lime'\?"),
        ({"explain": {"rollout": {"variant": "lime"}}}, "variant 'lime' is unknown. Known: max_head_rollout"),
        ({"name": "Not a name"}, "'name' is 'Not a name'"),
        ({"data": [{"suite": "needle", "seed": -1}]}, "'data.0.seed' is -1"),
        ({"evaluate": {"methods": [{"method": "lime"}], "seed": 10**20}}, "'evaluate.seed' is 10{20}"),
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
        ("data.7.limit=1", "'7' is not a position in a list of 1"),
        ("data.x=1", "'x' is not a position in a list"),
        ("name.first=1", "'name' holds 'mine', which has no keys"),
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


def test_recipes_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", write(tmp_path)):
        with pytest.raises(RecipeError, match="there is no such folder"):
            recipe_names(place)


def test_a_recipe_of_ones_own_does_not_take_the_name_of_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("smoke", "mine"):
        (tmp_path / "recipes" / f"{name}.yaml").write_text("version: 2")
    own = Path("recipes") / "smoke.yaml"
    assert find_recipe("smoke").samefile(ROOT / "smoke.yaml")
    assert find_recipe(str(own)) == own
    assert find_recipe("mine") == Path("recipes") / "mine.yaml"
    assert recipe_names().keys() - recipe_names(ROOT).keys() == {str(own), "mine"}


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("lime", {"samples": 1}, "method 'lime': samples is 1; expected at least 2"),
        ("lime", {"samples": 2.5}, "samples is 2.5; expected a whole number"),
        ("lime", {"alpha": "1e-3"}, "alpha is '1e-3'; expected a number"),
        ("lime", {"operator": "burn"}, "operator 'burn' is unknown. Known: delete, baseline, mean"),
        ("mc_dropout", {"rate": 1.0}, "rate is 1.0; expected a number between 0 and 1"),
        ("saliency", {"features": "words"}, "features 'words' is unknown. Known: content, prompt, all"),
        ("gradient_shap", {"baseline": "sapce"}, r"baseline 'sapce' is unknown. Did you mean 'space'\?"),
        ("gradient_shap", {"noise": -0.1}, "noise is -0.1; expected at least 0"),
        ("attention_rollout", {"residual": 1.0}, "residual is 1.0"),
        ("last_layers_rollout", {"last_layers": 0}, "last_layers is 0; expected at least 1"),
        ("leave_one_out", {"units": "page"}, "units 'page' is unknown"),
        ("random", {"seed": "x"}, "seed is 'x'; expected a whole number"),
        ("layer_integrated_gradients", {"max_nodes": 3}, "max_nodes is 3; expected at least 4"),
        ("layer_integrated_gradients", {"tolerance": 0.1}, "tolerance is 0.1; expected Tolerance"),
        ("layer_integrated_gradients", {"tolerance": {"relativ": 0.1}}, "'relativ'. Did you mean 'relative'"),
    ],
)
def test_options_of_methods_are_checked_when_the_recipe_is_read(
    method: str, options: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        read_recipe(write(tmp_path, evaluate={"methods": [{"method": method, "options": options}]}))
    assert "mine.yaml: method " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_of_every_method_are_options_that_a_recipe_may_give(name: str, tmp_path: Path) -> None:
    options = {key: asdict(value) if is_dataclass(value) else value for key, value in METHODS[name].options.items()}
    recipe = read_recipe(write(tmp_path, evaluate={"methods": [{"method": name, "options": options}]}))
    assert recipe.evaluate is not None
    assert require_method(name, recipe.evaluate.methods[0].options) == METHODS[name].options


@pytest.mark.parametrize("name", ["random", "recency", "leave_one_out"])
def test_the_name_of_a_control_is_no_label_for_another_method(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"'{name}' is one of the controls: give the method another label"):
        read_recipe(write(tmp_path, evaluate={"methods": [{"method": "lime", "label": name}]}))
    assert read_recipe(write(tmp_path, evaluate={"methods": [{"method": name}]})).evaluate is not None


VERSION_1 = {"features": "all", "baseline": "zero", "tolerance": 0.1, "max_nodes": 64}


def test_a_recipe_of_version_1_means_the_same_as_before(tmp_path: Path) -> None:
    gradients = IntegratedGradients(baseline="zero", tolerance=Tolerance(relative=0.1), max_nodes=64)
    old = read_recipe(write(tmp_path, version=1, explain=VERSION_1))
    assert old.explain == Settings(features="all", gradients=gradients)
    new = read_recipe(
        write(
            tmp_path,
            explain={
                "features": "all",
                "gradients": {"baseline": "zero", "tolerance": {"relative": 0.1}, "max_nodes": 64},
            },
        )
    )
    assert old == new
    assert read_recipe(write(tmp_path, version=1)).explain == Settings()
    methods = {"methods": [{"method": "lime"}]}
    assert read_recipe(write(tmp_path, version=1, explain=None, evaluate=methods)).explain is None


@pytest.mark.parametrize("setting", ["explain.max_nodes=8", "explain.gradients.max_nodes=8"])
def test_a_recipe_of_version_1_takes_settings_by_their_old_and_new_names(setting: str, tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, version=1, explain=VERSION_1), settings=[setting])
    assert recipe.explain is not None
    assert recipe.explain.gradients.max_nodes == 8
    assert recipe.explain.gradients.baseline == "zero"


def test_what_is_wrong_in_a_recipe_of_version_1(tmp_path: Path) -> None:
    for explain, says in (({"max_nodes": 2}, "max_nodes is 2"), ({"max_node": 8}, "unknown key 'explain.max_node'")):
        with pytest.raises(RecipeError, match=says):
            read_recipe(write(tmp_path, version=1, explain=explain))
