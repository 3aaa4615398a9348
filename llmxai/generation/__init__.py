"""Prompts as exact ids, the model's answer, and the check that both belong together."""

from llmxai.generation.answer import answer, force_response, generate, generate_many, require_foil, with_foil
from llmxai.generation.chat import ChatInputs, Message, chat_inputs, require_messages
from llmxai.generation.prompt import Prompt, encode, encode_ids, encode_messages, encode_prompt, token_texts
from llmxai.generation.replay import replay
from llmxai.settings import Decoding
from llmxai.types import PromptTokens

__all__ = [
    "ChatInputs",
    "Decoding",
    "Message",
    "Prompt",
    "PromptTokens",
    "answer",
    "chat_inputs",
    "encode",
    "encode_ids",
    "encode_messages",
    "encode_prompt",
    "force_response",
    "generate",
    "generate_many",
    "replay",
    "require_foil",
    "require_messages",
    "token_texts",
    "with_foil",
]
