"""One Settings, however it is given: from Python, from the command line, from a recipe, and back from a record."""

from __future__ import annotations

import importlib
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from ended import Ended, Run

import llmxai
from llmxai import Decoding, IntegratedGradients, Removal, Settings, Tolerance
from llmxai.commands.explain import FLAGS
from llmxai.errors import OptionError, RecipeError
from llmxai.models import LoadedModel
from llmxai.recompute import settings_of
from llmxai.runs.recipe import check_recipe
from llmxai.settings import DeletionPath, field_paths, put, settings_from
from llmxai.store import read_folder

explain_module = importlib.import_module("llmxai.explain")

OTHERS: dict[str, Any] = {
    "features": "all",
    "gradients.baseline": "zero",
    "gradients.tolerance.relative": 0.3,
    "gradients.tolerance.absolute": 1e-05,
    "gradients.max_nodes": 16,
    "gradients.n_steps": 5,
    "deletion.tolerance.relative": 0.3,
    "deletion.tolerance.absolute": 1e-05,
    "deletion.max_nodes": 16,
    "deletion.n_steps": 5,
    "rollout.residual": 0.25,
    "rollout.head_fusion": "max",
    "rollout.variant": "max_head_rollout",
    "removal.units": "token",
    "removal.operator": "mean",
    "removal.subsets": 5,
    "removal.budget": 99,
    "removal.recomputed": 1000,
    "removal.baseline": "token: 😀",
    "removal.seed": 3,
    "removal.chunk_tokens": 100,
    "removal.answer": False,
    "also": ["saliency", "recency"],
    "compute.precision": "stored",
    "compute.gradient_dtype": "bfloat16",
    "compute.chunk_tokens": 64,
    "compute.checkpoint": True,
}
"""Another value than the default, for every setting."""

WRONG: dict[str, tuple[Any, str]] = {
    "features": ("words", "features 'words' is unknown. Known: content, prompt, all"),
    "gradients.baseline": ("sapce", r"baseline 'sapce' is unknown. Did you mean 'space'\?"),
    "gradients.tolerance.relative": (-1.0, "tolerance: relative -1.0, absolute 0.02; expected one above 0"),
    "gradients.tolerance.absolute": ("much", "absolute'? is 'much'"),
    "gradients.max_nodes": (3, "max_nodes is 3; expected at least 4"),
    "gradients.n_steps": (10**12, "n_steps is 10{12}; expected at most 100000"),
    "deletion.tolerance.relative": (-1.0, "tolerance: relative -1.0, absolute 0.02; expected one above 0"),
    "deletion.tolerance.absolute": ("much", "absolute'? is 'much'"),
    "deletion.max_nodes": (10**12, "max_nodes is 10{12}; expected at most 100000"),
    "deletion.n_steps": (0, "n_steps is 0; expected at least 1"),
    "rollout.residual": (1.0, "residual is 1.0; expected a share"),
    "rollout.head_fusion": ("maxx", r"head_fusion 'maxx' is unknown. Did you mean 'max'\?"),
    "rollout.variant": (
        "max_heads_rollout",
        r"variant 'max_heads_rollout' is unknown. Did you mean 'max_head_rollout'",
    ),
    "removal.units": ("page", "removal units 'page' is unknown. Known: auto, token, word, sentence"),
    "removal.operator": ("burn", "removal operator 'burn' is unknown. Known: delete, baseline, mean"),
    "removal.subsets": (10**12, "subsets is 10{12}; expected at most 100000"),
    "removal.budget": (0, "budget is 0; expected at least"),
    "removal.recomputed": (-1, "recomputed is -1; expected at least 0"),
    "removal.baseline": ("id:x", "baseline 'id:x' is unknown"),
    "removal.seed": (-1, "seed is -1; expected at least 0"),
    "removal.chunk_tokens": (0, "chunk_tokens is 0; expected at least 1"),
    "removal.answer": ("perhaps", "answer'? is 'perhaps'"),
    "also": (["lim"], r"unknown method 'lim'. Did you mean 'lime'\?"),
    "compute.precision": ("float", r"precision 'float' is unknown."),
    "compute.gradient_dtype": ("bfloat", r"gradient_dtype 'bfloat' is unknown. Did you mean 'bfloat16'\?"),
    "compute.chunk_tokens": (1.5, "chunk_tokens'? is 1.5"),
    "compute.checkpoint": ("perhaps", "checkpoint'? is 'perhaps'"),
}
"""A value that each setting cannot have, and what is said of it."""

UNKNOWN = {
    "feature": "features",
    "gradients.max_node": "max_nodes",
    "max_nodes": "gradients.max_nodes",
    "removal.opertor": "operator",
    "gradients.tolerance.relativ": "relative",
}
"""Names that do not exist, with the nearest that does."""


def nested(path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {name: nested(rest, value) if rest else value}


def in_python(path: str, value: Any, spec: Any = Settings) -> Any:
    """Settings(gradients=IntegratedGradients(max_nodes=value)), for any path."""
    name, _, rest = path.partition(".")
    inner = type(getattr(spec, name)) if rest else None
    return spec(**{name: in_python(rest, value, inner) if inner is not None else value})


def in_recipe(path: str, value: Any) -> Settings:
    text = yaml.safe_dump({"version": 2, "name": "r", "data": [{"suite": "needle"}], "explain": nested(path, value)})
    explain = check_recipe(yaml.safe_load(text), where="r.yaml").explain
    assert explain is not None
    return explain


@pytest.fixture
def command(run: Run, monkeypatch: pytest.MonkeyPatch, tiny_llama: LoadedModel) -> Any:
    """The command with some options: the Settings that it would explain with, or how it ended where it refused."""
    found: list[Settings] = []

    def explain(*_given: Any, settings: Settings, **_more: Any) -> None:
        found.append(settings)
        raise OptionError("far enough")

    def start(*options: str) -> Settings | Ended:
        found.clear()
        ended = run("explain", "--prompt", "Hello", *options)
        return found[0] if found else ended

    monkeypatch.setattr(llmxai, "explain", explain)
    monkeypatch.setattr(llmxai, "load", lambda *_what, **_how: tiny_llama)
    return start


def as_flag(path: str, value: Any) -> list[str]:
    """The option that sets it and nothing else; none where only --set does."""
    if path == "also":
        return [part for name in value for part in ("--also", name)]
    named = [option for option, settings in FLAGS.items() if settings == (path,)]
    flags = [f"--{option.replace('_', '-')}" for option in named]
    return [part for flag in flags for part in ([flag] if value is True else [flag, str(value)])]


def test_every_setting_has_another_and_a_wrong_value_here() -> None:
    assert OTHERS.keys() == WRONG.keys() == field_paths().keys()
    assert all(OTHERS[path] != default for path, default in field_paths().items())
    assert set(chain(*FLAGS.values())) <= field_paths().keys()


@pytest.mark.parametrize("path", OTHERS)
def test_every_setting_is_the_same_from_python_the_command_line_and_a_recipe(path: str, command: Any) -> None:
    value = OTHERS[path]
    settings = in_python(path, value)
    assert settings != Settings()
    assert command("--set", f"{path}={json.dumps(value, ensure_ascii=False)}") == settings
    if (flag := as_flag(path, value)) != []:
        assert command(*flag) == settings
    assert in_recipe(path, value) == settings
    assert settings_from(nested(path, value)) == settings
    assert settings_from(json.loads(json.dumps(settings.to_dict()))) == settings


def test_all_of_them_at_once(command: Any) -> None:
    document: dict[str, Any] = {}
    for path, value in OTHERS.items():
        put(document, f"{path}={json.dumps(value, ensure_ascii=False)}")
    settings = settings_from(document)
    paths = field_paths(settings)
    assert {path: list(paths[path]) if path == "also" else paths[path] for path in paths} == OTHERS
    flags = [part for path, value in OTHERS.items() for part in as_flag(path, value)]
    rest = [path for path in OTHERS if not as_flag(path, OTHERS[path])]
    sets = [part for path in rest for part in ("--set", f"{path}={json.dumps(OTHERS[path], ensure_ascii=False)}")]
    assert command(*flags, *sets) == settings


def test_what_both_integrals_have_is_set_for_both(command: Any) -> None:
    found = command("--tolerance", "0.3", "--max-nodes", "16", "--set", "deletion.max_nodes=32")
    assert found.gradients == IntegratedGradients(tolerance=Tolerance(relative=0.3), max_nodes=16)
    assert found.deletion == DeletionPath(tolerance=Tolerance(relative=0.3), max_nodes=32)
    defaults = field_paths()
    assert all(len({defaults[path] for path in paths}) == 1 for paths in FLAGS.values())  # the help names one


def test_no_removal_in_each_way(command: Any) -> None:
    for found in (command("--no-removal"), command("--set", "removal=null"), in_recipe("removal", None)):
        assert found == Settings(removal=None)
    assert settings_from(Settings(removal=None).to_dict()) == Settings(removal=None)
    ended = command("--no-removal", "--removal-units", "token")
    assert ended.err.splitlines() == [
        "llmxai: --no-removal removes nothing, so leave out the settings of removal: units.",
    ]
    for contradiction in (
        ("--set", "removal=null", "--removal-units", "token"),
        ("--set", "removal=null", "--set", "removal.units=token"),
        ("--set", "removal.units=token", "--set", "removal=null"),
    ):
        assert "--set removal=null removes nothing" in command(*contradiction).err


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Where an explanation says what became of a setting: a function of explanation.json."""
    return {
        "features": lambda d: d["computed"]["features"],
        "gradients.baseline": lambda d: d["computed"]["baseline"],
        "gradients.tolerance.relative": lambda d: d["computed"]["tolerance"]["relative"],
        "gradients.tolerance.absolute": lambda d: d["computed"]["tolerance"]["absolute"],
        "gradients.max_nodes": lambda d: d["computed"]["max_nodes"],
        "gradients.n_steps": lambda d: d["computed"]["n_steps"],
        "rollout.residual": lambda d: d["computed"]["rollout"]["residual"],
        "rollout.head_fusion": lambda d: d["computed"]["rollout"]["head_fusion"],
        "rollout.variant": lambda d: d["variant"]["method"],
        "removal.units": lambda d: d["ablations"]["kind"],
        "removal.operator": lambda d: d["ablations"]["operator"],
        "removal.subsets": lambda d: d["ablations"]["masks"],
        "removal.seed": lambda d: d["ablations"]["seed"],
        "removal.chunk_tokens": lambda d: d["ablations"]["chunk_tokens"],
        "also": lambda d: [name for name in d["scores"] if name in ("saliency", "recency")],
        "compute.gradient_dtype": lambda d: d["computed"]["gradient_dtype"],
        "compute.chunk_tokens": lambda d: d["computed"]["chunk_tokens"],
        "compute.checkpoint": lambda d: d["computed"]["checkpoint"],
    }


@pytest.mark.parametrize("path", OTHERS)
def test_the_record_stores_every_setting_and_gives_it_back(
    path: str, shown: dict[str, Any], tiny_llama: LoadedModel, tmp_path: Path
) -> None:
    settings = in_python(path, OTHERS[path])
    explanation = llmxai.explain(tiny_llama, "The capital of France", response=" Paris", settings=settings)
    assert explanation.settings == settings
    explanation.save(tmp_path / "out")
    document, _ = read_folder(tmp_path / "out")
    assert document["settings"] == settings.to_dict()
    assert settings_of(document) == settings
    if path in shown:
        assert shown[path](document) == OTHERS[path]


def test_the_neutral_token_of_removals_is_stored_where_it_is_used(tiny_llama: LoadedModel, tmp_path: Path) -> None:
    settings = Settings(removal=Removal(operator="baseline", baseline="eos", subsets=2))
    explanation = llmxai.explain(tiny_llama, "The capital of France", response=" Paris", settings=settings)
    explanation.save(tmp_path / "out")
    document, _ = read_folder(tmp_path / "out")
    assert document["ablations"]["baseline"] == "eos"
    assert settings_of(document) == settings


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_one_clear_paragraph_in_each_way(path: str, command: Any) -> None:
    value, words = WRONG[path]
    with pytest.raises(OptionError, match=words) as python:
        explain_module.explain("no such model", "Hello", settings=in_python(path, value))
    with pytest.raises(RecipeError, match=words) as recipe:
        in_recipe(path, value)
    for said in (python, recipe):
        assert "\n" not in str(said.value)
    assert "r.yaml: " in str(recipe.value)
    ways = [["--set", f"{path}={json.dumps(value)}"]]
    if path not in ("compute.chunk_tokens", "compute.checkpoint"):  # whose kinds Typer refuses in words of its own
        ways += [flag for flag in [as_flag(path, value)] if flag]
    for options in ways:
        ended = command(*options)
        assert ended.code == 2
        *before, paragraph = ended.err.splitlines()
        assert before in ([], ["llmxai: starting: importing PyTorch and transformers"])
        assert re.search(words, paragraph)


@pytest.mark.parametrize(("path", "near"), UNKNOWN.items())
def test_an_unknown_name_is_answered_with_the_nearest(path: str, near: str, command: Any) -> None:
    words = rf"{path.rpartition('.')[2]}'\. Did you mean '[\w.]*{near}'\?"
    with pytest.raises(OptionError, match=words):
        in_python(path, 1)
    with pytest.raises(OptionError, match=words):
        settings_from(nested(path, 1))
    with pytest.raises(RecipeError, match=words):
        in_recipe(path, 1)
    ended = command("--set", f"{path}=1")
    assert ended.code == 2
    assert re.search(words, ended.err)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Settings(also="lime"), "also is 'lime'; expected a list of names"),
        (lambda: Settings(gradients={"max_nodes": 8}), "gradients is {'max_nodes': 8}; expected IntegratedGradients"),
        (lambda: Settings(removal=False), "removal is False; expected Removal or none"),
        (lambda: IntegratedGradients(max_nodes="many"), "max_nodes is 'many'; expected a whole number"),
        (lambda: IntegratedGradients(max_nodes=True), "max_nodes is True; expected a whole number"),
        (lambda: Tolerance(relative=float("inf")), "tolerance: relative inf"),
        (lambda: Decoding(temprature=1.0), "Decoding: there is no 'temprature'. Did you mean 'temperature'"),
        (lambda: Decoding(seed=2**64), "seed is 18446744073709551616; expected at most 18446744073709551615"),
        (lambda: Decoding(seed=-(2**63) - 1), "seed is -9223372036854775809; expected at least -9223372036854775808"),
        (lambda: IntegratedGradients(baseline="token:\udcff"), r"baseline 'token:\udcff' is not UTF-8"),
        (lambda: Decoding(max_new_tokens=2.0), "max_new_tokens is 2.0; expected a whole number"),
    ],
)
def test_what_python_refuses_at_once(make: Any, says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(says)):
        make()


def test_a_list_of_names_becomes_a_tuple_without_doubles() -> None:
    assert Settings(also=["lime", "saliency", "lime"]).also == ("lime", "saliency")


def test_several_prompts_are_refused_before_the_model_is_loaded_too() -> None:
    with pytest.raises(OptionError, match="unknown method 'lim'"):
        llmxai.explain_many("no such model", ["Hello"], settings=Settings(also=("lim",)))
