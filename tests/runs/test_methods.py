"""Every method of the table goes through a recipe, and through Settings(also=...)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ended import Run
from settings import make_document, make_recipe
from tiny import make_classifier

from llmxai import AttentionRollout, Explanation, Settings, explain, load
from llmxai.evaluation import SUITES
from llmxai.explain import variant_names
from llmxai.methods import METHODS
from llmxai.models import LoadedModel
from llmxai.runs import Recipe, run_recipe
from llmxai.store import read_folder, to_json, to_maps

CONTROLS = ("random", "recency", "leave_one_out")
CORE = ("layer_integrated_gradients", "attention_rollout")


def lines(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "measures.parquet").to_pylist()


def methods_of(run: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines(run):
        found.setdefault(line["method"], []).append(line)
    return found


@pytest.fixture(scope="module")
def all_of_them(data: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of a tiny Llama, every method in the evaluation and in the explanation."""
    out = tmp_path_factory.mktemp("all") / "run"
    document = make_document(model_folder)
    document["data"][0]["limit"] = 2
    document["explain"]["also"] = list(METHODS)
    metrics = ["planted", "aopc", "soft", "curves", "top_k", "lds", "infidelity"]
    document["evaluate"] |= {"methods": [{"method": name} for name in METHODS], "metrics": metrics, "samples": 2}
    outcome = run_recipe(Recipe.model_validate(document), out, root=data)
    assert (outcome.ok, outcome.failed) == (2, 0)
    return out


def test_every_method_has_its_figures_once_and_deep_lift_its_refusal(all_of_them: Path) -> None:
    found = methods_of(all_of_them)
    assert found.keys() == METHODS.keys()
    errors = {line["method"]: line["error"] for line in lines(all_of_them) if line["error"]}
    assert list(errors) == ["deep_lift"]
    assert "for which Captum's DeepLIFT has no rule" in errors["deep_lift"]
    for name, own in found.items():
        told = [(line["id"], line["figure"]) for line in own]
        assert len(told) == len(set(told)), f"{name} is there twice"
        if name != "deep_lift":
            assert {id for id, _ in told} == {"cities-00000", "cities-00001"}
            assert {"mrr", "comprehensiveness", "top_1_drop"} <= {figure for _, figure in told}
            assert all(np.isfinite(line["value"]) for line in own)
    table = (all_of_them / "tables" / "summary.md").read_text(encoding="utf-8")
    assert all(f"\n| {name} |" in table for name in METHODS if name != "deep_lift")


def test_every_method_is_in_the_explanation_and_on_its_page(all_of_them: Path) -> None:
    folder = all_of_them / "records" / "cities-00000"
    document, maps = read_folder(folder)
    assert document["scores"].keys() == METHODS.keys()
    refused = {name for name, scores in document["scores"].items() if scores["refused"]}
    assert refused == {"deep_lift"}
    others = METHODS.keys() - refused - {*CORE, document["variant"]["method"]}
    n = len(document["tokens"])
    for name in others - {"leave_one_out"}:
        assert maps[name].shape == (len(document["targets"]), n)
        assert np.isfinite(maps[name]).all()
        assert all(target["sources"][name] for target in document["targets"])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert len(page) > 1000


@pytest.mark.parametrize("name", METHODS)
def test_every_method_as_the_only_other_one(name: str, tiny_llama: LoadedModel) -> None:
    found = explain(tiny_llama, "The capital of France", response=" Paris", settings=Settings(also=(name,)))
    assert isinstance(found, Explanation)
    scores = found.scores[name]
    assert (scores.refused is not None) == (name == "deep_lift")
    assert scores.values.shape == (len(found), len(found.generation.ids))
    assert to_json(found)["scores"][name]["signed"] == scores.signed
    assert to_maps(found)
    if name != "deep_lift":
        assert found[0].sources(method=name) != []


@pytest.mark.parametrize("name", variant_names())
def test_every_variant_in_the_place_of_the_variant(name: str, tiny_llama: LoadedModel) -> None:
    settings = Settings(rollout=AttentionRollout(variant=name))
    found = explain(tiny_llama, "The capital of France", response=" Paris", settings=settings)
    assert found.variant.method == name
    assert to_json(found)["variant"]["method"] == name


def test_every_method_on_the_linear_model_of_the_suites(tmp_path: Path) -> None:
    """Rollout has nothing to roll out there; DeepLIFT applies, and all others give figures."""
    document = {
        "version": 2,
        "name": "linear",
        "model": {"name": "closed_form", "dtype": None},
        "data": [{"suite": "closed_form", "limit": 1}],
        "explain": None,
        "evaluate": {"methods": [{"method": name} for name in METHODS], "masks": 8, "resamples": 10},
    }
    assert "closed_form" in SUITES
    assert run_recipe(Recipe.model_validate(document), tmp_path / "run").ok == 1
    errors = {line["method"] for line in lines(tmp_path / "run") if line["error"]}
    assert errors == {name for name, entry in METHODS.items() if "attentions" in entry.needs}
    assert methods_of(tmp_path / "run").keys() == METHODS.keys()


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_is_asked_for_is_measured_once(
    name: str, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    methods = [{"method": name}, {"method": name, "label": "mine"}, {"method": name, "options": other(name)}]
    own = " ".join([name, *map(str, other(name).values())])
    document = make_document(model_folder, explain=None)
    document["data"][0]["limit"] = 1
    document["evaluate"]["methods"] = methods
    assert run_recipe(Recipe.model_validate(document), tmp_path / "run", root=data).ok == 1
    found = methods_of(tmp_path / "run")
    assert found.keys() == {*CONTROLS, "mine", own}
    assert {len(own) for own in found.values()} == {len(found[name])}, "one line a figure, and none twice"
    entry = json.loads((tmp_path / "run" / "ledger" / "cities-00000.json").read_text())
    assert [each["name"] for each in entry["measured"]] == ["mine", own, *CONTROLS]


def other(name: str) -> dict[str, Any]:
    return {"random": {"seed": 3}, "recency": {"features": "all"}, "leave_one_out": {"units": "token"}}[name]


def test_an_option_reaches_the_method(data: Path, model_folder: Path, tmp_path: Path) -> None:
    """A path of one node does not converge within nothing; a tolerance as wide as the world always does."""
    wide = {"tolerance": {"relative": 1000.0, "absolute": 1000.0}, "max_nodes": 4}
    methods = [
        {"method": "layer_integrated_gradients", "label": "wide", "options": wide},
        {"method": "layer_integrated_gradients", "label": "one", "options": {"n_steps": 1}},
    ]
    recipe = make_recipe(model_folder, explain=None, evaluate={"methods": methods, "masks": 8, "resamples": 10})
    run_recipe(recipe, tmp_path / "run", root=data)
    found = methods_of(tmp_path / "run")
    assert all(line["converged"] for line in found["wide"])
    assert {line["nodes"] for line in found["one"]} == {1}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "bert"
    loaded = make_classifier("bert")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_is_evaluated_like_any_model(classifier: Path, tmp_path: Path, run: Run) -> None:
    """Its own class, a class that is given, and a class against another; with explanations."""
    rows = [{"text": "The answer was short.", "label": ""}, {"text": "You are a helpful person.", "label": "positive"}]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shared: dict[str, Any] = {"path": "texts.jsonl", "prompt": "{{ text }}"}
    names = ["layer_integrated_gradients", "saliency", "lime", "attention_rollout", "leave_one_out"]
    document = {
        "version": 2,
        "name": "classes",
        "model": {"name": str(classifier), "dtype": "float32"},
        "data": [
            {**shared, "name": "own", "sources": ["{{ text.split()[1] }}"]},
            {**shared, "name": "given", "response": "neutral"},
            {**shared, "name": "against", "response": "neutral", "foil": "negative", "limit": 1},
            {**shared, "name": "unknown", "response": "furious", "limit": 1},
        ],
        "explain": {"gradients": {"max_nodes": 32}, "also": ["saliency"]},
        "evaluate": {"methods": [{"method": name} for name in names], "masks": 8, "resamples": 10},
    }
    (tmp_path / "classes.yaml").write_text(json.dumps(document), encoding="utf-8")
    ended = run("run", tmp_path / "classes.yaml", "--out", "out")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "rows: 5 done, 1 failed")
    table = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()}
    assert "has no class 'furious'. Known: 'negative', 'neutral', 'positive'" in table["unknown-00000"]["error"]
    loaded = load(classifier)
    for id, row in table.items():
        if row["status"] == "ok":
            document, _ = read_folder(tmp_path / "out" / "records" / id)
            assert row["answer"] in ("negative", "neutral", "positive")
            assert row["n_targets"] == 1
            assert row["target_f"] == pytest.approx(document["targets"][0]["f_input"], abs=1e-4)
    assert {table[id]["answer"] for id in table if id.startswith("given")} == {"neutral"}
    own = explain(loaded, rows[0]["text"])
    assert table["own-00000"]["answer"] == own.answer
    assert table["own-00000"]["metric.saliency.mrr"] > 0
    found = methods_of(tmp_path / "out")
    assert found.keys() == {*names, *CONTROLS}
    assert not any(line["error"] for line in lines(tmp_path / "out"))
