"""Prompt or chat to exact ids, what the model answered, and the proof that both fit together."""

from llmxai.generation.batch import generate_many
from llmxai.generation.classify import classify
from llmxai.generation.decode import Decoding, generate, given
from llmxai.generation.foil import against
from llmxai.generation.prompt import PromptTokens, encode_messages, encode_prompt
from llmxai.generation.replay import replay
from llmxai.generation.words import group_words, token_texts

__all__ = [
    "Decoding",
    "PromptTokens",
    "against",
    "classify",
    "encode_messages",
    "encode_prompt",
    "generate",
    "generate_many",
    "given",
    "group_words",
    "replay",
    "token_texts",
]
