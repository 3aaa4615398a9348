"""A planted task: small models trained within a minute to look something up, so that the true source is known.

A prompt lists one item a topic, in any order, and then asks for topics: `<s> a3 c1 b7 ... ?b -> 7`. Nothing but the
item `b7` tells the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmxai.models import LoadedModel, wrap
from llmxai.types import Generation, Role

TOPICS, VALUES = 24, 6
BOS, NEUTRAL = 0, 1
FIRST_ITEM = 2
FIRST_QUESTION = FIRST_ITEM + TOPICS * VALUES
FIRST_VALUE = FIRST_QUESTION + TOPICS
TOPIC_NAMES = "abcdefghijklmnopqrstuvwx"
TRAINED = 8
"""Questions a sequence while training."""
VOCABULARY = (
    "<s>",
    "_",
    *(f"{topic}{value}" for topic in TOPIC_NAMES for value in range(VALUES)),
    *(f"?{topic}" for topic in TOPIC_NAMES),
    *(f"{value}" for value in range(VALUES)),
)


@dataclass(frozen=True)
class Lookup:
    """One planted question: the token `sources[t]` of the prompt gives target t; None where t is no answer."""

    generation: Generation
    sources: tuple[int | None, ...]


def planted_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="_"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="_")


def batch(rng: torch.Generator, size: int, *, asked: int) -> tuple[Tensor, Tensor]:
    """Sequences `<s> item item ... ?topic value ?topic value ...`, and the place of each answer's item."""
    values = torch.randint(VALUES, (size, TOPICS), generator=rng)
    order = torch.rand(size, TOPICS, generator=rng).argsort(dim=1)  # the topic at each place
    items = FIRST_ITEM + order * VALUES + values.gather(1, order)
    topics = torch.rand(size, TOPICS, generator=rng).argsort(dim=1)[:, :asked]
    answers = torch.stack([FIRST_QUESTION + topics, FIRST_VALUE + values.gather(1, topics)], dim=2)
    ids = torch.cat([torch.full((size, 1), BOS), items, answers.flatten(1)], dim=1)
    return ids, 1 + order.argsort(dim=1).gather(1, topics)


def trained_lookup(*, layers: int = 2, seed: int = 0, steps: int = 600, at_least: float = 0.9) -> LoadedModel:
    """A Llama of `layers` layers that answers `at_least` this share of new questions, or a RuntimeError.

    The caller's random state is left alone. Training stops as soon as nearly all answers are right.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=256,
                initializer_range=0.15,
                bos_token_id=BOS,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
    right = _train(model, rng, steps)
    if right < at_least:
        raise RuntimeError(f"{layers} layers, seed {seed}: {right:.0%} of the answers are right after {steps} steps.")
    model.eval().requires_grad_(False)
    return wrap(model, planted_tokenizer(), name=f"lookup of {layers} layers, seed {seed}")


def _train(model: LlamaForCausalLM, rng: torch.Generator, steps: int) -> float:
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 0.05, 1.0, total_iters=20)
    right = 0.0
    for _ in range(steps):
        ids, _ = batch(rng, 16, asked=TRAINED)
        logits = model(ids[:, :-1], use_cache=False).logits[:, TOPICS + 1 :: 2]
        wanted = ids[:, TOPICS + 2 :: 2]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        right = 0.9 * right + 0.1 * float((logits.argmax(dim=2) == wanted).float().mean())
        if right > 0.99:
            break
    return right


def lookups(loaded: LoadedModel, *, count: int, seed: int, asked: int = 2) -> list[Lookup]:
    """New questions of which the model gets every answer right; `asked` answers each."""
    ids, sources = batch(torch.Generator().manual_seed(seed), 2 * count, asked=asked)
    with torch.no_grad():
        answers = loaded.model(ids[:, :-1], use_cache=False).logits[:, TOPICS + 1 :: 2].argmax(dim=2)
    right = (answers == ids[:, TOPICS + 2 :: 2]).all(dim=1)
    pairs = zip(ids[right][:count].tolist(), sources[right][:count].tolist(), strict=True)
    return [_lookup(row, where) for row, where in pairs]


def _lookup(ids: list[int], where: list[int]) -> Lookup:
    n, prompt_len = len(ids), TOPICS + 2
    roles = (Role.BOS, *(Role.USER,) * (prompt_len - 1), *(Role.GENERATED,) * (n - prompt_len))
    generation = Generation(
        ids=tuple(ids),
        prompt_len=prompt_len,
        roles=roles,
        texts=tuple(f"{VOCABULARY[i]} " for i in ids),
        words=tuple((i, i + 1) for i in range(n)),
        logprobs=None,
        stop="given",
        request={"prompt": "planted"},
    )
    sources = [None] * (n - prompt_len)
    sources[::2] = where
    return Lookup(generation=generation, sources=tuple(sources))
