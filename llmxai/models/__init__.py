"""Models: load them, find their seams, leave no mark on them."""

from llmxai.models.embedded import EMBEDDED
from llmxai.models.families import ModelKind
from llmxai.models.forward import (
    checkpointed,
    embed,
    embedding_module,
    forward_logits,
    keeps_logits,
    prefix_cache,
    transformer_depth,
    transformer_layers,
)
from llmxai.models.loading import LoadedModel, in_dtype, load, wrap

__all__ = [
    "EMBEDDED",
    "LoadedModel",
    "ModelKind",
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
