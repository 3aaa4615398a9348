"""Models that load though an Auto class does not name them, and refusals that say what a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import SENTENCES, answered, make_classifier, make_loaded, make_piece_tokenizer, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from llmxai import IntegratedGradients, Settings, explain
from llmxai.errors import ModelLoadError, OptionError, UnsupportedModelError
from llmxai.generation import replay
from llmxai.methods import attention_rollout, gradient_weighted_rollout
from llmxai.methods.features import baseline_embedding, baseline_token
from llmxai.models import load, wrap

TEXT: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3},
}
PICTURES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FEW = Settings(gradients=IntegratedGradients(n_steps=2), removal=None)


def llava(vocabulary: int) -> Any:
    text = transformers.LlamaConfig(vocab_size=vocabulary, pad_token_id=4, eos_token_id=1, bos_token_id=None, **TEXT)
    eyes = transformers.CLIPVisionConfig(**PICTURES, image_size=28, patch_size=14)
    return transformers.LlavaConfig(text_config=text, vision_config=eyes, image_token_index=5)


def qwen2_vl(vocabulary: int) -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return transformers.Qwen2VLConfig(
        text_config={"vocab_size": vocabulary, "rope_parameters": rope, "pad_token_id": 4, "eos_token_id": 1, **TEXT},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "patch_size": 14,
            "mlp_ratio": 2,
        },
        **{"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8},
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "model_class"),
    [(llava, transformers.LlavaForConditionalGeneration), (qwen2_vl, transformers.Qwen2VLForConditionalGeneration)],
    ids=["llava", "qwen2_vl"],
)
def test_a_model_that_also_sees_loads_and_explains_text(config: Any, model_class: Any, tmp_path: Path) -> None:
    """Rollout reads the layers of the text, though those of the pictures are as many."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config(len(tokenizer))).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.model) is model_class
    result = explain(loaded, "The capital of France is", max_new_tokens=3, settings=FEW)
    ids, n = torch.tensor([result.generation.ids]), result.generation.prompt_len
    with torch.no_grad():
        rows = torch.log_softmax(loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0], dim=-1)
    want = [float(rows[n + t - 1, token]) for t, token in enumerate(result.generation.generated_ids)]
    assert result.replay.logprobs == pytest.approx(want, abs=1e-4)
    assert result.rollout.refused is None


WHISPER = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "num_mel_bins": 8},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 20},
    **{"max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.filterwarnings("ignore")
def test_whisper_reads_sound(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = transformers.WhisperConfig(vocab_size=len(tokenizer), decoder_start_token_id=1, **WHISPER)
    model = transformers.WhisperForConditionalGeneration(config)
    with pytest.raises(UnsupportedModelError, match="reads input_features, not token ids"):
        wrap(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="turns speech into text: it reads sound"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_bart_as_a_classifier_says_so(tmp_path: Path) -> None:
    tokenizer = make_piece_tokenizer()
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0}
    config = AutoConfig.for_model("bart", vocab_size=len(tokenizer), num_labels=3, **sizes, **heads)
    transformers.BartForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="is a classifier with an encoder and a decoder"):
        load(tmp_path)


# tokenizers without a space


def dna_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + i for i, letter in enumerate("ACGT")}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_of_four_letters(tmp_path: Path) -> None:
    """It loads, its default baseline is the mean embedding, and what a refusal suggests works."""
    tokenizer = dna_tokenizer()
    config = AutoConfig.for_model("llama", **{**TEXT, "vocab_size": 7})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert baseline_token(loaded, "space") is None
    got = baseline_embedding(loaded, "space", seq=3)
    assert torch.allclose(got.float(), loaded.model.get_input_embeddings().weight.mean(dim=0), atol=1e-6)
    assert explain(loaded, "ACGTAC", response="GT", settings=FEW).generation.texts[-2:] == ("G", "T")
    with pytest.raises(OptionError, match=r"has no pad token\. Use baseline space, zero or mean\."):
        explain(loaded, "ACGTAC", response="GT", settings=Settings(gradients=IntegratedGradients(baseline="pad")))
    for name in ("space", "zero", "mean"):
        settings = Settings(gradients=IntegratedGradients(baseline=name, n_steps=2), removal=None)
        assert explain(loaded, "ACGTAC", response="GT", settings=settings).gradients.refused is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("baseline", ["space", "zero"])
def test_a_tokenizer_that_drops_spaces_has_one_in_its_vocabulary(baseline: str) -> None:
    """T5's kind; with removals, whose baseline is not used, so it is not checked."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(SENTENCES * 5, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    assert tokenizer(" ", add_special_tokens=False)["input_ids"] == []
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    ids = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", vocab_size=len(tokenizer), **sizes, **ids))
    loaded = wrap(model.eval(), tokenizer, name="t5")
    assert baseline_token(loaded, "space") == tokenizer.convert_tokens_to_ids("\u2581")
    settings = Settings(gradients=IntegratedGradients(baseline=baseline, n_steps=2))
    result = explain(loaded, "The capital of France is Paris", response="Rome", settings=settings)
    assert result.effects is not None


# where more than attention mixes tokens


@pytest.mark.filterwarnings("ignore")
def test_no_rollout_through_convbert() -> None:
    tokenizer = make_piece_tokenizer()
    sizes = {**TEXT, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3, "num_labels": 3, "pad_token_id": 0}
    config = AutoConfig.for_model("convbert", vocab_size=len(tokenizer), **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    loaded = wrap(model.eval(), tokenizer, name="convbert")
    result = explain(loaded, "The capital of France is Paris", settings=FEW)
    for scores in (result.rollout, result.scores["gradient_weighted_rollout"]):
        assert scores.refused is not None
        assert "tokens reach each other not only by attention but by Conv1d" in scores.refused


class Shifted(nn.Module):
    """A block that also adds what the token before it had."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.inner(x)) + 0.1 * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


def test_no_rollout_where_a_block_reads_the_token_before() -> None:
    """Nothing in a module's name or type shows it: without attention, another first token changes the others."""
    loaded = make_loaded("llama")
    assert attention_rollout(loaded, answered(loaded)).refused is None
    loaded.model.model.layers[1].mlp = Shifted(loaded.model.model.layers[1].mlp)
    for method in (attention_rollout, gradient_weighted_rollout):
        with pytest.raises(UnsupportedModelError, match="not only by attention but by something else in its layers"):
            method(loaded, answered(loaded))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layers", [(1, 2), (3, 2), (2, 2)])
def test_barts_decoder_alone_has_its_own_number_of_layers(layers: tuple[int, int]) -> None:
    tokenizer = make_tokenizer(template=None)
    sizes = {"d_model": 32, "decoder_ffn_dim": 48, "decoder_attention_heads": 4, "max_position_embeddings": 64}
    counts = dict(zip(("encoder_layers", "decoder_layers"), layers, strict=True))
    alone = {"is_decoder": True, "is_encoder_decoder": False, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model("bart", vocab_size=len(tokenizer), **sizes, **counts, **alone)
    loaded = wrap(AutoModelForCausalLM.from_config(config).eval(), tokenizer, name="b")
    result = explain(loaded, "The capital of France is", response=" Paris", settings=FEW)
    assert result.rollout.refused is None
    assert result.rollout.settings["layers"] == 2


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_without_padding_in_a_batch() -> None:
    """Several nodes at once; its configuration is as before."""
    tokenizer = make_tokenizer()
    sizes = {**TEXT, "vocab_size": len(tokenizer), "num_labels": 3, "pad_token_id": None, "bos_token_id": None}
    config = transformers.LlamaConfig(**sizes)
    loaded = wrap(transformers.LlamaForSequenceClassification(config).eval(), tokenizer, name="lc")
    result = explain(loaded, "The capital of France is Paris", settings=Settings(gradients=IntegratedGradients()))
    assert result.replay.logprobs == pytest.approx(result.generation.logprobs, abs=1e-5)
    assert loaded.model.config.pad_token_id is None
    assert replay(loaded, result.generation).logprobs == result.replay.logprobs


def test_remote_code_is_one_paragraph_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    make_loaded().model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told |= {"model_type": "mynet", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
    path.write_text(json.dumps(told), encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    with pytest.raises(ModelLoadError, match=r"comes with Python code of its own.*--trust-remote-code"):
        load(tmp_path)


def test_the_classifiers_control() -> None:
    """Of BERT, rollout works as before."""
    loaded = make_classifier("bert")
    assert attention_rollout(loaded, answered(loaded, response="positive")).refused is None
