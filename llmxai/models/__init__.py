"""Models: load them, find their seams, leave no mark on them."""

from llmxai.models.embedded import EMBEDDED
from llmxai.models.loading import LoadedModel, in_dtype, load, wrap
from llmxai.models.seams import embed, embedding_module, forward_logits, keeps_logits, prefix_cache, transformer_depth

__all__ = [
    "EMBEDDED",
    "LoadedModel",
    "embed",
    "embedding_module",
    "forward_logits",
    "in_dtype",
    "keeps_logits",
    "load",
    "prefix_cache",
    "transformer_depth",
    "wrap",
]
