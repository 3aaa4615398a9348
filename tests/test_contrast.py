"""An answer explained against a foil, from the numbers to the page and the record."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ended import Ended
from tiny import answered, certificate_of, make_classifier

from llmxai import explain, save
from llmxai.errors import PromptError
from llmxai.evidence import redact, verify
from llmxai.evidence.log import read_log
from llmxai.evidence.verifier.lines import Entry
from llmxai.explanation import Explanation
from llmxai.generation import with_foil
from llmxai.methods import (
    attention_rollout,
    gradient_weighted_rollout,
    layer_integrated_gradients,
    measure_effects,
)
from llmxai.models import LoadedModel
from llmxai.recompute import recompute
from llmxai.report import build_view, export, render_report
from llmxai.report.visible import plain
from llmxai.settings import IntegratedGradients, Removal, Settings
from llmxai.store import read_folder
from llmxai.types import Generation

PROMPT, ANSWER, FOIL = "The capital of France is", " Paris, Rome", " Paris, red"
T = 2
FEW_NODES = Settings(gradients=IntegratedGradients(max_nodes=16))


@pytest.fixture(scope="module")
def three(gpt64: LoadedModel) -> tuple[Generation, Generation, Generation]:
    """The answer, the answer with the foil's token in its place, and the answer against the foil."""
    own = answered(gpt64, prompt=PROMPT, response=ANSWER)
    both = with_foil(gpt64, own, foil=FOIL)
    assert both.foil is not None
    assert both.foil.t == T == own.n_targets - 1
    return own, replace(own, ids=(*own.ids[:-1], both.foil.id)), both


@pytest.fixture(scope="module")
def explanation(tiny_llama: LoadedModel) -> Explanation:
    return explain(tiny_llama, PROMPT, response=ANSWER, foil=FOIL, settings=FEW_NODES)


def only(run: Path) -> Entry:
    ((entry, _),) = read_log(run)
    return entry


def everything_in(run: Path) -> str:
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in run.rglob("*") if path.is_file())


def test_integrated_gradients_are_linear_in_f(
    gpt64: LoadedModel, three: tuple[Generation, Generation, Generation]
) -> None:
    """With the same nodes, the values of a contrast are those of the token minus those of the foil."""
    own, other, both = (layer_integrated_gradients(gpt64, each, n_steps=6) for each in three)
    assert (both.values[T] - (own.values[T] - other.values[T])).abs().max() < 1e-10
    for name in ("f_input", "f_baseline"):
        a, b, c = (float(getattr(certificate_of(each), name)[T]) for each in (own, other, both))
        assert c == pytest.approx(a - b, abs=1e-10)
    assert torch.equal(both.values[:T], own.values[:T])
    assert both.values[T].abs().max() > 1e-3
    assert both.settings["target"] == "logprob, contrast"


def test_what_removal_does_is_the_difference(
    gpt64: LoadedModel, three: tuple[Generation, Generation, Generation]
) -> None:
    own, other, both = (measure_effects(gpt64, each, removal=Removal(subsets=6)) for each in three)
    for name in ("f_full", "f_without", "f_masked"):
        a, b, c = (getattr(each, name)[T] for each in (own, other, both))
        assert torch.allclose(c, a - b, atol=1e-10)
    assert torch.equal(both.f_without[:T], own.f_without[:T])


def test_attention_knows_no_foil_and_its_gradient_does(
    gpt64: LoadedModel, three: tuple[Generation, Generation, Generation]
) -> None:
    own, _, both = three
    assert torch.equal(attention_rollout(gpt64, own).values, attention_rollout(gpt64, both).values)
    one, two = (gradient_weighted_rollout(gpt64, each) for each in (own, both))
    assert torch.allclose(one.values[:T], two.values[:T], atol=1e-12)
    assert (one.values[T] - two.values[T]).abs().max() > 1e-4
    assert two.settings["target"] == "logprob, contrast"


def test_the_explanation_holds_it(explanation: Explanation, tmp_path: Path) -> None:
    document, _ = read_folder(save(explanation, tmp_path / "out"))
    foil = explanation.generation.foil
    assert foil is not None
    assert [target["foil"] for target in document["targets"]] == [None, None, {"id": foil.id, "text": " red"}]
    assert document["generation"]["request"] == {"prompt": PROMPT, "response": ANSWER, "foil": FOIL}
    lead = document["targets"][T]
    assert lead["f_input"] > lead["replayed_logprob"], "the foil's log-prob is taken off, which is below 0"
    assert lead["replayed_logprob"] == pytest.approx(explanation.replay.logprobs[T])


def test_it_is_computed_again_with_its_foil(tiny_llama: LoadedModel, explanation: Explanation, tmp_path: Path) -> None:
    save(explanation, tmp_path / "out")
    found = recompute(tmp_path / "out", only(tmp_path / "out").id, model=tiny_llama)
    assert found.outcome == "within"
    plainly = explain(tiny_llama, PROMPT, response=ANSWER, settings=FEW_NODES)
    assert not torch.allclose(plainly.gradients.values[T], explanation.gradients.values[T], atol=1e-3)


def test_the_text_of_the_foil_is_kept_apart_and_goes_with_the_others(explanation: Explanation, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "out")
    assert "foil" in only(run).body["digests"]
    assert FOIL not in json.dumps(only(run).body)
    assert FOIL in everything_in(run)
    redact(run, only(run).id, reason="asked to")
    assert FOIL not in everything_in(run)
    assert verify(run).findings == []


def test_the_page_says_so(explanation: Explanation, tmp_path: Path) -> None:
    view = build_view(*read_folder(save(explanation, tmp_path / "out")))
    assert view.verdict.contrast is not None
    assert (plain(view.verdict.contrast.token), plain(view.verdict.contrast.foil)) == ("Rome", "red")
    for level in view.levels.values():
        assert [target.contrast is not None for target in level.targets] == [False, False, True]
    page = render_report(view)
    assert page.count("is explained as a contrast with") == 2  # card, script
    assert "and not <bdi>red</bdi>" in page
    document, maps = read_folder(tmp_path / "out")
    for target in document["targets"]:
        del target["foil"]  # as it was written before there were foils
    older = render_report(build_view(document, maps))
    assert older.count("is explained as a contrast with") == 1
    assert "Contrast, foil" not in older


def test_tables_name_the_foil(explanation: Explanation, tmp_path: Path) -> None:
    save(explanation, tmp_path / "out")
    for table in ("tokens", "sources"):
        export(tmp_path / "out", tmp_path / f"{table}.csv", table=table)
        rows = list(csv.DictReader((tmp_path / f"{table}.csv").read_text(encoding="utf-8-sig").splitlines()))
        assert {row["foil"] for row in rows if row["number"] == "3"} == {" red"}
        assert {row["foil"] for row in rows if row["number"] != "3"} == {""}


def test_one_class_against_another() -> None:
    loaded = make_classifier("bert")
    text = "The capital of France is Paris, and the answer was short."
    nodes = Settings(gradients=IntegratedGradients(max_nodes=64))
    found = explain(loaded, text, response="positive", foil="neutral", settings=nodes)
    ids = torch.tensor([found.generation.ids[:-1]])
    logits = loaded.model(ids).logits[0].double()
    assert float(certificate_of(found.gradients).f_input[0]) == pytest.approx(float(logits[2] - logits[1]), abs=1e-5)
    assert found.generation.foil is not None


def test_on_the_command_line(run: Callable[..., Ended], model_folder: Path, tmp_path: Path) -> None:
    asked = ("explain", "--model", model_folder, "--max-nodes", "8", "--prompt", PROMPT, "--response", ANSWER)
    ended = run(*asked, "--foil", FOIL, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "contrast: token 2 is ' Rome' and not ' red'" in ended.out
    assert FOIL not in json.dumps(only(tmp_path / "out").body)
    refused = run(*asked, "--foil", ANSWER, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "does not differ from the answer" in refused.err
    record = only(tmp_path / "other").body
    assert record["kind"] == "refusal"
    assert set(record["digests"]) >= {"input", "foil", "error"}


def test_a_foil_that_says_nothing_is_refused_before_the_numbers(tiny_llama: LoadedModel) -> None:
    with pytest.raises(PromptError, match="The foil is empty"):
        explain(tiny_llama, PROMPT, response=ANSWER, foil=" ", settings=FEW_NODES)
