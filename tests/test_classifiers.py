"""Encoders with a classifier: one target, gradients against Captum, rollout against the product of eager maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from tiny import CLASSES, CLASSIFIERS, certificate_of, make_classifier, null_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification
from typer.testing import CliRunner

from llmxai import explain, load, save
from llmxai.cli import app
from llmxai.errors import PromptError, UnsupportedModelError
from llmxai.evidence.log import read_log
from llmxai.explain import variant_names
from llmxai.generation import answer, encode_prompt, force_response
from llmxai.methods import METHODS, attention_rollout, gradient_weighted_rollout, layer_integrated_gradients
from llmxai.methods.features import baseline_token
from llmxai.models import LoadedModel, wrap
from llmxai.models.check import check_model
from llmxai.recompute import recompute
from llmxai.store import read_folder
from llmxai.types import Generation, Role

TEXT = "The capital of France is Paris, and the answer was short."


def loaded_and_answer(architecture: str) -> tuple[LoadedModel, Generation]:
    loaded = make_classifier(architecture)
    return loaded, answer(loaded, TEXT)


def eager(loaded: LoadedModel) -> Any:
    model = type(loaded.model)._from_config(loaded.model.config, attn_implementation="eager")
    model.load_state_dict(loaded.model.state_dict())
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_the_answer_is_the_most_likely_class(architecture: str) -> None:
    loaded, generation = loaded_and_answer(architecture)
    logits = loaded.model(torch.tensor([generation.ids[:-1]])).logits[0]
    best = int(logits.argmax())
    assert generation.generated_ids == (best,)
    assert generation.texts[-1] == CLASSES[best]
    assert generation.classes == tuple(CLASSES.values())
    assert generation.logprobs == pytest.approx((float(logits.double().log_softmax(-1)[best]),), abs=1e-6)
    assert set(generation.roles[1:-2]) == {Role.USER}
    assert (generation.roles[0], generation.roles[-2]) == (Role.TEMPLATE, Role.TEMPLATE)
    read = tuple(range(generation.prompt_len)) if architecture == "modernbert" else (0,)
    assert generation.read_at == read  # `[CLS]`; the mean reads all


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_gradients_are_captums(architecture: str) -> None:
    """The same nodes, so the same numbers: 1e-4 of the largest value in float32."""
    loaded, generation = loaded_and_answer(architecture)
    mine = layer_integrated_gradients(loaded, generation, n_steps=16)
    ids = torch.tensor([generation.ids[:-1]])
    start = ids.clone()
    start[:, 1:-1] = loaded.tokenizer.mask_token_id  # the tokenizer has no space; [CLS] and [SEP] are held
    theirs = LayerIntegratedGradients(
        lambda x: loaded.model(x).logits.log_softmax(-1), loaded.model.get_input_embeddings()
    ).attribute(ids, start, target=generation.ids[-1], n_steps=16, method="gausslegendre")
    want = theirs.sum(-1)[0].double()
    assert (mine.values[0, :-1] - want).abs().max() < 1e-4 * want.abs().max()
    assert mine.values[0, -1] == 0
    assert mine.features[0].tolist() == [role == Role.USER for role in generation.roles]


def naive_rollout(loaded: LoadedModel, generation: Generation) -> Tensor:
    with torch.no_grad():
        maps = eager(loaded)(torch.tensor([generation.ids[:-1]]), output_attentions=True).attentions
    product = torch.eye(generation.prompt_len, dtype=torch.float64)
    for layer in maps:
        product = (torch.eye(len(product)) + layer[0].double().mean(dim=0)) @ product / 2
    return product[list(generation.read_at)].mean(dim=0)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_rollout_is_the_eager_product(architecture: str) -> None:
    """From what the head reads, through attention both ways: within 1e-5."""
    loaded, generation = loaded_and_answer(architecture)
    rollout = attention_rollout(loaded, generation)
    want = naive_rollout(loaded, generation)
    assert (rollout.values[0, :-1] - want).abs().max() < 1e-5
    assert rollout.values[0, -1] == 0
    assert float(null_of(rollout).sum()) == pytest.approx(1)
    if architecture != "modernbert":  # no windows: uniform attention sees every token alike
        assert null_of(rollout)[0, 1:-1].std() < 1e-9


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_gradient_weighted_rollout_is_the_whole_recursion(architecture: str) -> None:
    """R <- R + mean over heads of max(0, dF/dA x A) R over whole eager maps, first layer first: within 1e-4."""
    loaded, generation = loaded_and_answer(architecture)
    model = eager(loaded)
    embeds = model.get_input_embeddings()(torch.tensor([generation.ids[:-1]])).requires_grad_()
    output = model(inputs_embeds=embeds, output_attentions=True)
    target = output.logits.log_softmax(-1)[0, generation.ids[-1]]
    gradients = torch.autograd.grad(target, output.attentions)
    whole = torch.eye(generation.prompt_len, dtype=torch.float64)
    for layer, gradient in zip(output.attentions, gradients, strict=True):
        whole = whole + (layer * gradient)[0].clamp(min=0).mean(dim=0).detach().double() @ whole
    row = (whole - torch.eye(len(whole)))[list(generation.read_at)].mean(dim=0)
    got = gradient_weighted_rollout(loaded, generation).values[0, :-1]
    assert (got - row / row.sum()).abs().max() < 1e-4


@pytest.mark.parametrize("name", variant_names())
def test_every_variant_runs(name: str) -> None:
    """DistilBERT's attention goes straight into its output projection, as the weighing by values needs; BERT's not."""
    loaded, generation = loaded_and_answer("distilbert")
    rows = METHODS[name].function(loaded, generation).values
    assert rows.shape == (1, len(generation.ids))
    assert float(rows.sum()) == pytest.approx(1, abs=1e-6)


def test_leave_one_out_is_classifying_the_shorter_text() -> None:
    loaded = make_classifier("bert")
    result = explain(loaded, TEXT)
    assert result.effects is not None
    for unit, (first, end) in list(enumerate(result.effects.units))[:3]:
        rest = result.generation.ids[:first] + result.generation.ids[end:-1]
        want = loaded.model(torch.tensor([rest])).logits[0].log_softmax(-1)[result.generation.ids[-1]]
        assert float(result.effects.f_without[0, unit]) == pytest.approx(float(want), abs=1e-5)


def test_another_class_by_name_and_by_number() -> None:
    loaded = make_classifier("bert")
    tokens = encode_prompt(loaded, TEXT)
    by_name, by_number = (force_response(loaded, tokens, response=label) for label in ("neutral", "1"))
    assert by_name.ids == by_number.ids
    assert (by_name.stop, by_name.logprobs) == ("given", None)
    with pytest.raises(PromptError, match=r"no class 'good'. Known: 'negative', 'neutral', 'positive', or a number"):
        force_response(loaded, tokens, response="good")


def test_the_baseline_is_the_mask_where_there_is_no_space() -> None:
    loaded = make_classifier("bert")
    assert baseline_token(loaded, "space") == baseline_token(loaded, "mask") == loaded.tokenizer.mask_token_id


@pytest.mark.parametrize("changes", [{"problem_type": "multi_label_classification"}, {"id2label": {0: "score"}}])
def test_outputs_that_are_no_classes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="not mutually exclusive classes"):
        make_classifier("bert", **changes)


def test_layers_that_cannot_be_told_apart_leave_the_gradients() -> None:
    """ALBERT has one layer, used again and again."""
    loaded = make_classifier("bert")
    config = AutoConfig.for_model(
        "albert", vocab_size=300, hidden_size=16, embedding_size=16, num_attention_heads=2, num_hidden_layers=3
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    result = explain(wrap(model, loaded.tokenizer, name="tiny albert"), TEXT)
    assert result.generation.read_at == ()
    assert all(certificate_of(result.gradients).converged)
    assert "cannot be identified" in str(result.rollout.refused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded, place = make_classifier("bert"), tmp_path_factory.mktemp("bert")
    loaded.model.save_pretrained(place)
    loaded.tokenizer.save_pretrained(place)
    return place


def test_from_a_folder_to_the_report_and_back(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    out = save(explain(loaded, TEXT), tmp_path / "out")
    document, maps = read_folder(out)
    (target,) = document["targets"]
    assert document["generation"]["classes"] == list(CLASSES.values())
    assert target["text"] in CLASSES.values()
    assert maps["integrated_gradients"].shape == (1, len(document["tokens"]))
    assert any("is a classifier" in warning for warning in document["warnings"])
    ((entry, _),) = read_log(out)
    assert recompute(out, entry.id, model=loaded).exit == 0


def test_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    arguments = ["explain", "--model", str(folder), "--prompt", TEXT, "--out", str(tmp_path / "out"), "--json"]
    ended = CliRunner().invoke(app, [*arguments, "--response", "neutral"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["generation"]["answer"] == "neutral"


def test_what_works_is_said_before(folder: Path) -> None:
    notes = {each.name: each for each in check_model(folder).capabilities}
    assert "one of its 3 classes" in notes["integrated gradients"].note
    assert not notes["cached prefix"].works
    assert notes["attention rollout"].works
