"""Encoder-decoders: one path over both embeddings against Captum, rollout across both stacks against whole maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from tiny import ENCODER_DECODERS, certificate_of, make_encoder_decoder, make_tokenizer, null_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from typer.testing import CliRunner

from llmxai import AttentionRollout, Compute, Decoding, Settings, explain, load, save
from llmxai.cli import app
from llmxai.evidence.log import read_log
from llmxai.generation import encode_prompt, force_response, generate, replay
from llmxai.methods import attention_rollout, gradient_weighted_rollout, layer_integrated_gradients
from llmxai.methods.features import baseline_token
from llmxai.models import LoadedModel, embed, wrap
from llmxai.models.check import check_model
from llmxai.recompute import recompute
from llmxai.report import build_view
from llmxai.store import read_folder
from llmxai.types import Generation, Role

SOURCE, ANSWER = "The capital of France is Paris.", "Rome, the answer 1 2"


def loaded_and_answer(architecture: str) -> tuple[LoadedModel, Generation]:
    loaded = make_encoder_decoder(architecture)
    return loaded, force_response(loaded, encode_prompt(loaded, SOURCE), response=ANSWER)


def two_sided(generation: Generation) -> tuple[Tensor, Tensor]:
    cut = generation.source_len
    return torch.tensor([generation.ids[:cut]]), torch.tensor([generation.ids[cut:]])


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_what_was_generated_is_replayed(architecture: str) -> None:
    loaded = make_encoder_decoder(architecture)
    generation = generate(loaded, encode_prompt(loaded, SOURCE), decoding=Decoding(max_new_tokens=4))
    source, decoder = two_sided(generation)
    assert source.tolist() == [loaded.tokenizer(SOURCE)["input_ids"]]
    assert decoder[0, 0] == loaded.model.config.decoder_start_token_id
    logits = loaded.model(input_ids=source, decoder_input_ids=decoder).logits[0].double()
    want = logits.log_softmax(-1)[:-1].gather(1, decoder[0, 1:, None])[:, 0]
    assert generation.logprobs == pytest.approx(want.tolist(), abs=1e-4)
    assert replay(loaded, generation).logprobs == pytest.approx(want.tolist(), abs=1e-4)
    assert replay(loaded, generation).ranks == (1, 1, 1, 1)
    roles = (Role.USER,) * (generation.source_len - 1) + (Role.TEMPLATE,) * 2 + (Role.GENERATED,) * 4
    assert generation.roles == roles
    assert "".join(generation.texts[: generation.source_len - 1]) == SOURCE


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_gradients_are_captums_over_both_embeddings(architecture: str) -> None:
    """The same nodes over source and earlier answer at once: 1e-4 of the largest value in float32."""
    loaded, generation = loaded_and_answer(architecture)
    mine = layer_integrated_gradients(loaded, generation, n_steps=12)
    cut, space = generation.source_len, baseline_token(loaded, "space")
    held = [role in (Role.TEMPLATE, Role.BOS) for role in generation.roles]
    start = [token if keep else space for token, keep in zip(generation.ids, held, strict=True)]
    x, b = (embed(loaded.model, ids)[None] for ids in (generation.ids, start))
    for t, token in enumerate(generation.generated_ids):

        def forward(source: Tensor, decoder: Tensor, t: int = t, token: int = token) -> Tensor:
            logits = loaded.model(inputs_embeds=source, decoder_inputs_embeds=decoder, use_cache=False).logits
            return logits[:, generation.prompt_len + t - 1 - cut].log_softmax(-1)[:, token]

        parts = IntegratedGradients(forward).attribute(
            (x[:, :cut], x[:, cut:]), (b[:, :cut], b[:, cut:]), n_steps=12, method="gausslegendre"
        )
        want = torch.cat(parts, dim=1).sum(-1)[0].double()
        assert (mine.values[t] - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_source_and_answer_together_are_complete(architecture: str, checkpoint: bool) -> None:
    loaded, generation = loaded_and_answer(architecture)
    got = layer_integrated_gradients(loaded, generation, max_nodes=512, compute=Compute(checkpoint=checkpoint))
    certificate = certificate_of(got)
    assert all(certificate.converged)
    assert torch.allclose(got.values.sum(dim=1), certificate.f_input - certificate.f_baseline + certificate.gap)
    cut = generation.source_len
    assert got.values[:, :cut].any(dim=1).all()  # every target has something of the source ...
    assert got.values[1:, cut:].any(dim=1).all()  # ... and all but the first of the answer before it
    assert not got.values[0, cut:].any()
    source, decoder = two_sided(generation)
    logits = loaded.model(input_ids=source, decoder_input_ids=decoder).logits[0].double()
    want = logits.log_softmax(-1)[:-1].gather(1, decoder[0, 1:, None])[:, 0]
    assert torch.allclose(certificate.f_input, want, atol=1e-4)


def eager(loaded: LoadedModel, generation: Generation) -> Any:
    model = type(loaded.model)._from_config(loaded.model.config, attn_implementation="eager")
    model.load_state_dict(loaded.model.state_dict())
    source, decoder = two_sided(generation)
    x = model.eval().get_input_embeddings()(source).detach().requires_grad_()
    return model(inputs_embeds=x, decoder_input_ids=decoder, output_attentions=True, use_cache=False)


def blocks(output: Any, source: int, n: int) -> Iterator[tuple[Tensor, slice, slice]]:
    """[1, head, query, key] of every attention in the order of running, with its place on the joined axis."""
    given_, own = slice(0, source), slice(source, n)
    yield from ((layer, given_, given_) for layer in output.encoder_attentions)
    for mine, cross in zip(output.decoder_attentions, output.cross_attentions, strict=True):
        yield mine, own, own
        yield cross, own, given_


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_rollout_is_the_product_of_whole_matrices(architecture: str) -> None:
    """On the joined axis, residual and attention of each block, identity elsewhere: within 1e-5."""
    loaded, generation = loaded_and_answer(architecture)
    n = len(generation.ids)
    product = torch.eye(n, dtype=torch.float64)
    null = torch.eye(n, dtype=torch.float64)
    for weights, queries, keys in blocks(eager(loaded, generation), generation.source_len, n):
        for whole, name in ((weights[0].double().mean(dim=0).detach(), "product"), (None, "null")):
            a = whole if whole is not None else (weights[0, 0].detach() > 0).double()
            layer = torch.eye(n, dtype=torch.float64)
            layer[queries, queries] *= 0.7
            layer[queries, keys] += 0.3 * a / a.sum(dim=1, keepdim=True)
            if name == "product":
                product = layer @ product
            else:
                null = layer @ null
    positions = [generation.prompt_len + t - 1 for t in range(generation.n_targets)]
    got = attention_rollout(loaded, generation, residual=0.7)
    assert (got.values - product[positions]).abs().max() < 1e-5
    assert (null_of(got) - null[positions]).abs().max() < 1e-5
    assert got.curve is not None
    assert got.curve.sink_mass.shape == (generation.n_targets, 5)  # two layers of the decoder, three of the encoder
    assert torch.allclose(got.curve.sink_mass[:, -1], got.values[:, 0])


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_gradient_weighted_rollout_is_the_whole_recursion(architecture: str) -> None:
    """R <- R + mean over heads of max(0, dF/dA x A) R on the joined axis: within 1e-4."""
    loaded, generation = loaded_and_answer(architecture)
    got = gradient_weighted_rollout(loaded, generation)
    n, cut = len(generation.ids), generation.source_len
    output = eager(loaded, generation)
    logprobs = output.logits[0].log_softmax(-1)
    for t, token in enumerate(generation.generated_ids):
        position = generation.prompt_len + t - 1
        parts = list(blocks(output, cut, n))
        gradients = torch.autograd.grad(logprobs[position - cut, token], [w for w, *_ in parts], retain_graph=True)
        whole = torch.eye(n, dtype=torch.float64)
        for (weights, queries, keys), gradient in zip(parts, gradients, strict=True):
            layer = torch.zeros(n, n, dtype=torch.float64)
            layer[queries, keys] = (weights * gradient)[0].clamp(min=0).mean(dim=0).detach().double()
            whole = whole + layer @ whole
        row = whole[position] - torch.eye(n)[position]
        assert (got.values[t] - row / row.sum()).abs().max() < 1e-4


def test_leave_one_out_is_the_answer_to_the_shorter_source() -> None:
    loaded = make_encoder_decoder("t5")
    result = explain(loaded, SOURCE, response=ANSWER)
    assert result.effects is not None
    source, decoder = two_sided(result.generation)
    for unit, (first, end) in list(enumerate(result.effects.units))[:3]:
        rest = torch.cat([source[:, :first], source[:, end:]], dim=1)
        logits = loaded.model(input_ids=rest, decoder_input_ids=decoder).logits[0].double()
        want = logits.log_softmax(-1)[:-1].gather(1, decoder[0, 1:, None])[:, 0]
        assert torch.allclose(result.effects.f_without[:, unit], want, atol=1e-4)
    assert max(end for _, end in result.effects.units) < result.generation.source_len


def test_a_variant_for_one_stack_is_refused_and_the_rest_delivered() -> None:
    loaded = make_encoder_decoder("t5")
    asked = Settings(rollout=AttentionRollout(variant="value_norm_rollout"), removal=None)
    result = explain(loaded, SOURCE, response=ANSWER, settings=asked)
    assert result.rollout.refused is None
    assert "three kinds of attention" in str(result.variant.refused)


def test_a_forced_first_token_is_held_and_not_explained() -> None:
    loaded = make_encoder_decoder("bart")
    loaded.model.generation_config.forced_bos_token_id = 4
    generation = generate(loaded, encode_prompt(loaded, SOURCE), decoding=Decoding(max_new_tokens=2))
    start = loaded.model.config.decoder_start_token_id
    assert generation.ids[generation.source_len : generation.prompt_len] == (start, 4)
    assert generation.n_targets == 2
    assert replay(loaded, generation).ranks == (1, 1)


def test_a_model_that_scales_on_the_way_is_read_from_ids() -> None:
    """Marian multiplies the embeddings of ids, and of the decoder only those that it is given."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    config = AutoConfig.for_model(
        "marian",
        vocab_size=398,
        pad_token_id=1,
        decoder_start_token_id=1,
        **sizes,
        decoder_attention_heads=2,
        scale_embedding=True,
        init_std=0.5,
    )
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    loaded = wrap(model, make_tokenizer(), name="tiny marian")
    generation = force_response(loaded, encode_prompt(loaded, SOURCE), response=" Paris")
    cut = generation.source_len
    source, target = torch.tensor([generation.ids[:cut]]), torch.tensor([generation.ids[cut:]])
    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=target).logits[0].log_softmax(dim=-1)
    places = range(generation.prompt_len - 1 - cut, len(generation.ids) - 1 - cut)
    want = [float(logits[i, token]) for i, token in zip(places, generation.generated_ids, strict=True)]
    assert replay(loaded, generation).logprobs == pytest.approx(want, abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded, place = make_encoder_decoder("t5"), tmp_path_factory.mktemp("t5")
    loaded.model.save_pretrained(place)
    loaded.tokenizer.save_pretrained(place)
    return place


def test_from_a_folder_to_the_report_and_back(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    out = save(explain(loaded, SOURCE, decoding=Decoding(max_new_tokens=3)), tmp_path / "out")
    document, maps = read_folder(out)
    assert document["generation"]["source_len"] == document["generation"]["prompt_len"] - 1
    assert any("is an encoder-decoder" in warning for warning in document["warnings"])
    level = build_view(document, maps).levels["tokens"]
    answer = [i for i, unit in enumerate(level.units) if unit.role == Role.GENERATED]
    last = level.targets[-1]
    assert {unit for unit, _ in last.gradients} & set(answer[:-1])  # bars of earlier answer tokens ...
    assert {unit for unit, _ in last.gradients} & set(range(document["generation"]["source_len"]))  # ... and the source
    ((entry, _),) = read_log(out)
    assert recompute(out, entry.id, model=loaded).exit == 0


def test_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    arguments = ["explain", "--model", str(folder), "--prompt", SOURCE, "--out", str(tmp_path / "out"), "--json"]
    ended = CliRunner().invoke(app, [*arguments, "--response", ANSWER])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["generation"]["answer"] == ANSWER


def test_what_works_is_said_before(folder: Path) -> None:
    notes = {each.name: each for each in check_model(folder).capabilities}
    assert "source and earlier answer" in notes["integrated gradients"].note
    assert "cross-attention" in notes["attention rollout"].note
