"""What people have in hand: models, prompts and collections of prompts that work, and the messages about the rest.

Every fix that a message suggests is tried here.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import peft
import pyarrow as pa
import pytest
import torch
from tiny import make_classifier, make_encoder_decoder, make_loaded, make_model, make_piece_tokenizer, make_tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BatchEncoding,
    Pipeline,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TextGenerationPipeline,
    pipeline,
)

from llmxai import Decoding, Generation, Settings, explain, explain_many
from llmxai.errors import ModelLoadError, OptionError, PromptError, UnsupportedModelError, UserError
from llmxai.evidence.log import read_log
from llmxai.generation import encode, encode_ids, force_response, generate, replay
from llmxai.inputs import loaded_model, prompt_tokens, prompts_of
from llmxai.models import LoadedModel
from llmxai.recompute import recompute
from llmxai.settings import IntegratedGradients
from llmxai.store import read_folder

QUICK = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
TEXT = "The capital of France"
CHAT = [{"role": "user", "content": TEXT}]


def ids_of(loaded: LoadedModel, prompt: Any = TEXT) -> tuple[int, ...]:
    return encode(loaded, prompt).ids


@pytest.fixture(scope="module")
def ids(tiny_llama: LoadedModel) -> tuple[int, ...]:
    return ids_of(tiny_llama)


def one_paragraph(error: UserError) -> str:
    """The message: one paragraph of bounded length that ends as a sentence."""
    text = str(error)
    assert "\n" not in text
    assert 20 < len(text) < 600
    assert text.endswith((".", ")"))
    return text


def refusal(kind: type[UserError], work: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        work(*arguments)
    assert type(caught.value) is kind
    return one_paragraph(caught.value)


# models


MODELS: dict[str, Callable[[LoadedModel], Any]] = {
    "loaded": lambda loaded: loaded,
    "pair": lambda loaded: (loaded.model, loaded.tokenizer),
    "list": lambda loaded: [loaded.model, loaded.tokenizer],
    "pipeline": lambda loaded: pipeline("text-generation", model=loaded.model, tokenizer=loaded.tokenizer),
    "class": lambda loaded: TextGenerationPipeline(model=loaded.model, tokenizer=loaded.tokenizer),
}


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "list"])
def test_models_that_work(kind: str, tiny_llama: LoadedModel) -> None:
    given = MODELS[kind](tiny_llama)
    explanation = explain(given, TEXT, max_new_tokens=3, settings=QUICK)
    assert len(explanation) == 3
    want = generate(tiny_llama, encode(tiny_llama, TEXT), decoding=Decoding(max_new_tokens=3))
    assert explanation.generation.ids == want.ids


def test_a_list_of_both_works(tiny_llama: LoadedModel) -> None:
    assert loaded_model(MODELS["list"](tiny_llama)).model is tiny_llama.model


@pytest.mark.parametrize("form", [str, Path])
def test_a_folder_works(form: Callable[[Path], Any], model_folder: Path, ids: tuple[int, ...]) -> None:
    explanation = explain(form(model_folder), TEXT, max_new_tokens=1, settings=QUICK)
    assert explanation.generation.ids[: len(ids)] == ids


@pytest.mark.slow
def test_the_embedded_model_by_its_name() -> None:
    explanation = explain(
        "smollm2", [{"role": "user", "content": "Name one colour."}], max_new_tokens=2, settings=QUICK
    )
    assert len(explanation) <= 2
    assert explanation.environment["model"]["name"] == "smollm2"


def test_classifiers_and_encoder_decoders_work() -> None:
    classifier, translator = make_classifier(), make_encoder_decoder()
    for name in ("text-classification", "sentiment-analysis"):
        pipe = pipeline(name, model=classifier.model, tokenizer=classifier.tokenizer)
        explanation = explain(pipe, "The answer was short.", settings=QUICK)
        assert explanation.answer == pipe("The answer was short.")[0]["label"]
    assert len(explain((translator.model, translator.tokenizer), TEXT, max_new_tokens=2, settings=QUICK)) <= 2


class Processor:
    """What AutoProcessor gives: not a tokenizer, but it has one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer


def test_a_model_alone(tiny_llama: LoadedModel) -> None:
    said = refusal(OptionError, loaded_model, tiny_llama.model)
    assert said.startswith("LlamaForCausalLM came without its tokenizer. Give the model with its tokenizer: explain((")
    assert "A tokenizer came without its model" in refusal(OptionError, loaded_model, tiny_llama.tokenizer)


def test_a_pair_that_is_none(tiny_llama: LoadedModel) -> None:
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    assert "Give (model, tokenizer)" in refusal(OptionError, loaded_model, (tokenizer, model))
    said = refusal(OptionError, loaded_model, (model, Processor(tokenizer)))
    assert said == (
        "The tokenizer is a Processor; expected a transformers tokenizer. Give its own: (model, processor.tokenizer)."
    )
    processor = Processor(tokenizer)
    assert loaded_model((model, processor.tokenizer)).tokenizer is tokenizer
    said = refusal(OptionError, loaded_model, (model, "gpt2"))
    assert "The tokenizer is the str 'gpt2'; expected a transformers tokenizer. AutoTokenizer.from_pretrained" in said
    assert "The tokenizer is None" in refusal(OptionError, loaded_model, (model, None))
    assert "The model is the str 'gpt2'" in refusal(OptionError, loaded_model, ("gpt2", tokenizer))


@pytest.mark.parametrize("given", [None, 3, 1.5, ["a"], {"model": 1}, object, b"smollm2"])
def test_what_is_no_model(given: Any) -> None:
    said = refusal(OptionError, loaded_model, given)
    assert "Expected a name or folder, load(...), (model, tokenizer), or a text-generation pipeline." in said


class DataParallel(torch.nn.Module):
    """As torch's, which warns that it is old."""

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__()
        self.module = module


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # of torch, by its own compiler
def test_a_wrapped_module(tiny_llama: LoadedModel) -> None:
    parallel = DataParallel(tiny_llama.model)
    for given in (parallel, (parallel, tiny_llama.tokenizer)):
        said = refusal(OptionError, loaded_model, given)
        assert said.startswith("DataParallel is a torch module, but not a transformers model.")
        assert "model.module of a parallel one" in said
    assert loaded_model((parallel.module, tiny_llama.tokenizer)).model is tiny_llama.model
    compiled = torch.compile(make_model())
    assert "model._orig_mod" in refusal(OptionError, loaded_model, (compiled, tiny_llama.tokenizer))
    assert loaded_model((compiled._orig_mod, tiny_llama.tokenizer)).model is compiled._orig_mod


@pytest.mark.parametrize("name", ["no-such-folder/model", "./nowhere", "missing.gguf"])
@pytest.mark.parametrize("form", [str, Path])
def test_a_path_that_is_not_there(name: str, form: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refusal(ModelLoadError, loaded_model, form(name))
    assert said.startswith(str(form(name)))
    assert "smollm2" in said


def bert(auto: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(make_piece_tokenizer()),
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    )
    return auto.from_config(config).eval()


def test_pipelines_of_other_tasks(tiny_llama: LoadedModel) -> None:
    pieces = make_piece_tokenizer()
    masked = pipeline("fill-mask", model=bert(AutoModelForMaskedLM), tokenizer=pieces)
    features = pipeline("feature-extraction", model=tiny_llama.model, tokenizer=tiny_llama.tokenizer)
    tags = pipeline("token-classification", model=bert(AutoModelForTokenClassification), tokenizer=pieces)
    for given, name in ((masked, "FillMask"), (features, "FeatureExtraction"), (tags, "TokenClassification")):
        said = refusal(UnsupportedModelError, loaded_model, given)
        assert said.startswith(f"Got a {name}Pipeline; expected a pipeline for text-generation or text-classific")
    assert loaded_model((features.model, features.tokenizer)).model is tiny_llama.model  # the fix


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification])
def test_models_that_answer_nothing(auto: Any) -> None:
    said = refusal(UnsupportedModelError, loaded_model, (bert(auto), make_piece_tokenizer()))
    assert "neither generates text nor classifies it" in said
    assert "AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForSequenceClassification" in said


def test_a_causal_model_without_its_head(tiny_llama: LoadedModel) -> None:
    body = AutoModel.from_config(tiny_llama.model.config)
    assert "LlamaModel neither generates" in refusal(UnsupportedModelError, loaded_model, (body, tiny_llama.tokenizer))


def test_a_pipeline_without_a_tokenizer(tiny_llama: LoadedModel) -> None:
    pipe = MODELS["pipeline"](tiny_llama)
    pipe.tokenizer = None
    assert "Give (pipeline.model, tokenizer) instead" in refusal(OptionError, loaded_model, pipe)
    assert loaded_model((pipe.model, tiny_llama.tokenizer)).model is tiny_llama.model


# adapters


def with_adapter(config: peft.PeftConfig) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about PEFT's way of asking for checkpointing
        torch.manual_seed(0)
        return peft.get_peft_model(make_model(), config)


def lora(**options: Any) -> Any:
    """LoRA that changes the model: its B begins as noise and not as 0."""
    return with_adapter(peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))


def test_lora_is_explained_with_its_adapter(tiny_llama: LoadedModel, ids: tuple[int, ...], tmp_path: Path) -> None:
    model = lora(target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    explanation = explain((model, tiny_llama.tokenizer), TEXT, max_new_tokens=3, settings=QUICK)
    model.eval()
    logits = model(input_ids=torch.tensor([explanation.generation.ids])).logits.detach()
    logprobs = logits[0].log_softmax(-1)
    for t, token in enumerate(explanation.generation.generated_ids):
        assert float(logprobs[len(ids) + t - 1, token]) == pytest.approx(explanation.replay.logprobs[t], abs=1e-4)
    plain = replay(tiny_llama, replace(explanation.generation, logprobs=None))
    assert max(abs(a - b) for a, b in zip(plain.logprobs, explanation.replay.logprobs, strict=True)) > 0.1
    assert explanation.environment["model"]["adapter"] == "in memory: default"
    folder = explanation.save(tmp_path / "out")
    ((entry, _),) = read_log(folder)
    again = loaded_model((model, tiny_llama.tokenizer))
    assert recompute(folder, entry.id, model=again).outcome == "within"
    assert recompute(folder, entry.id, model=tiny_llama).outcome != "within"
    bare = loaded_model((model.get_base_model(), tiny_llama.tokenizer))
    assert bare.model is model.get_base_model()
    merged = model.merge_and_unload()
    assert explain((merged, tiny_llama.tokenizer), TEXT, max_new_tokens=3, settings=QUICK).generation.ids == (
        explanation.generation.ids
    )


def test_prompt_tuning_is_refused(tiny_llama: LoadedModel) -> None:
    model = with_adapter(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    said = refusal(UnsupportedModelError, loaded_model, (model, tiny_llama.tokenizer))
    assert "(PROMPT_TUNING) works outside the model's layers" in said
    assert loaded_model((model.get_base_model(), tiny_llama.tokenizer)).model is model.get_base_model()  # the fix


def test_a_peft_model_alone() -> None:
    said = refusal(OptionError, loaded_model, lora(target_modules=["q_proj"]))
    assert said.startswith("PeftModelForCausalLM came without its tokenizer.")


# one prompt

PROMPTS: dict[str, Callable[[LoadedModel], Any]] = {
    "text": lambda _: TEXT,
    "numpy text": lambda _: np.array([TEXT])[0],
    "prompt tokens": lambda loaded: encode(loaded, TEXT),
    "encoding": lambda loaded: loaded.tokenizer(TEXT),
    "encoding of tensors": lambda loaded: loaded.tokenizer(TEXT, return_tensors="pt"),
    "encoding of arrays": lambda loaded: loaded.tokenizer(TEXT, return_tensors="np"),
    "dictionary": lambda loaded: dict(loaded.tokenizer(TEXT, return_tensors="pt")),
    "batch of one": lambda loaded: loaded.tokenizer([TEXT]),
    "padded right": lambda loaded: loaded.tokenizer(TEXT, padding="max_length", max_length=20, return_tensors="pt"),
    "padded left": lambda loaded: loaded.tokenizer(
        [TEXT], padding="max_length", max_length=20, padding_side="left", return_tensors="pt"
    ),
    "without a mask": lambda loaded: loaded.tokenizer(TEXT, return_attention_mask=False),
    "mask of booleans": lambda loaded: {
        "input_ids": [3, *ids_of(loaded)],
        "attention_mask": torch.tensor([False] + [True] * len(ids_of(loaded))),
    },
    "list": lambda loaded: list(ids_of(loaded)),
    "tuple": lambda loaded: ids_of(loaded),
    "list of lists": lambda loaded: [list(ids_of(loaded))],
    "list of numpy integers": lambda loaded: [np.int32(i) for i in ids_of(loaded)],
    "list of tensors": lambda loaded: [torch.tensor(i) for i in ids_of(loaded)],
    "tensor [seq]": lambda loaded: torch.tensor(ids_of(loaded)),
    "tensor [1, seq]": lambda loaded: torch.tensor([ids_of(loaded)], dtype=torch.int32),
    "array [seq]": lambda loaded: np.array(ids_of(loaded)),
    "array [1, seq]": lambda loaded: np.array([ids_of(loaded)], dtype=np.uint16),
    "row with a prompt": lambda _: {"prompt": TEXT, "answer": "Paris"},
    "row with a text": lambda _: {"prompt": None, "text": TEXT},
    "row with a question": lambda _: {"question": TEXT},
}
CHATS: dict[str, Callable[[LoadedModel], Any]] = {
    "messages": lambda _: CHAT,
    "tuple of messages": lambda _: tuple(CHAT),
    "array of messages": lambda _: np.array(CHAT, dtype=object),
    "batch of one chat": lambda _: [CHAT],
    "row with messages": lambda _: {"messages": CHAT, "id": 3},
    "row with a prompt of messages": lambda _: {"prompt": CHAT},
    "row of a data set": lambda _: datasets.Dataset.from_dict({"messages": [CHAT]})[0],
    "row of a frame": lambda _: datasets.Dataset.from_dict({"messages": [CHAT]}).to_pandas()["messages"][0],
    "template's encoding": lambda loaded: loaded.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True),
    "template's tensors": lambda loaded: loaded.tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ),
    "template's tensor": lambda loaded: loaded.tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=False
    ),
    "template's list": lambda loaded: loaded.tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_dict=False
    ),
}


@pytest.mark.parametrize("kind", [*PROMPTS, *CHATS])
def test_prompts_that_work(kind: str, tiny_llama: LoadedModel) -> None:
    given = (PROMPTS | CHATS)[kind](tiny_llama)
    before = copy.deepcopy(given)
    explanation = explain(tiny_llama, given, max_new_tokens=1, settings=QUICK)
    generation = explanation.generation
    assert generation.ids[: generation.prompt_len] == ids_of(tiny_llama, CHAT if kind in CHATS else TEXT)
    assert TEXT in "".join(generation.texts[: generation.prompt_len])
    assert repr(given) == repr(before)  # as it was
    assert all(type(i) is int for i in generation.request.get("input_ids", ()))
    (one,) = prompts_of(tiny_llama, [given])
    assert (one.ids, one.roles, one.request) == (
        generation.ids[:-1],
        generation.roles[:-1],
        dict(generation.request),
    )


def test_an_answer_that_exists(tiny_llama: LoadedModel) -> None:
    generation = force_response(tiny_llama, encode(tiny_llama, TEXT), response=" Paris")
    explanation = explain(tiny_llama, generation, settings=QUICK)
    assert explanation.generation == generation
    said = refusal(PromptError, prompt_tokens, tiny_llama, explanation)
    assert said.endswith("give explanation.generation.")
    assert explain(tiny_llama, explanation.generation, settings=QUICK).generation == generation  # the fix
    mixed = list(explain_many(tiny_llama, [TEXT, generation, CHAT], max_new_tokens=2, batch_size=2, settings=QUICK))
    assert [len(one.generation.ids) - one.generation.prompt_len for one in mixed] == [2, generation.n_targets, 2]
    assert mixed[1].generation == generation
    assert mixed[2].generation.request == {"messages": CHAT}


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_that_a_mask_marks_is_dropped(padding_side: str, tiny_llama: LoadedModel) -> None:
    """As the model itself ignores it: the answer is that to the text alone."""
    batch = tiny_llama.tokenizer(["Hello", TEXT], padding=True, padding_side=padding_side, return_tensors="pt")
    found = prompts_of(tiny_llama, batch)
    assert [one.ids for one in found] == [ids_of(tiny_llama, "Hello"), ids_of(tiny_llama)]
    row = {name: values[0] for name, values in batch.items()}
    assert prompt_tokens(tiny_llama, row).ids == ids_of(tiny_llama, "Hello")
    if padding_side == "left":
        told = tiny_llama.model.generate(**batch, max_new_tokens=4, do_sample=False)
        for one, ids in zip(found, told.tolist(), strict=True):
            answer = generate(tiny_llama, one, decoding=Decoding(max_new_tokens=4))
            assert list(answer.generated_ids) == ids[batch["input_ids"].shape[1] :][: answer.n_targets]


ODD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "The prompt is None; expected text, a list of messages, or token ids."),
    "number": (3, "The prompt is the int 3; expected text"),
    "bytes": (
        b"Hello",
        "The prompt is a bytes; expected text, a list of messages, or token ids. Decode it: prompt.dec",
    ),
    "path": (Path("prompt.txt"), "; expected text, a list of messages, or token ids."),
    "generator": ((text for text in ["a"]), "The prompt is a generator; expected text, a list of messages, or token i"),
    "set": ({"a"}, "If it holds several prompts, use explain_many."),
    "texts": (["a", "b"], "The prompt is a list of 2 texts. Give one, or use explain_many for several."),
    "column": (pd.Series(["a", "b", "c"]), "The prompt is a list of 3 texts."),
    "chats": ([CHAT, CHAT], "The prompt is a list of 2 prompts. Give one, or use explain_many"),
    "sequences": ([[3, 4], [5, 6]], "The prompt is a list of 2 prompts. Give one, or use explain_many"),
    "tensors": (torch.tensor([[3, 4], [5, 6]]), "The prompt is a list of 2 prompts."),
    "encodings": ({"input_ids": [[3], [4]]}, "Got 2 sequences of token ids. Give one, or use explain_many"),
    "message": (CHAT[0], "The prompt is one message. Put it into a list: [message]."),
    "mapping": ({"conversation": "a"}, "The prompt is a mapping with 'conversation'; expected a tokenizer's output ("),
    "empty mapping": ({}, "The prompt is a mapping with nothing; expected"),
    "no ids": (torch.tensor([], dtype=torch.long), "no messages"),
    "no ids in an encoding": ({"input_ids": []}, "There are no token ids. Give at least one."),
    "floats": (torch.tensor([1.0, 2.0]), "Token ids must be whole numbers, and the float 1.0 is not."),
    "not a number": ([float("nan")], "Token ids must be whole numbers, and the float nan is not."),
    "booleans": ([True, False], "Token ids must be whole numbers, and the bool True is not."),
    "mixed": ([3, "a"], "Token ids must be whole numbers, and the str 'a' is not."),
    "scalar": (torch.tensor(3), "The prompt is the int 3"),
    "embeddings": (torch.zeros(1, 4, 8), "The prompt is a list of 4 prompts."),
    "unknown id": ([10**6], "Token id 1000000 does not exist: tiny llama has"),
    "negative id": ([-100, 3], "Token id -100 does not exist"),
    "hole": ({"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]}, "The attention mask hides tokens in the middle"),
    "all hidden": ({"input_ids": [3, 4], "attention_mask": [0, 0]}, "There are no token ids."),
    "another mask": ({"input_ids": [3, 4], "attention_mask": [1]}, "input_ids and attention_mask differ in shape."),
    "pair": ({"input_ids": [3, 4], "token_type_ids": [0, 1]}, "holds a pair of texts (token_type_ids other than 0)"),
    "message and text": ([*CHAT, "a"], "Message 1 is the str 'a'; expected an object with `role` and `content`."),
    "roles": ([{"speaker": "me"}], "expected an object with `role` and `content`"),
}


@pytest.mark.parametrize("kind", ODD)
def test_prompts_that_do_not_work(kind: str, tiny_llama: LoadedModel) -> None:
    given, words = ODD[kind]
    assert words in refusal(PromptError, prompt_tokens, tiny_llama, given)


def test_the_fixes_of_prompts_work(tiny_llama: LoadedModel, ids: tuple[int, ...]) -> None:
    def read(prompt: Any) -> tuple[int, ...]:
        return prompt_tokens(tiny_llama, prompt).ids

    assert read(TEXT.encode().decode()) == ids
    assert read([CHAT[0]]) == ids_of(tiny_llama, CHAT)
    assert read(torch.tensor(ids).float().long()) == ids
    assert read({"input_ids": [3, 5]}) == (3, 5)
    assert [one.ids for one in prompts_of(tiny_llama, ["a", "b"])] == [ids_of(tiny_llama, "a"), ids_of(tiny_llama, "b")]
    assert [one.ids for one in prompts_of(tiny_llama, torch.tensor([[3, 4], [5, 6]]))] == [(3, 4), (5, 6)]
    row = {"conversation": TEXT}
    assert read(row["conversation"]) == ids
    assert read({"prompt": row["conversation"]}) == ids


def test_a_pair_of_texts_for_a_classifier() -> None:
    loaded = make_classifier()
    encoding = loaded.tokenizer("The capital", return_tensors="pt", return_token_type_ids=True)
    assert prompt_tokens(loaded, encoding).ids == tuple(encoding["input_ids"][0].tolist())
    encoding["token_type_ids"][0, -1] = 1
    assert "Join both into one text." in refusal(PromptError, prompt_tokens, loaded, encoding)


def test_ids_of_an_encoder_decoder_and_of_a_classifier() -> None:
    for loaded in (make_encoder_decoder(), make_classifier()):
        given = explain(loaded, loaded.tokenizer(TEXT, return_tensors="pt"), max_new_tokens=2, settings=QUICK)
        text = explain(loaded, TEXT, max_new_tokens=2, settings=QUICK)
        assert given.generation.ids == text.generation.ids
        assert given.generation.roles == text.generation.roles


# several prompts

TEXTS = ["The capital", "of France", "Hello there"]


def stream() -> Iterator[str]:
    yield from TEXTS


COLLECTIONS: dict[str, Callable[[LoadedModel], Any]] = {
    "list": lambda _: TEXTS,
    "tuple": lambda _: tuple(TEXTS),
    "generator": lambda _: stream(),
    "map": lambda _: map(str, TEXTS),
    "data set": lambda _: datasets.Dataset.from_dict({"prompt": TEXTS, "id": [1, 2, 3]}),
    "data set of texts": lambda _: datasets.Dataset.from_dict({"text": TEXTS}),
    "data set with a format": lambda _: datasets.Dataset.from_dict({"text": TEXTS}).with_format("torch"),
    "column": lambda _: datasets.Dataset.from_dict({"sentence": TEXTS})["sentence"],
    "rows as columns": lambda _: datasets.Dataset.from_dict({"prompt": TEXTS, "id": [1, 2, 3]})[:3],
    "iterable data set": lambda _: datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
    "stream, cut": lambda _: datasets.Dataset.from_dict({"text": [*TEXTS, *TEXTS]}).to_iterable_dataset().take(3),
    "tokenised data set": lambda loaded: datasets.Dataset.from_dict(
        dict(loaded.tokenizer(TEXTS, padding=True, padding_side="left"))
    ),
    "split": lambda _: datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": TEXTS}))["train"],
    "frame": lambda _: pd.DataFrame({"id": [1, 2, 3], "prompt": TEXTS}),
    "series": lambda _: pd.Series(TEXTS, index=[5, 6, 7]),
    "array": lambda _: np.array(TEXTS),
    "table": lambda _: pa.table({"text": TEXTS}),
    "table's column": lambda _: pa.table({"text": TEXTS})["text"],
    "encoding": lambda loaded: loaded.tokenizer(TEXTS),
    "padded encoding": lambda loaded: loaded.tokenizer(TEXTS, padding=True, return_tensors="pt"),
    "lists of ids": lambda loaded: loaded.tokenizer(TEXTS)["input_ids"],
    "tensors": lambda loaded: [torch.tensor(ids_of(loaded, text)) for text in TEXTS],
    "encodings": lambda loaded: [loaded.tokenizer(text, return_tensors="pt") for text in TEXTS],
}


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_collections_that_work(kind: str, tiny_llama: LoadedModel) -> None:
    found = prompts_of(tiny_llama, COLLECTIONS[kind](tiny_llama))
    assert [one.ids for one in found] == [ids_of(tiny_llama, text) for text in TEXTS]


@pytest.mark.parametrize("kind", ["generator", "data set", "frame", "padded encoding", "iterable data set"])
def test_collections_are_explained(kind: str, tiny_llama: LoadedModel) -> None:
    many = explain_many(tiny_llama, COLLECTIONS[kind](tiny_llama), max_new_tokens=2, batch_size=2, settings=QUICK)
    want = [explain(tiny_llama, text, max_new_tokens=2, settings=QUICK).generation.ids for text in TEXTS]
    assert [one.generation.ids for one in many] == want


@pytest.mark.parametrize(
    "chats",
    [
        [CHAT, CHAT],
        datasets.Dataset.from_dict({"messages": [CHAT, CHAT], "x": [1, 2]}),
        datasets.Dataset.from_dict({"messages": [CHAT, CHAT], "x": [1, 2]})[:2],
        datasets.Dataset.from_dict({"prompt": [CHAT, CHAT]}),
        datasets.Dataset.from_dict({"messages": [CHAT, CHAT]}).to_pandas(),
        datasets.Dataset.from_dict({"messages": [CHAT, CHAT]}).to_pandas()["messages"],
        pa.table({"messages": [CHAT, CHAT]}),
        ({"messages": CHAT} for _ in range(2)),
    ],
    ids=["list", "data set", "rows", "prompts", "frame", "series", "table", "generator"],
)
def test_chats(chats: Any, tiny_llama: LoadedModel) -> None:
    found = prompts_of(tiny_llama, chats)
    assert [one.ids for one in found] == [ids_of(tiny_llama, CHAT)] * 2
    assert [one.request for one in found] == [{"messages": CHAT}] * 2


def test_a_list_mixes_what_it_likes(tiny_llama: LoadedModel, ids: tuple[int, ...]) -> None:
    mixed = [TEXT, CHAT, list(ids), torch.tensor([ids]), {"prompt": TEXT}, tiny_llama.tokenizer(TEXT)]
    found = prompts_of(tiny_llama, mixed)
    assert [one.ids for one in found] == [ids, ids_of(tiny_llama, CHAT), ids, ids, ids, ids]


def test_no_prompts_are_no_explanations(tiny_llama: LoadedModel) -> None:
    for nothing in ([], iter(()), pd.DataFrame({"prompt": []}), datasets.Dataset.from_dict({"prompt": []})):
        assert list(explain_many(tiny_llama, nothing, settings=QUICK)) == []


SEVERAL: dict[str, tuple[Any, str]] = {
    "one text": (TEXT, "explain_many takes several prompts. Give a list, [prompt], or use explain for one."),
    "bytes": (b"a", "explain_many takes several prompts."),
    "one chat": (CHAT, "The prompts are the messages of one chat. Give [messages], or use explain for one."),
    "ids": ([3, 4], "The prompts are the token ids of one. Give [ids], or use explain for one prompt."),
    "tensor": (torch.tensor([3, 4]), "The prompts are the token ids of one."),
    "row": ({"prompt": TEXT}, "The prompts are one row of a data set. Give [row], or use explain for one."),
    "row of messages": ({"messages": CHAT}, "The prompts are one row of a data set."),
    "splits": (
        datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": TEXTS})),
        "a mapping with 'train'; expected a data set with a column prompt, messages, text, question. Where these are "
        "the splits of a data set, give one: explain_many(model, data['train']).",
    ),
    "nothing": (None, "The prompts are None. Give a list, a data set, or any iterable of prompts."),
    "number": (3, "The prompts are the int 3."),
    "columns": (
        datasets.Dataset.from_dict({"sentence": TEXTS}),
        "Prompt 1: The prompt is a mapping with 'sentence'; expected",
    ),
    "a gap": (["a", None, "b"], "Prompt 2: The prompt is None"),
    "a missing cell": (pd.DataFrame({"prompt": ["a", float("nan")]}), "Prompt 2: The prompt is the float nan"),
    "an empty text": (["a", "b", ""], "Prompt 3: The prompt is empty."),
    "files": ([Path("a.txt")], f"Prompt 1: The prompt is a {type(Path()).__name__}"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_collections_that_do_not_work(kind: str, tiny_llama: LoadedModel) -> None:
    given, words = SEVERAL[kind]
    assert words in refusal(PromptError, prompts_of, tiny_llama, given)


def test_the_fixes_of_collections_work(tiny_llama: LoadedModel) -> None:
    chat, sentences = ids_of(tiny_llama, CHAT), datasets.Dataset.from_dict({"sentence": TEXTS})
    fixes = [([TEXT], 1), ([CHAT], 1), ([[3, 4]], 1), ([{"messages": CHAT}], 1), (sentences["sentence"], 3)]
    assert [len(prompts_of(tiny_llama, fix)) for fix, _ in fixes] == [n for _, n in fixes]
    assert prompts_of(tiny_llama, [CHAT])[0].ids == chat
    assert len(prompts_of(tiny_llama, sentences.rename_column("sentence", "prompt"))) == 3


def test_explain_many_refuses_before_any_work(tiny_llama: LoadedModel) -> None:
    stages: list[str] = []
    with pytest.raises(PromptError, match="Prompt 2: The prompt is empty"):
        explain_many(tiny_llama, ["a", ""], progress=lambda stage, *_: stages.append(stage))
    with pytest.raises(PromptError, match="takes several prompts"):
        explain_many(tiny_llama, TEXT)
    assert stages == []


def test_an_endless_stream_is_cut_by_the_caller(tiny_llama: LoadedModel) -> None:
    some = itertools.islice(itertools.cycle(TEXTS), 4)
    assert len(prompts_of(tiny_llama, some)) == 4


# nothing is changed


def marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "weights": {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict().items()},
        "training": [module.training for module in model.modules()],
        "gradients": [(each.requires_grad, each.grad) for each in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": tokenizer.special_tokens_map,
        "sides": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length),
        "template": tokenizer.chat_template,
        "random": torch.get_rng_state().tolist(),
    }


def require_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = before.pop("weights"), after.pop("weights")
    assert all(torch.equal(old[name][0], new[name][0]) and old[name][1] == new[name][1] for name in old)
    assert before == after


def test_the_callers_pipeline_is_unchanged() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    pipe: Pipeline = pipeline("text-generation", model=model, tokenizer=tokenizer)
    model.train()
    pipe.model.lm_head.weight.requires_grad_(False)
    own = {name: value for name, value in vars(pipe).items() if name not in ("model", "tokenizer")}
    kept = copy.deepcopy({name: value for name, value in own.items() if name.endswith("params")})
    before = marks(model, tokenizer)
    explain(pipe, tokenizer(TEXT, padding="max_length", max_length=9), max_new_tokens=2, settings=QUICK)
    list(explain_many(pipe, ["a", CHAT], max_new_tokens=2, settings=QUICK))
    require_same(before, marks(model, tokenizer))
    assert (pipe.model, pipe.tokenizer) == (model, tokenizer)
    assert {name: value for name, value in vars(pipe).items() if name in own} == own
    assert {name: own[name] for name in kept} == kept


def test_the_callers_adapter_is_unchanged(tiny_llama: LoadedModel) -> None:
    model = lora(target_modules=["q_proj"], lora_dropout=0.5)
    model.train()
    before = marks(model, tiny_llama.tokenizer)
    explain((model, tiny_llama.tokenizer), TEXT, max_new_tokens=2, settings=QUICK)
    require_same(before, marks(model, tiny_llama.tokenizer))
    assert model.active_adapters == ["default"]


def test_the_callers_data_is_unchanged(tiny_llama: LoadedModel) -> None:
    data = datasets.Dataset.from_dict({"messages": [CHAT, CHAT], "x": [1, 2]})
    frame, batch = data.to_pandas(), tiny_llama.tokenizer(TEXTS, padding=True, return_tensors="pt")
    messages, before = copy.deepcopy(CHAT), (data._fingerprint, frame.copy(deep=True), copy.deepcopy(dict(batch)))
    for given in (data, frame, batch, [messages]):
        prompts_of(tiny_llama, given)
    assert (data._fingerprint, messages) == (before[0], CHAT)
    assert frame.equals(before[1])
    assert isinstance(batch, BatchEncoding)
    assert all(torch.equal(batch[name], before[2][name]) for name in batch)


# ids on disk


@pytest.mark.parametrize("response", [None, " Paris, Rome"])
def test_an_explanation_of_ids_is_readable_and_can_be_replayed(
    tiny_llama: LoadedModel, ids: tuple[int, ...], response: str | None, tmp_path: Path
) -> None:
    encoding = tiny_llama.tokenizer(TEXT, padding="max_length", max_length=20, return_tensors="pt")
    explanation = explain(tiny_llama, encoding, response=response, max_new_tokens=3, settings=QUICK)
    folder = explanation.save(tmp_path / "out")
    document, _ = read_folder(folder)
    assert document["generation"]["request"]["input_ids"] == list(ids)
    prompt = document["tokens"][: document["generation"]["prompt_len"]]
    assert "".join(token["text"] for token in prompt) == TEXT
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "France" in page
    ((entry, _),) = read_log(folder)
    comparison = recompute(folder, entry.id, model=tiny_llama)
    assert (comparison.outcome, comparison.answer) == ("within", "the same tokens")


def test_replayed_ids_keep_their_roles(tmp_path: Path) -> None:
    loaded = make_encoder_decoder()
    explanation = explain(
        loaded, encode_ids(loaded, loaded.tokenizer(TEXT)["input_ids"]), max_new_tokens=2, settings=QUICK
    )
    assert isinstance(explanation.generation, Generation)
    folder = explanation.save(tmp_path / "out")
    ((entry, _),) = read_log(folder)
    assert recompute(folder, entry.id, model=loaded).outcome == "within"


def test_other_architectures_take_pipelines() -> None:
    loaded = make_loaded("gpt2")
    assert len(explain(MODELS["pipeline"](loaded), TEXT, max_new_tokens=2, settings=QUICK)) <= 2
