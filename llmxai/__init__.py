"""Explain what a language model generated, token by token: converged, cross-checked, readable.

from llmxai import explain, load, save

model = load("smollm2")
explanation = explain(model, messages=[{"role": "user", "content": "What is the capital of France?"}])
save(explanation, "runs/france")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from llmxai._lazy import lazy

if TYPE_CHECKING:
    from llmxai.errors import LlmxaiError, UserError
    from llmxai.explain import explain, explain_many
    from llmxai.generation import Decoding
    from llmxai.methods import (
        METHODS,
        Compute,
        Removal,
        Tolerance,
        attention_rollout,
        layer_integrated_gradients,
        leave_one_out,
    )
    from llmxai.models import LoadedModel, load, wrap
    from llmxai.recompute import compare_full
    from llmxai.save import save
    from llmxai.types import Attribution, CrossCheck, Explanation, Generation, Role, Rollout, Status

__version__ = version("llmxai")

__all__ = [
    "METHODS",
    "Attribution",
    "Compute",
    "CrossCheck",
    "Decoding",
    "Explanation",
    "Generation",
    "LlmxaiError",
    "LoadedModel",
    "Removal",
    "Role",
    "Rollout",
    "Status",
    "Tolerance",
    "UserError",
    "attention_rollout",
    "compare_full",
    "explain",
    "explain_many",
    "layer_integrated_gradients",
    "leave_one_out",
    "load",
    "save",
    "wrap",
]

if not TYPE_CHECKING:
    __getattr__ = lazy(
        __name__,
        {
            **dict.fromkeys(("Attribution", "CrossCheck", "Explanation", "Generation", "Rollout"), "llmxai.types"),
            **dict.fromkeys(("LlmxaiError", "UserError"), "llmxai.errors"),
            **dict.fromkeys(("LoadedModel", "load", "wrap"), "llmxai.models"),
            **dict.fromkeys(("METHODS", "Removal", "Compute", "Tolerance", "leave_one_out"), "llmxai.methods"),
            **dict.fromkeys(("attention_rollout", "layer_integrated_gradients"), "llmxai.methods"),
            **dict.fromkeys(("Role", "Status"), "llmxai.names"),
            "Decoding": "llmxai.generation",
            "compare_full": "llmxai.recompute",
            **dict.fromkeys(("explain", "explain_many"), "llmxai.explain"),
            "save": "llmxai.save",
        },
    )
