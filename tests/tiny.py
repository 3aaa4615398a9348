"""Tiny random-weight models and a small byte-level tokenizer made in memory, so that most tests need no network."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llmxai.generation import PromptTokens, encode_prompt, given
from llmxai.models import LoadedModel, wrap
from llmxai.types import Generation

SENTENCES = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "A person asked which city is the capital; the answer was short.",
    "You are a helpful assistant. Hello there, how are you today?",
    "user system assistant tool model text name content red blue green 1 2 3",
)
SPECIALS = (
    *("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "<bos>", "<start_of_turn>"),
    *("<end_of_turn>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOW = 6

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "layer_types": ALTERNATING,
    },
    "mistral": {**GROUPED, "head_dim": 8, "sliding_window": WINDOW},
    "phi3": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "initializer_range": 0.3},
    "gpt_neox": SIZES,
    "opt": {
        **{k: v for k, v in SIZES.items() if k != "intermediate_size"},
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "init_std": 0.3,
    },
    "falcon": {k: v for k, v in SIZES.items() if k != "intermediate_size"},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.3},
    "mixtral": {**GROUPED, **EXPERTS, "sliding_window": None},
    "stablelm": GROUPED,
    "olmo2": GROUPED,
    "gpt_oss": {**GROUPED, **EXPERTS, "head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING},
}

HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        **{**SIZES, "num_key_value_heads": 2, "head_dim": 8},
        **{"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_experts": 0},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
        **{"linear_value_head_dim": 8, "mlp_only_layers": [0, 1, 2]},
    },
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention", "conv"]},
    "falcon_h1": {
        **{**GROUPED, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
        **{"mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8},
    },
}
"""Families with layers that mix tokens otherwise than by softmax attention alone."""

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "initializer_range": 0.3},
    "roberta": SIZES,
    "modernbert": {
        **SIZES,
        "local_attention": 2 * WINDOW,
        "global_attn_every_n_layers": 3,
        "classifier_pooling": "mean",
    },
}
"""Encoders with a classifier on top; ModernBERT with windows, and with a head that reads the mean."""
CLASSES = {0: "negative", 1: "neutral", 2: "positive"}


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIALS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def make_tokenizer(
    *, template: str | None = CHATML, bos: str | None = None, eos: str = "<|im_end|>", adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `adds_bos` it puts `bos` in front of every raw text, as Llama's does."""
    backend = Tokenizer.from_str(_trained())
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(str(bos), backend.token_to_id(str(bos)))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token="<pad>")
    tokenizer.chat_template = template
    return tokenizer


def make_model(architecture: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Random weights from a fixed seed; the caller's random state is left alone."""
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        architecture,
        **{
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **(ARCHITECTURES | HYBRIDS)[architecture],
            **changes,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval()


def make_loaded(architecture: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> LoadedModel:
    """`make_model` with the ChatML tokenizer."""
    return wrap(make_model(architecture, dtype=dtype, **changes), make_tokenizer(), name=f"tiny {architecture}")


def make_piece_tokenizer() -> PreTrainedTokenizerFast:
    """A word-piece tokenizer as BERT's: `[CLS] text [SEP]`, a mask token, and no token for a space."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    letters = list(string.ascii_letters + string.digits + string.punctuation)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, initial_alphabet=letters, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def make_classifier(architecture: str = "bert", **changes: Any) -> LoadedModel:
    """An encoder with a head for three classes and BERT's kind of tokenizer."""
    tokenizer = make_piece_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    own = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": None, "id2label": CLASSES, **ids}
    config = AutoConfig.for_model(architecture, **{**own, **CLASSIFIERS[architecture], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    return wrap(model.eval().requires_grad_(False), tokenizer, name=f"tiny {architecture}")


def prompt_tokens(loaded: LoadedModel, text: str = "The capital of France") -> PromptTokens:
    return encode_prompt(loaded, text)


def answered(
    loaded: LoadedModel, prompt: str = "The capital of France is", response: str = " Paris, Rome"
) -> Generation:
    """A given answer: exact ids without generating."""
    return given(loaded, encode_prompt(loaded, prompt), response=response)
