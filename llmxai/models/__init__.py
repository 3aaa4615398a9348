"""Models: load them, access every architecture through the same few functions, leave them unchanged."""

from llmxai.models.adapters import adapter_of, forward_logits, layer_stacks, prefix_cache
from llmxai.models.checkpointing import checkpointed
from llmxai.models.embedding import embed, embedding_module
from llmxai.models.families import ModelKind
from llmxai.models.finding import EMBEDDED
from llmxai.models.forward import (
    frozen_eval,
    keeps_logits,
    transformer_depth,
    transformer_layers,
)
from llmxai.models.loading import LoadedModel, load, wrap
from llmxai.models.precision import in_dtype

__all__ = [
    "EMBEDDED",
    "LoadedModel",
    "ModelKind",
    "adapter_of",
    "checkpointed",
    "embed",
    "embedding_module",
    "forward_logits",
    "frozen_eval",
    "in_dtype",
    "keeps_logits",
    "layer_stacks",
    "load",
    "prefix_cache",
    "transformer_depth",
    "transformer_layers",
    "wrap",
]
