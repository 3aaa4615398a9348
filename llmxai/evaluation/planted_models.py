"""Three models with known sources: one in closed form, two trained locally on planted tasks.

Closed form: logits at position p = W (sum over i <= p of E[id_i]). For F = logit(answer) - logit(foil), token i
contributes exactly <W[answer] - W[foil], E[id_i] - b> against a baseline b: integrated gradients, gradient x input
(b = 0), DeepLIFT, Shapley values and leave-one-out all agree, and a removal changes F by the sum of the removed parts
(unless nothing would be left; then a single space remains).

Trained: `marker` repeats the word after the marker; only these two tokens of a question determine the answer. `tracer`
answers in steps: it repeats the question's marked words, and its last word follows from the answer's earlier words
(`trace_answer`). It is taught that by answers after another question, so the last word depends on the prompt only
through them. Both have a few layers of four heads, trained on the CPU from a fixed seed
until the model answers nearly every question of a held-out set (seconds on an idle machine), then kept in the user's
cache as an ordinary HuggingFace folder, keyed by everything that determines its weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from llmxai.errors import NumericalError
from llmxai.evaluation.questions import (
    ASK,
    DIGITS,
    MARKED,
    MARKER,
    SIGNS,
    TASKS,
    WORDS,
    marker_text,
    trace_answer,
    trace_text,
)
from llmxai.models import LoadedModel, wrap
from llmxai.models.finding import cache_folder, cached_folder
from llmxai.models.forward import torch_seeded

HIDDEN = 16
PLAIN = "Hello"
"""A word of plain text, by which `load` recognises a real vocabulary."""


class SumModel(PreTrainedModel):
    """logits at position p = W (sum over i <= p of E[id_i]); completely linear."""

    config_class = PreTrainedConfig
    _is_stateful = True  # no keys and values to keep

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Float[Tensor, "batch seq hidden"] | None = None,
        **_unused: Any,
    ) -> CausalLMOutput:
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return CausalLMOutput(logits=self.head(x.cumsum(dim=1)))


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word; every word except the first includes its leading space. A single space is its own token."""
    vocabulary = ["<unk>", " ", *words, *(f" {word}" for word in words), PLAIN]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False)


@cache
def _built() -> LoadedModel:
    tokenizer = word_tokenizer([f"w{i}" for i in range(40)])
    config = PreTrainedConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=0, max_position_embeddings=512
    )
    with torch_seeded(0, devices=[]):
        model = SumModel(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        with torch.no_grad():  # a word has the same embedding with and without its space
            for table in (model.embeddings.weight, model.head.weight):
                table[42:82] = table[2:42]
    return wrap(model.eval().requires_grad_(False), tokenizer, name="closed_form")


def build() -> LoadedModel:
    """The model, the same every time; a copy, so changes do not affect other callers."""
    return copy.copy(_built())


def contributions(loaded: LoadedModel, words: Sequence[str], *, answer: str, foil: str) -> list[float]:
    """<W[answer] - W[foil], E[word]> of every word: its contribution to F with a baseline of 0."""
    to_id = loaded.tokenizer.convert_tokens_to_ids
    model = loaded.model
    direction = model.head.weight[to_id(f" {answer}")] - model.head.weight[to_id(f" {foil}")]
    return [float(direction @ model.embeddings.weight[to_id(f" {word}")]) for word in words]


Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Training:
    """Everything that determines the weights, besides the versions of the libraries."""

    version: int = 2
    seed: int = 0
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    batch: int = 32
    steps: int = 1500
    check_every: int = 25
    enough: float = 0.995
    """Share of the held-out questions that the model must answer."""
    learning_rate: float = 0.005
    longest: int = 14
    """Longest question, in words."""


TRAINING = Training()
TRACER = Training(
    version=6, hidden=64, batch=64, steps=4000, check_every=100, learning_rate=0.003, longest=24, enough=0.999
)

Batch = tuple[Int[Tensor, "row seq"], Bool[Tensor, "row seq"]]
"""Token ids, and which of them the model is to predict."""


def marker_folder(*, report: Report = lambda _stage, _done, _all: None) -> Path:
    """The folder of the model `marker`; trained on the first call."""
    return _folder("marker", TRAINING, [WORDS], train, report)


def tracer_folder(*, report: Report = lambda _stage, _done, _all: None) -> Path:
    """The folder of the model `tracer`; trained on the first call."""
    return _folder("tracer", TRACER, [WORDS, TASKS, SIGNS, MARKED], train_tracer, report)


TRAINED = {"marker": marker_folder, "tracer": tracer_folder}
"""The trained models, by the name that a recipe gives them."""


def _folder(name: str, training: Training, words: Any, train: Callable[..., Any], report: Report) -> Path:
    text = json.dumps([asdict(training), *words], sort_keys=True)

    def make(scratch: Path) -> None:
        model, tokenizer = train(report=report)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)

    return cached_folder(cache_folder() / name / hashlib.sha256(text.encode()).hexdigest()[:16], make)


def train(*, report: Report = lambda _stage, _done, _all: None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train `marker` from its seed. Raises NumericalError if it never answers enough of the held-out set."""
    tokenizer = word_tokenizer([MARKER, ASK, *WORDS])

    def batch(draw: Random, rows: int, length: int) -> Batch:
        drawn = [marker_text(draw, length) for _ in range(rows)]
        ids = torch.tensor([tokenizer(f"{text} {word}")["input_ids"] for text, word, _ in drawn])
        wanted = torch.zeros(ids.shape, dtype=torch.bool)
        wanted[:, -1] = True
        return ids, wanted

    def drawn(draw: Random) -> Batch:
        length = _length(draw, TRAINING)
        return batch(draw, TRAINING.batch, length)

    held_out = [batch(Random(TRAINING.seed + 1), 256, 12)]
    return _trained("marker", TRAINING, tokenizer, drawn, held_out, report)


def train_tracer(
    *, report: Report = lambda _stage, _done, _all: None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train `tracer` from its seed. Raises NumericalError if it never answers enough of the held-out set."""
    tokenizer = word_tokenizer([*TASKS, *SIGNS, *WORDS, *DIGITS, *MARKED])

    def batch(draw: Random, rows: int, tasks: Sequence[str], *, foreign: float) -> Batch:
        """Padded on the right, which no earlier token sees. `foreign`: share of answers after another question."""
        found = []
        for _ in range(rows):
            task = draw.choice(tasks)
            text, sources, _ = trace_text(draw, task, _length(draw, TRACER))
            words, alone = trace_answer(task, sources)
            follows = [True] * len(words)
            if draw.random() < foreign:
                follows = alone
                text, _, _ = trace_text(draw, draw.choice(TASKS), _length(draw, TRACER))
            found.append((tokenizer(f"{text} {' '.join(words)}")["input_ids"], follows))
        longest = max(len(ids) for ids, _ in found)
        ids = torch.zeros(rows, longest, dtype=torch.long)
        wanted = torch.zeros(rows, longest, dtype=torch.bool)
        for row, (own, follows) in enumerate(found):
            ids[row, : len(own)] = torch.tensor(own)
            wanted[row, len(own) - len(follows) : len(own)] = torch.tensor(follows)
        return ids, wanted

    def drawn(draw: Random) -> Batch:
        return batch(draw, TRACER.batch, (*TASKS, "sum", "sum"), foreign=0.5)  # sums take the longest

    held = Random(TRACER.seed + 1)
    held_out = [batch(held, 64, [task], foreign=foreign) for task in TASKS for foreign in (0.0, 1.0)]
    return _trained("tracer", TRACER, tokenizer, drawn, held_out, report)


def _length(draw: Random, training: Training) -> int:
    return draw.randint(3, training.longest)


def _trained(
    name: str,
    training: Training,
    tokenizer: PreTrainedTokenizerFast,
    draw_batch: Callable[[Random], Batch],
    held_out: Sequence[Batch],
    report: Report,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    draw = Random(training.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads cost more than they compute here, and one gives the same weights everywhere
    try:
        with torch_seeded(training.seed, devices=[]):
            model = LlamaForCausalLM(_config(len(tokenizer), training))
            optimiser = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.98))
            for step in range(training.steps):
                if step % training.check_every == 0:
                    report(f"training the {name} model", step, training.steps)
                    if min([accuracy(model, *each) for each in held_out]) >= training.enough:
                        return model.eval().requires_grad_(False), tokenizer
                _step(model, optimiser, draw_batch(draw), step, training)
    finally:
        torch.set_num_threads(threads)
    raise NumericalError(
        f"The {name} model did not learn its task within {training.steps} steps. That should not happen with "
        f"the pinned versions: check the installation of torch and transformers."
    )


def _step(
    model: PreTrainedModel, optimiser: torch.optim.Optimizer, batch: Batch, step: int, training: Training
) -> None:
    for group in optimiser.param_groups:
        group["lr"] = training.learning_rate * min(1.0, (step + 1) / 50)
    ids, wanted = batch
    chosen = wanted[:, 1:]
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids[:, :-1]).logits[chosen], ids[:, 1:][chosen])
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


@torch.no_grad()
def accuracy(model: PreTrainedModel, ids: Int[Tensor, "row seq"], wanted: Bool[Tensor, "row seq"]) -> float:
    """Share of the wanted tokens that the model ranks first."""
    right = model(input_ids=ids[:, :-1]).logits.argmax(dim=-1) == ids[:, 1:]
    return float(right[wanted[:, 1:]].float().mean())


def _config(vocabulary: int, training: Training) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=training.hidden,
        intermediate_size=2 * training.hidden,
        num_hidden_layers=training.layers,
        num_attention_heads=training.heads,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
