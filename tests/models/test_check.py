"""`llmxai models check`: what it says beforehand is what then happens."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, HYBRIDS, answered, make_encoder_decoder, make_loaded, make_model, make_tokenizer

from llmxai import cli
from llmxai.errors import ModelLoadError, OptionError, UnsupportedModelError
from llmxai.methods import attention_rollout, layer_integrated_gradients
from llmxai.models import check as models_check
from llmxai.models import prefix_cache
from llmxai.models.check import Capability, ModelCheck, check_model
from llmxai.models.families import layers_without_softmax
from llmxai.models.forward import context_limit


def check(architecture: str, folder: Path) -> ModelCheck:
    """Of a folder without weights: none may be read."""
    make_model(architecture).config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return check_model(folder)


def named(found: ModelCheck) -> dict[str, Capability]:
    return {row.name: row for row in found.capabilities}


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *HYBRIDS])
def test_what_is_said_is_what_happens(architecture: str, tmp_path: Path) -> None:
    found, loaded = check(architecture, tmp_path), make_loaded(architecture)
    generation = answered(loaded)
    assert found.architecture == type(loaded.model).__name__
    assert found.parameters == loaded.model.num_parameters()
    rows = named(found)
    assert rows["integrated gradients"].works
    assert torch.isfinite(layer_integrated_gradients(loaded, generation, n_steps=2).values).all()
    embeds = torch.zeros(1, 2, loaded.model.get_input_embeddings().weight.shape[1])
    assert rows["cached prefix"].works == (prefix_cache(loaded.model, embeds, [5, 6]) is not None)
    at_positions = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
    assert ("positions only" in rows["integrated gradients"].note) == at_positions
    assert rows["attention rollout"].works == (architecture in ARCHITECTURES)
    if rows["attention rollout"].works:
        assert (attention_rollout(loaded, generation).values.sum(dim=1) <= 1 + 1e-6).all()
    else:
        with pytest.raises(UnsupportedModelError, match="so attention rollout is not defined for it"):
            attention_rollout(loaded, generation)


def test_the_reason_counts_the_layers_by_type(tmp_path: Path) -> None:
    note = named(check("qwen3_next", tmp_path))["attention rollout"].note
    assert (
        "2 of its 3 layers have no softmax attention or mix tokens by something else as well (2 linear_attention)"
        in note
    )
    assert layers_without_softmax(make_model("lfm2").config) == {"conv": 2}
    assert layers_without_softmax(make_model("gemma2").config) == {}


def test_windows_and_templates_are_told(tmp_path: Path) -> None:
    rows = named(check("gemma3_text", tmp_path))
    assert rows["attention rollout"].note == "all layers attend by softmax, 2 of them within a window"
    assert "chats through its template" in rows["prompt and roles"].note
    make_tokenizer(template=None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert "it has no chat template" in named(check_model(tmp_path))["prompt and roles"].note
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    assert not named(check_model(tmp_path))["prompt and roles"].works


def test_quantisation_shrinks_the_plan(tmp_path: Path) -> None:
    plain, small = check("llama", tmp_path), check_model(tmp_path, quantize="4bit")
    assert small.plan.weights < plain.plan.weights
    assert check_model(tmp_path, dtype="float16", quantize="4bit").plan.weights < small.plan.weights
    with pytest.raises(OptionError, match="quantize '2bit' is unknown"):
        check_model(tmp_path, quantize="2bit")
    with pytest.raises(OptionError, match="dtype 'int3' is unknown"):
        check_model(tmp_path, dtype="int3")


def test_a_model_of_16_bits_computes_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are in memory twice where they fit, as `full_precision` holds them; the rest is that of float32."""
    plain = check("llama", tmp_path)
    weights = plain.plan.weights
    with_copy = check_model(tmp_path, dtype="bfloat16")
    assert with_copy.plan.weights == weights // 2 + weights
    assert "GiB for the weights and their float32 copy and" in named(with_copy)["memory"].note
    assert with_copy.plan.working == plain.plan.working
    monkeypatch.setattr(models_check, "free_memory", lambda _device: weights // 2 + 2 * weights - 2)
    small = check_model(tmp_path, dtype="bfloat16")
    assert small.plan.weights == weights // 2
    assert "GiB for the weights and 0" in named(small)["memory"].note


@pytest.mark.parametrize(("tokens", "answer_tokens"), [(10, 10), (10, 64), (10, 0)])
def test_an_answer_longer_than_all_tokens_is_refused(tmp_path: Path, tokens: int, answer_tokens: int) -> None:
    with pytest.raises(OptionError, match=f"answer_tokens is {answer_tokens} and tokens {tokens}"):
        check_model(tmp_path, tokens=tokens, answer_tokens=answer_tokens)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check("qwen3_next", tmp_path)
    outputs = []
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["llmxai", "models", "check", str(tmp_path), "--tokens", "200", *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        outputs.append(capsys.readouterr().out)
    assert "Qwen3NextForCausalLM" in outputs[0]
    assert "attention rollout     no" in outputs[0]
    parsed = json.loads(outputs[1])
    assert [row["name"] for row in parsed["capabilities"] if not row["works"]] == ["cached prefix", "attention rollout"]


def test_a_text_longer_than_the_context_does_not_work(tmp_path: Path) -> None:
    check("llama", tmp_path)  # reads 256 tokens
    rows = [named(check_model(tmp_path, tokens=tokens, answer_tokens=8))["length"] for tokens in (256, 257)]
    assert [row.works for row in rows] == [True, False]
    assert rows[1].note == "257 of at most 256 tokens, which explain refuses"
    model = make_encoder_decoder("bart").model
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    limit = context_limit(model)
    assert limit is not None
    rows = [named(check_model(tmp_path, tokens=limit + n, answer_tokens=8))["length"] for n in (8, 9)]
    assert [row.works for row in rows] == [True, False]


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "banana"}, {"hidden_size": -32}, {"pad_token_id": 99999}, {"rope_parameters": {"rope_type": "x"}}],
)
def test_a_configuration_that_contradicts_itself_is_one_paragraph(changes: dict[str, Any], tmp_path: Path) -> None:
    check("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelLoadError, match="cannot read a model"):
        check_model(tmp_path)


@pytest.mark.parametrize(("file", "text"), [("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")])
def test_a_tokenizer_that_cannot_be_read_is_a_row(file: str, text: str, tmp_path: Path) -> None:
    check("llama", tmp_path)
    (tmp_path / file).write_text(text)
    row = named(check_model(tmp_path))["prompt and roles"]
    assert not row.works
    assert "its tokenizer cannot be read" in row.note
