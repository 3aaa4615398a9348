"""Models: load them, find their seams, leave no mark on them."""

from llmxai.models.embedded import EMBEDDED
from llmxai.models.kinds import Kind
from llmxai.models.loading import LoadedModel, in_dtype, load, wrap
from llmxai.models.seams import (
    checkpointed,
    embed,
    embedding_module,
    forward_logits,
    keeps_logits,
    prefix_cache,
    transformer_depth,
    transformer_layers,
)

__all__ = [
    "EMBEDDED",
    "Kind",
    "LoadedModel",
    "checkpointed",
    "embed",
    "embedding_module",
    "forward_logits",
    "in_dtype",
    "keeps_logits",
    "load",
    "prefix_cache",
    "transformer_depth",
    "transformer_layers",
    "wrap",
]
