"""Every causal, classifier and encoder-decoder class of transformers, tiny and with all weights random, against its own
log-probs from ids: `make matrix-all` prints the table and writes docs/matrix.md.

Sizes are shrunk by the names of a configuration's fields, so a new class needs no line here. Each runs in a process of
its own. Two sequences are compared: plain text, and one with padding ids in the prompt and at its end.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import make_tokenizer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from llmxai import IntegratedGradients, Removal, Settings, explain
from llmxai.errors import PromptError, UserError
from llmxai.generation import encode_ids, force_response, replay
from llmxai.models import LoadedModel, wrap
from llmxai.models.families import AUTO_CLASSES, ModelKind, kind_of
from llmxai.settings import DeletionPath

TOLERANCE = 1e-4
"""Largest difference (nats) between a log-prob from ids in transformers and ours; relative above 10 nats."""
SECONDS = 90
"""For one class; then it counts as one that could not be built or run here."""
SCALE = 0.2
"""Standard deviation of every weight; the gains of norms lie that far around 1."""
POSITIONS = 64
WINDOW = 6

HEADS, HEAD, LAYERS = 4, 8, 4
VOCABULARY = "vocabulary"
KINDS_OF_LAYERS = r".*layer_types|layers_block_type|attn_layers|attention_layers"
NO_SIZE = ("token_id", "token_index")
SIZES: tuple[tuple[str, int | str], ...] = (
    (
        r"((encoder|decoder|src|tgt|semantic)_)?vocab_size(_per_layer_input)?|(unpadded|padded)_vocab_size|n_words",
        VOCABULARY,
    ),
    (
        r"((num|n)|swa_num)_(key_value|kv|global_key_value|swa_key_value|head)_?(heads|kv)|num_query_groups",
        2,
    ),
    (r"(num_)?((hidden|encoder|decoder|transformer)_)?layers|n_layers?|depth|num_(encoder|decoder)?_?blocks", LAYERS),
    (
        r"(num_)?((encoder|decoder)_)?(attention_|attn_)?heads?|n_heads?|(encoder|decoder|swa)_num_attention_heads",
        HEADS,
    ),
    (r"num_(encoder|decoder|swa)_attention_heads", HEADS),
    (r"((global|swa|index|qk_rope|qk_nope|v|swa_v|attention)_)?head_(dim|size)|d_kv|kv_channels", HEAD),
    (r"((encoder|decoder)_)?ffn_(dim|size)|intermediate_size|d_ff|d_inner|n_inner|hidden_dim|dim_feedforward", 48),
    (r".*(moe|shared|expert|mlp).*(intermediate_size|intermediate_dim|ffn_dim|hidden_size)|ffn_hidden_size|dim_ff", 16),
    (r"hidden_size|d_model|n_embd|embed_dim|dim|emb_dim|word_embed_proj_dim|embedding_(size|dim)|dim_model", 32),
    (r"(cross_)?attention_hidden_size|lru_width|projection_dim|hidden_size_per_layer_input", 32),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_experts_per_layer", 4),
    (r"num_experts_per_(tok|token)|moe_(topk|k|top_k)|num_selected_experts|top_k_experts|router_topk", 2),
    (r"n_group|topk_group|num_expert_group|(n|num)_shared_experts|first_k_dense_replace|num_zero_experts", 1),
    (r"(q|kv|o)_lora_rank|index_n_heads|laurel_rank|o_groups|(linear_)?(key|value)_head_dim", 8),
    (r"linear_(num_)?(key|value)_(head_dim|heads)|linear_num_(key|value)_heads", 4),
    (
        r"(max_)?((encoder|decoder|target|source)_)?(max_)?position(_embedding)?s|n_positions|n_ctx|max_seq_len|model_max_length",
        POSITIONS,
    ),
    (r"sliding_window|attention_window|local_attention|window_size|attention_chunk_size", WINDOW),
)
"""Fields of configurations by name, and their tiny values."""


@dataclass(frozen=True)
class Row:
    """What came of one class."""

    kind: str
    model_type: str
    name: str
    outcome: str
    """`same`, `refused`, `wrong`, `traceback`, or `not built`."""
    difference: float | None = None
    """Largest, nats, over both sequences."""
    alone: float | None = None
    """The same for transformers' own pass from embeddings without ids; None if it takes none."""
    rollout: str = ""
    """Why attention rollout is refused."""
    why: str = ""
    seconds: float = 0.0


# building


def classes() -> Iterator[tuple[ModelKind, type[PreTrainedConfig], type[PreTrainedModel]]]:
    """Every pair of configuration and model class behind the three Auto classes."""
    for kind, auto in AUTO_CLASSES.items():
        for config, found in auto._model_mapping.items():
            for each in found if isinstance(found, tuple) else (found,):
                yield kind, config, each


def shrunk(fields: Mapping[str, Any], *, vocabulary: int) -> dict[str, Any]:
    """The fields of a configuration that have a tiny value, nested configurations included."""
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and "model_type" in value:
            own = {"model_type": value["model_type"], **OWN.get(value["model_type"], {})}
            small[name] = {**shrunk(value, vocabulary=vocabulary), **own}
        elif isinstance(value, list | tuple) and re.fullmatch(KINDS_OF_LAYERS, name):
            small[name] = some_of_each(value)
        elif isinstance(value, int) and not isinstance(value, bool) and not name.endswith(NO_SIZE):
            found = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
            if found is not None:
                small[name] = vocabulary if found == VOCABULARY else min(found, value) if found == WINDOW else found
    heads, grouped = fields.get("num_attention_heads"), fields.get("num_key_value_heads", 0)
    if grouped is None or grouped == heads:
        small["num_key_value_heads"] = HEADS
    if "head_dim" in fields:
        small["head_dim"] = HEAD
    return small


def some_of_each(kinds: Sequence[str]) -> list[str]:
    """One layer of every kind, and the first kind as often as needed."""
    each = list(dict.fromkeys(kinds))[:LAYERS]
    return [each[0]] * (LAYERS - len(each)) + each


def build(
    kind: ModelKind,
    config_class: type[PreTrainedConfig],
    model_class: type[PreTrainedModel],
    made: PreTrainedTokenizerFast,
) -> PreTrainedModel:
    """A model of the class with every weight random."""
    fields = config_class().to_dict()
    own = {**shrunk(fields, vocabulary=len(made)), **OWN.get(config_class.model_type, {})}
    own = {name: len(made) if value == VOCABULARY else value for name, value in own.items()}
    ids = {
        f"{name}_token_id": getattr(made, f"{name}_token_id") for name in ("pad", "eos", "bos", "mask", "cls", "sep")
    }
    own |= {**ids, "num_labels": 3} if kind is ModelKind.CLASSIFIER else ids
    own["decoder_start_token_id"] = made.eos_token_id
    if kind is ModelKind.CAUSAL:
        own |= {name: value for name, value in (("is_decoder", True), ("is_encoder_decoder", False)) if name in fields}
    config = config_class(**own)
    for part in (config, config.get_text_config()):
        for name, value in ids.items():
            setattr(part, name, value)
    torch.manual_seed(0)
    model = AUTO_CLASSES[kind].from_config(config)
    if type(model) is not model_class:  # of the several classes of this configuration
        model = model_class._from_config(config)
    KINDS[type(model)] = kind_of(model)  # some that hear and write have one stack
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                gain = parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight")
                parameter.copy_(torch.randn_like(parameter) * SCALE + float(gain))
    return model.eval()


KINDS: dict[type, ModelKind] = {}
"""Of the classes that were built."""

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "bailing_hybrid": {"linear_head_dim": 8, "linear_num_heads": 4, "num_expert_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": VOCABULARY, "token_dropout": True},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "visual_embed": False},
    "codegen": {"rotary_dim": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {
        **{"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "num_kv_shared_layers": 0},
        **{"hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2},
        "intermediate_size": [48] * 4,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "global_head_dim": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**MAMBA, "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "mistral4": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "reformer": {
        **{"hidden_size": 32, "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 8], "feed_forward_size": 48},
        **{"attn_layers": ["local", "lsh", "local", "lsh"], "is_decoder": True, "num_buckets": 4},
    },
    "roc_bert": {
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "qwen4_exp_text": {
        **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8},
        **{"indexer_compress_ratio": 2, "hc_lowrank": 8},
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        **{"layers_block_type": ["linear_attention", "hybrid"] * 2, "attn_layer_period": 2, "attn_layer_offset": 1},
        **{"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 4},
    },
    "zamba2": {
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "hybrid_layer_ids": [3],
        "adapter_rank": 4,
        "mamba_d_state": 8,
        "chunk_size": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""By model type: fields whose values depend on each other."""


# comparing

PROMPT, RESPONSE = "The capital of France is Paris.", " A person is Rome"
FEW = Settings(
    gradients=IntegratedGradients(n_steps=2),
    deletion=DeletionPath(n_steps=2),
    removal=Removal(units="sentence", subsets=1),
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with every special token that a class may ask for; its texts end with `</s>`."""
    made = make_tokenizer(bos="<s>", eos="</s>", template=None)
    made.add_special_tokens({"mask_token": "[INST]", "cls_token": "<bos>", "sep_token": "[/INST]"})
    return made


def sequences(kind: ModelKind, made: PreTrainedTokenizerFast) -> list[list[int]]:
    """The prompt as ids, then the same with padding in the middle and at the end."""
    plain = list(made(PROMPT)["input_ids"]) + ([made.eos_token_id] if kind is not ModelKind.CAUSAL else [])
    pad = made.pad_token_id
    return [plain, [*plain[:3], pad, *plain[3:-1], made.mask_token_id, plain[-1], pad]]


def from_ids(
    model: PreTrainedModel, prompt: list[int], answer: list[int], start: list[int], *, alone: bool = False
) -> list[float]:
    """Log-probs (nats) of the answer's ids by transformers' own forward; `alone`: from embeddings without ids."""
    kind = KINDS[type(model)]
    ids = torch.tensor([prompt if kind is not ModelKind.CAUSAL else [*prompt, *answer]])
    given: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
    given |= {"inputs_embeds": model.get_input_embeddings()(ids)} if alone else {"input_ids": ids}
    if kind is ModelKind.ENCODER_DECODER:
        given["decoder_input_ids"] = torch.tensor([[*start, *answer]])
    given["use_cache"] = False  # with a cache, FSMT's decoder has no causal mask
    known = inspect.signature(model.forward).parameters
    given = {name: value for name, value in given.items() if name in known}
    with torch.no_grad():
        logits = model(**given).logits[0].double()
    if kind is ModelKind.CLASSIFIER:
        return [float(torch.log_softmax(logits, dim=-1)[answer[0]])]
    before = len(start if kind is ModelKind.ENCODER_DECODER else prompt)
    return [float(torch.log_softmax(logits[before + t - 1], dim=-1)[token]) for t, token in enumerate(answer)]


def examine(kind: ModelKind, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]) -> Row:
    """Build, compare on both sequences, explain both, and let it answer by itself."""
    began, made = time.time(), tokenizer()
    known = {"kind": str(kind), "model_type": config_class.model_type, "name": model_class.__name__}

    def row(outcome: str, **more: Any) -> Row:
        return Row(**known, outcome=outcome, seconds=time.time() - began, **more)

    try:
        model = build(kind, config_class, model_class, made)
        kind = KINDS[type(model)]
        answer = [1] if kind is ModelKind.CLASSIFIER else list(made(RESPONSE)["input_ids"])
        start = [made.eos_token_id]
        first, second = sequences(kind, made)
        wants = [from_ids(model, first, answer, start), from_ids(model, second, answer, start)]
    except Exception as error:  # a class that cannot be built from its own configuration, or does not run from ids
        return row("not built", why=f"{type(error).__name__}: {in_one_line(error)}")
    worst, alone = 0.0, None
    try:
        loaded = wrap(model, made, name=model_class.__name__)
        require_edge(loaded, made)
        for prompt, want in zip((first, second), wants, strict=True):
            found = replay(loaded, given_answer(loaded, prompt, answer)).logprobs
            worst = max(worst, *(abs(a - b) / max(1.0, abs(a) / 10) for a, b in zip(want, found, strict=True)))
            with suppress(Exception):  # it takes no embeddings
                apart = from_ids(model, prompt, answer, start, alone=True)
                alone = max(alone or 0.0, *(abs(a - b) for a, b in zip(want, apart, strict=True)))
        if worst > TOLERANCE:
            return row("wrong", difference=worst, alone=alone)
        rollout = explain(loaded, PROMPT, max_new_tokens=2, settings=FEW).rollout.refused or ""
    except UserError as error:
        return row("refused", difference=worst or None, alone=alone, why=str(error))
    except Exception:
        return row("traceback", difference=worst, why=traceback.format_exc())
    return row("same", difference=worst, alone=alone, rollout=rollout)


def given_answer(loaded: LoadedModel, prompt: list[int], answer: list[int]) -> Any:
    """The exact ids as prompt and answer, whatever a tokenizer would make of their text."""
    tokens = encode_ids(loaded, prompt)
    found = force_response(loaded, tokens, response=str(answer[0]) if loaded.kind is ModelKind.CLASSIFIER else RESPONSE)
    assert list(found.generated_ids) == answer
    return found


def require_edge(loaded: LoadedModel, made: PreTrainedTokenizerFast) -> None:
    """As many tokens as the model takes run in transformers, and one more is refused."""
    limit = loaded.context_length
    if limit is None or limit > 2 * POSITIONS or loaded.kind is ModelKind.ENCODER_DECODER:
        return
    row = torch.full((1, limit), made("a")["input_ids"][0])
    with torch.no_grad():
        loaded.model(input_ids=row)
    try:
        encode_ids(loaded, [1] * (limit + 1))
    except PromptError:
        return
    raise AssertionError(f"{limit + 1} tokens were taken")


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def alone_in_a_process(case: tuple[ModelKind, type[PreTrainedConfig], type[PreTrainedModel]]) -> Row:
    """`examine` in a process of its own: one that runs out of time or is killed is a row as well."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.send(examine(*case))

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            return ours.recv()
        why = f"no result within {SECONDS} seconds"
    except EOFError:
        why = "its process ended without a result"
    finally:
        process.kill()
        process.join()
    return Row(str(case[0]), case[1].model_type, case[2].__name__, "not built", why=why)


def main() -> int:
    """Print the table; 1 if a number is wrong or there was a traceback."""
    parser = argparse.ArgumentParser()
    parser.add_argument("only", nargs="*", help="model types")
    parser.add_argument("--write", type=Path, help="a page with the results")
    chosen = parser.parse_args()
    asked = chosen.only
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for case in classes():
        if asked and case[1].model_type not in asked:
            continue
        row = alone_in_a_process(case)
        rows.append(row)
        print(line(row), flush=True)
        if row.outcome == "traceback":
            print(row.why, flush=True)
    if chosen.write:
        chosen.write.write_text(page(rows), encoding="utf-8")
    counts = Counter(row.outcome for row in rows)
    print(f"{len(rows)} classes: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    return int(bool(counts["wrong"] or counts["traceback"]))


OUTCOMES = ("same", "refused", "wrong", "traceback", "not built")


def page(rows: Sequence[Row]) -> str:
    """docs/matrix.md."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    counted = Counter((row.kind, row.outcome) for row in rows)
    lines = [
        "# Every class of transformers",
        "",
        f"`make matrix-all` wrote this with transformers {transformers.__version__}. Every class behind",
        "AutoModelForCausalLM, AutoModelForSequenceClassification and AutoModelForSeq2SeqLM is built tiny with all",
        "weights random. Two prompts, one with padding ids in it and at its end, go through transformers from ids.",
        f"`same`: llmxai's log-probs are within {TOLERANCE} nats, the longest prompt that llmxai takes runs, one more",
        "token is refused, and the model's own answer is explained.",
        "",
        "| kind | " + " | ".join(OUTCOMES) + " |",
        "| --- |" + " ---: |" * len(OUTCOMES),
        *(f"| {kind} | " + " | ".join(str(counted[kind, each]) for each in OUTCOMES) + " |" for kind in kinds),
        "",
        "## Need their ids",
        "",
        "From embeddings alone, transformers itself gives other log-probs on one of the two prompts (nats):",
        "",
        ", ".join(f"{row.name} {row.alone:.1g}" for row in rows if (row.alone or 0) > TOLERANCE) + ".",
        "",
        "## Refused",
        "",
        *(f"- {row.name}: {' '.join(row.why.split())}" for row in rows if row.outcome == "refused"),
        "",
        "## Explained without attention rollout",
        "",
        ", ".join(f"{row.name}" for row in rows if row.outcome == "same" and row.rollout) + ".",
        "",
        "## Not built here",
        "",
        *(f"- {row.name}: {' '.join(row.why.split())}" for row in rows if row.outcome == "not built"),
        "",
        "## The same",
        "",
        ", ".join(row.name for row in rows if row.outcome == "same") + ".",
        "",
    ]
    return "\n".join(lines)


def line(row: Row) -> str:
    number = "" if row.difference is None else f"{row.difference:.0e}"
    alone = "" if row.alone is None else f"{row.alone:.0e}"
    note = "" if row.outcome == "traceback" else row.why or row.rollout
    note = " ".join(note.split())[:250]
    return f"{row.kind:16}{row.name:48}{row.outcome:10}{number:>7}{alone:>7} {row.seconds:5.1f} s  {note}"


if __name__ == "__main__":
    sys.exit(main())
