"""What quantisation changed: measured on the full-precision weights, kept with the explanation, shown on the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from ended import Ended
from tiny import answered, make_loaded, make_tokenizer, save_wide

from llmxai import Explanation, LoadedModel, compare_full, explain, load, save
from llmxai.errors import OptionError
from llmxai.evidence.verifier.check import verify
from llmxai.models.check import check_model
from llmxai.report import build_view, rebuild
from llmxai.report.visible import plain
from llmxai.settings import Compute, IntegratedGradients, Settings
from llmxai.store import read_folder, to_json
from llmxai.store.document import warnings_of

FEW = Settings(gradients=IntegratedGradients(max_nodes=16))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes", "ignore::FutureWarning:bitsandbytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture(scope="module")
def full(folder: Path) -> LoadedModel:
    return load(folder)


def explained(loaded: LoadedModel) -> Explanation:
    return explain(loaded, "The capital of France is", response=" Paris, Rome", settings=FEW)


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def compared(request: pytest.FixtureRequest, folder: Path, full: LoadedModel) -> Explanation:
    return compare_full(explained(load(folder, quantize=request.param)), full)


def naive_cosine(a: list[float], b: list[float]) -> float:
    dot = square_a = square_b = 0.0
    for x, y in zip(a, b, strict=True):
        dot, square_a, square_b = dot + x * y, square_a + x * x, square_b + y * y
    return float(dot / (square_a * square_b) ** 0.5)


def test_the_figures_are_those_of_two_explanations(compared: Explanation, full: LoadedModel) -> None:
    found, again = compared.full_precision, explained(full)
    assert found is not None
    assert found.replay.logprobs == pytest.approx(again.replay.logprobs, abs=1e-6)
    assert found.replay.ranks == again.replay.ranks
    assert found.statuses == tuple(check.status for check in again.checks)
    assert (found.model, found.dtype) == (full.name, "float32")
    assert found.digest == again.environment["model"]["digest"]
    for t in range(compared.generation.n_targets):
        own, other = (each.gradients.values[t].tolist() for each in (compared, again))
        assert found.cosines[t] == pytest.approx(naive_cosine(own, other), abs=1e-5)
        first, second = (max(range(len(row)), key=lambda i: abs(row[i])) for row in (own, other))
        assert found.same_source[t] == (first == second)
    assert min(c for c in found.cosines if c is not None) < 1 - 1e-7, "quantisation changes something"
    assert found.replay.logprobs != pytest.approx(compared.replay.logprobs, abs=1e-4)


def test_the_rest_of_the_explanation_stays(compared: Explanation, folder: Path) -> None:
    bits = str(compared.environment["model"]["quantization"]).split()[-1]
    plain_one = replace(explained(load(folder, quantize=bits)), full_precision=compared.full_precision)
    then, now = to_json(plain_one), to_json(compared)
    assert {**then, "created": ""} == {**now, "created": ""}


def test_nothing_differs_where_nothing_was_quantised(full: LoadedModel) -> None:
    told = explained(replace(full, quantization="bitsandbytes 4bit"))  # says so, and is not
    document = to_json(compare_full(told, full))["full_precision"]
    n = told.generation.n_targets
    assert (document["median_difference"], document["largest_difference"]) == (0, 0)
    assert document["median_cosine"] == pytest.approx(1, abs=1e-12)
    assert (document["same_source"], document["same_status"]) == (n, n)


def test_round_trip_rebuild_and_verify(compared: Explanation, tmp_path: Path) -> None:
    out = save(compared, tmp_path / "out")
    document, maps = read_folder(out)
    told = document["full_precision"]
    assert told == json.loads(json.dumps(to_json(compared)))["full_precision"]
    assert told["median_difference"] == pytest.approx(median(abs(t["difference"]) for t in told["targets"]))
    assert told["median_cosine"] == pytest.approx(median(t["cosine"] for t in told["targets"]))
    for own, other in zip(document["targets"], told["targets"], strict=True):
        assert other["difference"] == pytest.approx(own["replayed_logprob"] - other["logprob"])
    (sentence,) = [warning for warning in document["warnings"] if "quantised weights" in warning]
    assert f"have the same first source for {told['same_source']} of {len(told['targets'])} tokens" in sentence
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What quantisation changed" in page
    view = build_view(document, maps)
    assert view.precision is not None
    assert [plain(row.text) for row in view.precision.rows] == [plain(row.text) for row in view.rows]
    assert rebuild(out).page.read_text(encoding="utf-8").count("What quantisation changed") == page.count(
        "What quantisation changed"
    )
    assert verify(out).exit == 0


def test_it_is_said_where_nothing_was_compared(compared: Explanation, full: LoadedModel) -> None:
    without = to_json(replace(compared, full_precision=None))
    assert without["full_precision"] is None
    assert any("What quantisation changed was not measured." in warning for warning in without["warnings"])
    unquantised = to_json(explained(full))
    assert not any("quantis" in warning for warning in unquantised["warnings"])


def test_a_model_that_is_stored_in_fewer_bits_is_named_with_the_largest_difference(folder: Path) -> None:
    low = explain(load(folder, dtype="bfloat16"), "The capital of France is", max_new_tokens=3, settings=FEW)
    told = to_json(low)["computed"]["precision"]
    assert (told["stored"], told["computed"]) == ("bfloat16", "float32")
    largest = max(abs(a - b) for a, b in zip(low.generation.logprobs or (), low.replay.logprobs, strict=True))
    assert told["largest_difference"] == pytest.approx(largest)
    (sentence,) = [warning for warning in to_json(low)["warnings"] if "stored in" in warning]
    assert sentence == (
        "The model is stored in bfloat16 and was computed in float32, so that the values are accurate; its log-probs "
        f"differ from those recorded while generating by at most {largest:.2g} nats."
    )
    given = explained(load(folder, dtype="bfloat16"))
    assert any("no log-probs were recorded to compare with" in warning for warning in to_json(given)["warnings"])
    stored = replace(FEW, compute=Compute(precision="stored"))
    for one in (explain(load(folder), "The capital", max_new_tokens=2, settings=FEW), replace(low, computed={})):
        assert not any("stored in" in warning for warning in warnings_of(one))
    same = explain(load(folder, dtype="bfloat16"), "The capital", max_new_tokens=2, settings=stored)
    assert not any("stored in" in warning for warning in warnings_of(same))


def test_what_cannot_be_compared_is_refused(compared: Explanation, full: LoadedModel, folder: Path) -> None:
    with pytest.raises(OptionError, match="are not quantised, so there is no full precision to compare with"):
        compare_full(explained(full), full)
    with pytest.raises(OptionError, match=r"is quantised itself \(bitsandbytes 8bit\); load it without quantize"):
        compare_full(compared, load(folder, quantize="8bit"))
    with pytest.raises(OptionError, match="its architecture is GPT2LMHeadModel and LlamaForCausalLM was explained"):
        compare_full(compared, make_loaded("gpt2"))
    other = replace(full, tokenizer=make_tokenizer(bos="<s>", adds_bos=True))
    with pytest.raises(OptionError, match="its tokenizer digest is"):
        compare_full(compared, other)


@pytest.mark.parametrize(("bits", "others"), [("8bit", "4bit"), ("4bit", "8bit")])
def test_weights_that_are_stored_quantised_are_told(folder: Path, tmp_path: Path, bits: str, others: str) -> None:
    first = load(folder, quantize=bits)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.quantization == first.quantization == f"bitsandbytes {bits}"
    assert type(again.model.model.layers[0].mlp.up_proj) is type(first.model.model.layers[0].mlp.up_proj)
    assert load(tmp_path, quantize=bits).quantization == again.quantization
    with pytest.raises(OptionError, match=rf"already stored quantised \(bitsandbytes {bits}\); leave out --quantize"):
        load(tmp_path, quantize=others)
    assert check_model(tmp_path).plan.weights < check_model(folder).plan.weights
    generation = answered(again)
    settings = Settings(gradients=IntegratedGradients(max_nodes=8), removal=None)
    one, other = (explain(m, generation, settings=settings) for m in (first, again))
    assert one.replay.logprobs == pytest.approx(other.replay.logprobs, abs=1e-6)


def test_the_command(run: Callable[..., Ended], folder: Path, tmp_path: Path) -> None:
    arguments: list[Any] = ["explain", "--model", folder, "--prompt", "The capital", "--response", " Paris"]
    ended = run(*arguments, "--quantize", "4bit", "--compare-full", "--max-nodes", "8", "--out", tmp_path / "a")
    assert ended.code == 0, ended.err
    assert "full precision: The model ran with bitsandbytes 4bit" in ended.out
    document, _ = read_folder(tmp_path / "a")
    assert document["full_precision"]["model"] == str(folder)
    refused = run(*arguments, "--compare-full", "--out", tmp_path / "b")
    assert refused.code == 2
    assert "Add --quantize 4bit or 8bit." in " ".join(refused.err.split())
    assert not (tmp_path / "b" / "report.html").exists()
