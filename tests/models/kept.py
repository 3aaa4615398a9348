"""What autograd keeps for the backward pass of a model's layers, and what the planner expects of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny import ARCHITECTURES, make_model
from torch import Tensor
from transformers import PreTrainedModel

from llmxai.models.memory import Saved, Shape, kept_per_token, saved_by

DEPTH, SEQ, BATCH = 4, 64, 4
WIDE: dict[str, Any] = {"num_hidden_layers": DEPTH, "hidden_size": 128, "num_attention_heads": 8}
NAMED_OTHERWISE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": DEPTH, "n_embd": 128, "n_head": 8},
    "bloom": {"n_layer": DEPTH, "hidden_size": 128, "n_head": 8},
    "opt": {**WIDE, "word_embed_proj_dim": 128, "ffn_dim": 512},
    "falcon": WIDE,
}


def wide_model(architecture: str, dtype: torch.dtype) -> PreTrainedModel:
    """Wide enough for what is kept a token to outweigh what is kept once."""
    own = ARCHITECTURES[architecture]
    changes = NAMED_OTHERWISE.get(architecture) or {**WIDE, "intermediate_size": 384}
    changes = {
        **changes,
        **({"layer_types": ["sliding_attention", "full_attention"] * (DEPTH // 2)} if "layer_types" in own else {}),
        **({"head_dim": 16} if "head_dim" in own else {}),
        **({"num_key_value_heads": 4} if "num_key_value_heads" in own else {}),
    }
    return make_model(architecture, dtype=dtype, **changes).requires_grad_(False)


def kept_by_autograd(model: PreTrainedModel, run: Callable[[], object] | None = None) -> int:
    """Bytes of every storage that `run` saves for the backward pass, the weights left out; else the layers alone."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    def layers() -> None:
        width = model.get_input_embeddings().weight.shape[1]
        x = torch.zeros(BATCH, SEQ, width, dtype=model.dtype).normal_().requires_grad_()
        model.base_model(inputs_embeds=x, use_cache=False)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (run or layers)()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def estimated(model: PreTrainedModel, saved: Saved | None = None) -> int:
    """The planner's figure for the same; `saved` by another attention than the model's own."""
    shape, saved = Shape.of(model.config), saved or saved_by(model)
    scores = saved.maps * shape.heads * SEQ * 4
    return DEPTH * BATCH * SEQ * (kept_per_token(shape, itemsize=model.dtype.itemsize, heads=saved.heads) + scores)
