"""A small transformer trained on a planted task: say the word that follows the marker.

Two layers of four heads, trained on the CPU from a fixed seed until it answers nearly every question of a held-out set
(seconds on an idle machine), then kept in the user's cache as an ordinary HuggingFace folder, keyed by everything that
decides its weights. Only two tokens of a question can tell it the answer: the marker and the word after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmxai.errors import NumericalError
from llmxai.evaluation.closed_form import word_tokenizer
from llmxai.evaluation.suites.toy import ASK, MARKER, WORDS, marker_text
from llmxai.models.embedded import cache_folder

Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Training:
    """Everything that decides the weights, besides the versions of the libraries."""

    version: int = 2
    seed: int = 0
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    batch: int = 32
    steps: int = 1500
    check_every: int = 25
    enough: float = 0.995
    """Share of the held-out questions that must be answered."""
    learning_rate: float = 0.005
    longest: int = 14
    """Words of a question at most."""


TRAINING = Training()


def marker_folder(*, report: Report = lambda _stage, _done, _all: None) -> Path:
    """The folder of the trained model; trained on the first call."""
    text = json.dumps([asdict(TRAINING), WORDS], sort_keys=True)
    folder = cache_folder() / "marker" / hashlib.sha256(text.encode()).hexdigest()[:16]
    if (folder / "config.json").exists():
        return folder
    model, tokenizer = train(report=report)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.replace(scratch, folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def train(*, report: Report = lambda _stage, _done, _all: None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train from the fixed seed. Raises NumericalError where the held-out set is never answered well enough."""
    tokenizer = word_tokenizer([MARKER, ASK, *WORDS])
    draw = Random(TRAINING.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads cost more than they compute here, and one gives the same weights everywhere
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TRAINING.seed)
            model = LlamaForCausalLM(_config(len(tokenizer)))
            optimiser = torch.optim.AdamW(model.parameters(), lr=TRAINING.learning_rate, betas=(0.9, 0.98))
            held_out = _batch(tokenizer, Random(TRAINING.seed + 1), length=12, rows=256)
            for step in range(TRAINING.steps):
                if step % TRAINING.check_every == 0:
                    report("training the marker model", step, TRAINING.steps)
                    if accuracy(model, held_out) >= TRAINING.enough:
                        return model.eval().requires_grad_(False), tokenizer
                length = draw.randint(3, TRAINING.longest)
                _step(model, optimiser, _batch(tokenizer, draw, length=length, rows=TRAINING.batch), step)
    finally:
        torch.set_num_threads(threads)
    raise NumericalError(
        f"The marker model did not learn its task within {TRAINING.steps} steps. That should not happen with "
        f"the pinned versions: check the installation of torch and transformers."
    )


def _step(model: PreTrainedModel, optimiser: torch.optim.Optimizer, ids: Int[Tensor, "row seq"], step: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = TRAINING.learning_rate * min(1.0, (step + 1) / 50)
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids[:, :-1]).logits[:, -1], ids[:, -1])
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


@torch.no_grad()
def accuracy(model: PreTrainedModel, ids: Int[Tensor, "row seq"]) -> float:
    """Share of rows whose last token the model ranks first."""
    return float((model(input_ids=ids[:, :-1]).logits[:, -1].argmax(dim=-1) == ids[:, -1]).float().mean())


def _config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=TRAINING.hidden,
        intermediate_size=2 * TRAINING.hidden,
        num_hidden_layers=TRAINING.layers,
        num_attention_heads=TRAINING.heads,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )


def _batch(tokenizer: PreTrainedTokenizerFast, draw: Random, *, length: int, rows: int) -> Int[Tensor, "row seq"]:
    drawn = [marker_text(draw, length) for _ in range(rows)]
    return torch.tensor([tokenizer(f"{text} {word}")["input_ids"] for text, word, _ in drawn])
