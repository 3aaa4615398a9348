"""Explain what a language model generated, token by token: converged, cross-checked, readable.

from llmxai import explain, load, save

model = load("smollm2")
explanation = explain(model, messages=[{"role": "user", "content": "What is the capital of France?"}])
save(explanation, "runs/france")
"""

from importlib.metadata import version

from llmxai.errors import LlmxaiError, UserError
from llmxai.explain import explain
from llmxai.generation import Decoding
from llmxai.methods import METHODS, Tolerance, attention_rollout, layer_integrated_gradients
from llmxai.models import LoadedModel, load, wrap
from llmxai.save import save
from llmxai.types import Attribution, CrossCheck, Explanation, Generation, Role, Rollout, Status

__version__ = version("llmxai")

__all__ = [
    "METHODS",
    "Attribution",
    "CrossCheck",
    "Decoding",
    "Explanation",
    "Generation",
    "LlmxaiError",
    "LoadedModel",
    "Role",
    "Rollout",
    "Status",
    "Tolerance",
    "UserError",
    "attention_rollout",
    "explain",
    "layer_integrated_gradients",
    "load",
    "save",
    "wrap",
]
