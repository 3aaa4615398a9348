"""Nothing in a model folder, a recipe or a data set runs, escapes or goes on for ever: it ends as an error or a row."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from test_manifest import data, make_recipe, signed

from llmxai import explain, load
from llmxai.errors import ModelLoadError, OptionError, PromptError, RecipeError, UserError
from llmxai.evaluation import Row
from llmxai.models import LoadedModel
from llmxai.report.export import export
from llmxai.runs import read_recipe, run_recipe
from llmxai.runs.data import FailedRow, recipe_rows, source_rows
from llmxai.runs.recipe import Recipe, Source
from llmxai.runs.results import _csv
from llmxai.settings import IntegratedGradients, Settings, parse_yaml, put
from llmxai.text import TooMuchError, bounded, csv_cell

__all__ = ["data", "signed"]
HOW = Settings(gradients=IntegratedGradients(max_nodes=8), removal=None)


@pytest.fixture(autouse=True)
def _within_bounds() -> Any:
    """Every test here ends within a minute, and none of them makes this process large."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - start < 180
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KiB


# work with bounds


def test_what_is_done_within_bounds() -> None:
    assert bounded(lambda: {"a": [1, "ü\ud800", None]}) == {"a": [1, "ü\ud800", None]}
    with pytest.raises(ValueError, match="division") as raised:
        bounded(lambda: 1 // 0)
    assert not isinstance(raised.value, TooMuchError)


@pytest.mark.parametrize(
    "work",
    [
        lambda: sum(1 for _ in iter(int, 1)),
        lambda: len("x" * (64 << 30)),
        lambda: 10 ** (10**9),
        lambda: [bytes(2**20) for _ in range(10**6)],
        lambda: "x" * 2**28,
        lambda: time.sleep(1000),
    ],
    ids=["a loop", "a text", "a number", "a list", "a long answer", "sleep"],
)
def test_what_would_never_end(work: Callable[[], Any]) -> None:
    with pytest.raises(TooMuchError, match="takes more than"):
        bounded(work, seconds=1)


def test_a_child_that_dies_is_an_error() -> None:
    with pytest.raises(TooMuchError):
        bounded(lambda: os._exit(3), seconds=1)


# YAML

BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "merges": "a: &a {k0: 1, k1: 1}\n"
    + "".join(f"{b}: &{b}\n  <<: [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "itself": "a: &a [*a]\n",
    "deep lists": "[" * 5000 + "]" * 5000,
    "deep maps": "".join(f"{' ' * i}a:\n" for i in range(1000)),
    "long": "a: 1\n" * 200_000,
    "a date that is none": "a: 2020-99-99",
    "a number": "a: " + "9" * 10_000,
    "a tag": "a: !!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_becomes_more_than_it_is(name: str, tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        parse_yaml(BOMBS[name])
    (tmp_path / "bomb.yaml").write_text(BOMBS[name])
    with pytest.raises(RecipeError, match="is not YAML") as raised:
        read_recipe(tmp_path / "bomb.yaml")
    assert len(str(raised.value)) < 1000
    assert time.process_time() - start < 20
    with pytest.raises(OptionError, match="is not YAML"):
        put({}, f"a={BOMBS[name][:2000] if name == 'deep lists' else BOMBS[name]}")


def test_anchors_as_people_use_them() -> None:
    text = "base: &base {a: 1, b: [1, 2]}\none:\n  <<: *base\n  a: 2\ntwo: *base\nempty:\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None


# templates of recipes


LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLING = "{% set s = namespace(v='xxxxxxxx') %}{% for i in range(60) %}{% set s.v = s.v ~ s.v %}{% endfor %}{{ s.v }}"
TEMPLATES = {
    "loops": LOOP,
    "a constant number": "{{ 10 ** (10 ** 10) }}",
    "a constant text": "{{ 'x'|center(99999999999) }}",
    "a number of the row": "{{ n ** (n ** n) }}",
    "a text": "{{ 'x' * 10 ** 11 }}",
    "a width": "{{ 'x'.center(10 ** 11) }}",
    "a format": "{{ '%100000000000d' % 1 }}",
    "doubling": DOUBLING,
    "replacing": "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "lipsum": "{{ lipsum(n=10000000) }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_never_ends_is_one_failed_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmxai.text.bounded.__kwdefaults__", {"seconds": 1})
    (tmp_path / "rows.jsonl").write_text('{"n": 99}\n')
    for how in ({"prompt": "Hello " + TEMPLATES[name]}, {"prompt": "x", "response": TEMPLATES[name]}):
        if name == "a constant number":
            with pytest.raises(RecipeError, match="takes more than"):
                list(source_rows(Source(path="rows.jsonl", **how), root=tmp_path))
            continue
        (row,) = source_rows(Source(path="rows.jsonl", **how), root=tmp_path)
        assert isinstance(row, FailedRow), name
        assert len(row.error) < 700


def test_a_template_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"n": 99}\n')
    with pytest.raises(RecipeError, match="is not Jinja"):
        list(
            source_rows(Source(path="rows.jsonl", prompt="{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"), root=tmp_path)
        )


@pytest.mark.parametrize(
    ("template", "simple"),
    [
        ("The city of {{ name }} is", True),
        ("{{ ' ' ~ name if name else '' }}", True),
        ("{{ name|trim|upper }} {{ row.inner['x'] }}", True),
        ("{% if name is defined and name == 'x' %}a{% endif %}", True),
        ("{% for x in items %}{{ x }}{% endfor %}", False),
        ("{{ name.center(5) }}", False),
        ("{{ 'x' * 5 }}", False),
        ("{{ name|replace('a', 'b') }}", False),
    ],
)
def test_simple_templates_are_rendered_here_and_others_give_the_same(
    template: str, simple: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[int] = []
    monkeypatch.setattr("llmxai.runs.data.bounded", lambda work: children.append(1) or bounded(work))
    (tmp_path / "rows.jsonl").write_text('{"name": "x", "items": [1, 2], "row": {"inner": {"x": "y"}}}\n')
    (row,) = source_rows(Source(path="rows.jsonl", prompt="." + template), root=tmp_path)
    assert isinstance(row, Row), row
    assert bool(children) != simple


def test_no_template_reaches_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"name": "x"}\n')
    for template in ("{{ name.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include '/etc/hosts' %}"):
        (row,) = source_rows(Source(path="rows.jsonl", prompt=template), root=tmp_path)
        assert isinstance(row, FailedRow), template


# chat templates, which come with the model

CHAT = {
    "loops": LOOP,
    "a number": "{{ 10 ** (10 ** 10) }}",
    "a text": "{{ 'x' * 10 ** 11 }}",
    "the interpreter": "{{ messages.__class__.__mro__ }}",
    "not Jinja": "{% for",
}


@pytest.mark.parametrize("name", CHAT)
def test_a_chat_template_that_never_ends_is_one_error(
    name: str, tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmxai.text.bounded.__kwdefaults__", {"seconds": 1})
    monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", CHAT[name])
    with pytest.raises(PromptError, match="chat template") as raised:
        explain(tiny_llama, [{"role": "user", "content": "Hello"}], response="x", settings=HOW)
    assert "\n" not in str(raised.value)


def test_in_a_run_it_is_the_error_of_each_row(
    model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmxai.text.bounded.__kwdefaults__", {"seconds": 1})
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(LOOP)
    source = {"path": "cities.jsonl", "limit": 2}
    chat = {**source, "name": "chat", "messages": [{"role": "user", "content": "{{ name }}"}]}
    raw = {**source, "name": "raw", "prompt": "{{ name }}", "response": " Rome"}
    outcome = run_recipe(make_recipe(folder, data=[chat, raw], evaluate=None), tmp_path / "run", root=data)
    assert (outcome.ok, outcome.failed) == (2, 2)
    rows = pq.read_table(tmp_path / "run" / "rows.parquet").to_pylist()
    assert all("chat template" in row["error"] for row in rows[:2])


# names


@pytest.mark.parametrize(
    "name", ["../../escaped", "/tmp/escaped", "a/b", "..", "\\..\\x", "a\nb", "ü" * 300, "-", "a\0b"]
)
def test_a_label_cannot_leave_the_folder(name: str, model_folder: Path, data: Path, tmp_path: Path) -> None:
    source = {"path": "cities.jsonl", "prompt": "{{ name }}", "response": " Rome", "limit": 1, "name": name}
    recipe = make_recipe(model_folder, data=[source], evaluate=None)
    outside = set(tmp_path.rglob("*"))
    assert run_recipe(recipe, tmp_path / "deep" / "er" / "run", root=data).ok == 1
    made = {path.relative_to(tmp_path) for path in set(tmp_path.rglob("*")) - outside}
    assert all(path.parts[:3] == ("deep", "er", "run")[: len(path.parts)] for path in made)
    assert [path.name for path in (tmp_path / "deep/er/run/records").iterdir()] != []


@pytest.mark.parametrize("name", ["../../escaped", "needle/../../x"])
def test_nor_can_that_of_a_suite(name: str, tmp_path: Path) -> None:
    rows = list(source_rows(Source(suite="needle", name=name, limit=2), root=tmp_path))
    assert all("/" not in row.id and not row.id.startswith(".") for row in rows)
    assert {row.source for row in rows} == {name}


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "", "x\n", "x\n../y", "ü"])
def test_a_recipes_name_is_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Recipe.model_validate({"version": 2, "name": name, "data": [{"suite": "needle"}]})


def test_ids_from_data_cannot_leave_it_either(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"id": id}) + "\n" for id in ("../../x", "/etc/y", "a/../b"))
    )
    recipe = Recipe.model_validate(
        {"version": 2, "name": "r", "data": [{"path": "rows.jsonl", "prompt": "x", "id": "{{ id }}"}]}
    )
    assert [row.id for row in recipe_rows(recipe, root=tmp_path)] == ["x", "etc-y", "a-..-b"]


# data sets


def test_a_data_set_with_a_script_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for how in ({"hub": "evil"}, {"hub": str(tmp_path / "evil")}, {"saved": "evil"}, {"hub": "./evil"}):
        with pytest.raises(RecipeError):
            list(source_rows(Source(prompt="x", **how), root=tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_saved_data_set_reads_nothing_outside(tmp_path: Path) -> None:
    for name in ("set", "secret"):
        datasets.Dataset.from_list([{"text": name}]).save_to_disk(tmp_path / name)
    state = tmp_path / "set" / "state.json"
    told = json.loads(state.read_text())
    (secret,) = [path.name for path in (tmp_path / "secret").glob("*.arrow")]
    told["_data_files"] = [{"filename": f"../secret/{secret}"}]
    state.write_text(json.dumps(told))
    with pytest.raises(RecipeError, match="outside of its folder"):
        list(source_rows(Source(saved="set", prompt="{{ text }}"), root=tmp_path))


# models: configurations that no model has

ABSURD: dict[str, dict[str, Any]] = {
    "layers": {"num_hidden_layers": 10**9},
    "labels": {"num_labels": 10**10},
    "many labels": {"num_labels": 10**7},
    "width": {"hidden_size": 10**12},
    "vocabulary": {"vocab_size": 10**9},
    "positions": {"max_position_embeddings": 10**18},
    "experts": {"num_hidden_layers": 1999, "num_local_experts": 9999},
    "no heads": {"num_attention_heads": 0},
    "negative": {"hidden_size": -5},
    "a text": {"hidden_size": "large"},
    "infinity": {"rms_norm_eps": float("inf"), "hidden_size": float("nan")},
    "another type": {"model_type": ["x"]},
    "a kernel of somebody": {"attn_implementation": "somebody/kernel", "_attn_implementation": "somebody/kernel"},
    "a dtype": {"dtype": "load"},
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_configuration_is_one_paragraph(name: str, model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    told = json.loads((folder / "config.json").read_text()) | ABSURD[name]
    (folder / "config.json").write_text(json.dumps(told))
    start = time.process_time()
    with pytest.raises(UserError) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1500
    assert time.process_time() - start < 30


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", "{}", '{"a":' * 5000, "", "{" + '"a":1,' * 10 + "}"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_files_of_a_model_that_are_none(name: str, content: str, model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / name).write_text(content)
    try:
        load(folder)
    except UserError as error:
        said = str(error)
        assert "\n" not in said, said


def test_an_adapter_whose_pattern_never_ends(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr("llmxai.text.bounded.__kwdefaults__", {"seconds": 1})
    told = {"peft_type": "LORA", "r": 2, "target_modules": "(([a-z_.0-9]+)+)+!", "base_model_name_or_path": "x"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(ModelLoadError, match="takes more than"):
        load(model_folder, adapter=tmp_path)


# tables

FORMULAS = ("=1+1", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", '=HYPERLINK("http://x")')


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str) -> None:
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(-1.5) == -1.5
    assert csv_cell("a=1") == "a=1"
    ((first, second),) = csv.reader(io.StringIO(_csv([[text, -2]]), newline=""))
    assert (first, second) == (f"'{text}".replace("\r", "\n"), "-2")


def test_the_tables_of_a_run_and_those_that_are_exported(model_folder: Path, data: Path, tmp_path: Path) -> None:
    source = {
        "path": "cities.jsonl",
        "prompt": "={{ name }}",
        "response": "={{ city }}",
        "limit": 2,
        "name": "=cmd|'/c calc'!A0",
    }
    methods = [{"method": "saliency", "label": "@evil | <b>x</b>"}]
    recipe = make_recipe(
        model_folder, data=[source], evaluate={"methods": methods, "metrics": ["aopc"], "resamples": 20}
    )
    run_recipe(recipe, tmp_path / "run", root=data)
    tables = [tmp_path / "run" / "tables" / name for name in ("figures.csv", "cost.csv")]
    for rows in ("records", "tokens", "sources"):
        export(tmp_path / "run", tmp_path / f"{rows}.csv", table=rows)
        tables.append(tmp_path / f"{rows}.csv")
    for path in tables:
        cells = [cell for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) for cell in row]
        bad = [cell for cell in cells if cell[:1] in FIRST and not is_number(cell)]
        assert bad == [], path.name
        assert any(cell.startswith("'") for cell in cells), path.name
    summary = (tmp_path / "run" / "tables" / "summary.md").read_text()
    assert "<b>" not in summary
    widths = {line.replace("\\|", "").count("|") for line in summary.splitlines() if line.startswith("|")}
    assert len(widths) == 1


FIRST = ("=", "+", "-", "@", "\t", "\r")


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
