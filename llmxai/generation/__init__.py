"""Prompt or chat to exact ids, what the model answered, and the proof that both fit together."""

from llmxai.generation.answer import Decoding, classify, force_response, generate, generate_many
from llmxai.generation.foil import with_foil
from llmxai.generation.prompt import PromptTokens, encode_messages, encode_prompt
from llmxai.generation.replay import replay
from llmxai.generation.texts import token_texts
from llmxai.text import group_words

__all__ = [
    "Decoding",
    "PromptTokens",
    "classify",
    "encode_messages",
    "encode_prompt",
    "force_response",
    "generate",
    "generate_many",
    "group_words",
    "replay",
    "token_texts",
    "with_foil",
]
