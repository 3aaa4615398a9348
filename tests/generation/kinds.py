"""One small tokenizer of every kind, made in memory: what differs is how tokens become text again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tiny import SENTENCES, make_piece_tokenizer, make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    ByT5Tokenizer,
    CanineTokenizer,
    CTRLTokenizer,
    EsmTokenizer,
    PerceiverTokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
MORE = ("日本語の文章です。", "नमस्ते क्षि", "naïve café 😀👩‍👩‍👧", "e\u0301 \u0301")
SPACE = "▁"


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_fallback(*, strips: bool) -> PreTrainedTokenizerFast:
    """Llama 2's and Gemma's: a character that is not in the vocabulary is spelt in bytes, `<0xF0>` and so on."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", SPACE)
    trained.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    told = json.loads(trained.to_str())
    told["model"]["byte_fallback"] = True
    told["added_tokens"] = [token for token in told["added_tokens"] if token["content"] not in BYTES]
    backend = Tokenizer.from_str(json.dumps(told | {"pre_tokenizer": None}))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return fast(backend)


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator((*SENTENCES, *MORE), trainer)
    return fast(backend)


def unigram(*, spells_bytes: bool) -> PreTrainedTokenizerFast:
    """T5's; with bytes, as SentencePiece makes it under `--byte_fallback`."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator((*SENTENCES, *MORE), trainer)
    if spells_bytes:
        told = json.loads(backend.to_str())
        told["model"] |= {"vocab": [*told["model"]["vocab"], *([each, -20.0] for each in BYTES)], "byte_fallback": True}
        backend = Tokenizer.from_str(json.dumps(told))
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(steps)
    else:
        backend.decoder = decoders.Metaspace()
    return fast(backend)


def word_piece(*, cleans: bool) -> PreTrainedTokenizerFast:
    tokenizer = make_piece_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=cleans)
    return tokenizer


def suffixed() -> PreTrainedTokenizerFast:
    """GPT-1's: the last piece of a word ends in `</w>`."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, show_progress=False, end_of_word_suffix="</w>"
    )
    backend.train_from_iterator((*SENTENCES, *MORE), trainer)
    return fast(backend)


MAKERS = {
    "byte-level": make_tokenizer,
    "byte fallback": lambda: byte_fallback(strips=False),
    "byte fallback, strips": lambda: byte_fallback(strips=True),
    "metaspace": lambda: metaspace("always"),
    "metaspace, none before": lambda: metaspace("never"),
    "unigram": lambda: unigram(spells_bytes=False),
    "unigram, bytes": lambda: unigram(spells_bytes=True),
    "word pieces": lambda: word_piece(cleans=False),
    "word pieces, cleaned": lambda: word_piece(cleans=True),
    "suffixed": suffixed,
}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return MAKERS[kind]()


LETTERS = tuple(dict.fromkeys("abcdefghijklmnopqrstuvwxyzTP.,#'?!é日本語क्षि"))


def written(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def ctrl(folder: Path) -> PreTrainedTokenizer:
    """Pieces that a word goes on after end in `@@`."""
    ids = ["<unk>", *LETTERS, *(f"{letter}@@" for letter in LETTERS), *(f"{letter}</w>" for letter in LETTERS)]
    words = {piece: number for number, piece in enumerate(ids)}
    return CTRLTokenizer(written(folder, "v.json", words), written(folder, "m.txt", "#version: 0.2\nt h\n"))


def word_pieces_in_python(folder: Path) -> PreTrainedTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizerLegacy(written(folder, "v.txt", "\n".join(pieces)))


def residues(folder: Path) -> PreTrainedTokenizer:
    return EsmTokenizer(written(folder, "v.txt", "\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQ"])))


IN_PYTHON: dict[str, Callable[[Path], PreTrainedTokenizer]] = {
    "bytes": lambda _: ByT5Tokenizer(),
    "characters": lambda _: CanineTokenizer(),
    "bytes, perceiver": lambda _: PerceiverTokenizer(),
    "continued with @@": ctrl,
    "word pieces in Python": word_pieces_in_python,
    "residues": residues,
}
"""Tokenizers that are written in Python: without offsets, and with ways of their own to join tokens."""
