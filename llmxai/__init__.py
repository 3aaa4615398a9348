"""Explain a language model's answer token by token: attributions with error bounds, cross-checked by removal.

from llmxai import explain, load

model = load("smollm2")
explanation = explain(model, [{"role": "user", "content": "What is the capital of France?"}])
print(explanation.summary())
explanation.save("runs/france")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import lazy_loader

from llmxai.names import OUTLETS

if TYPE_CHECKING:
    from llmxai.errors import LlmxaiError, UserError
    from llmxai.explain import explain, explain_many
    from llmxai.explanation import Explanation, TokenView
    from llmxai.generation import answer
    from llmxai.methods import METHODS, attention_rollout, layer_integrated_gradients, leave_one_out
    from llmxai.models import LoadedModel, load, wrap
    from llmxai.names import Role, Status
    from llmxai.recompute import compare_full
    from llmxai.save import save
    from llmxai.settings import (
        AttentionRollout,
        Compute,
        Decoding,
        IntegratedGradients,
        Removal,
        Settings,
        Tolerance,
    )
    from llmxai.store import load_explanation
    from llmxai.tables import Source
    from llmxai.types import Certificate, CrossCheck, Effects, Generation, Scores

__version__ = version("llmxai")

__all__ = [
    "METHODS",
    "AttentionRollout",
    "Certificate",
    "Compute",
    "CrossCheck",
    "Decoding",
    "Effects",
    "Explanation",
    "Generation",
    "IntegratedGradients",
    "LlmxaiError",
    "LoadedModel",
    "Removal",
    "Role",
    "Scores",
    "Settings",
    "Source",
    "Status",
    "TokenView",
    "Tolerance",
    "UserError",
    "answer",
    "attention_rollout",
    "compare_full",
    "explain",
    "explain_many",
    "layer_integrated_gradients",
    "leave_one_out",
    "load",
    "load_explanation",
    "save",
    "wrap",
]

if not TYPE_CHECKING:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "errors": ["LlmxaiError", "UserError"],
            "explain": ["explain", "explain_many"],
            "explanation": ["Explanation", "TokenView"],
            "generation": ["answer"],
            "methods": ["METHODS", "attention_rollout", "layer_integrated_gradients", "leave_one_out"],
            "models": ["LoadedModel", "load", "wrap"],
            "names": ["Role", "Status"],
            "recompute": ["compare_full"],
            "save": ["save"],
            "settings": [
                *("AttentionRollout", "Compute", "Decoding", "IntegratedGradients"),
                *("Removal", "Settings", "Tolerance"),
            ],
            "store": ["load_explanation"],
            "tables": ["Source"],
            "types": ["Certificate", "CrossCheck", "Effects", "Generation", "Scores"],
        },
    )


def _document(explanation: Any) -> Any:
    from llmxai.store import to_json

    return to_json(explanation)


def _page(explanation: Any) -> str:
    from llmxai.report import build_view, render_report
    from llmxai.store import to_json, to_maps

    return render_report(build_view(to_json(explanation), to_maps(explanation)))


def _inline(explanation: Any) -> str:
    from llmxai.report.export import inline
    from llmxai.store import to_json, to_maps

    return inline(to_json(explanation), to_maps(explanation))


def _content(explanation: Any) -> tuple[str, dict[str, Any]]:
    """What a folder would hold, in a form that `==` compares."""
    import json

    from llmxai.store import to_json, to_maps

    maps = {name: (values.shape, values.tobytes()) for name, values in to_maps(explanation).items()}
    return json.dumps(to_json(explanation), sort_keys=True), maps


def _folder(explanation: Any, out: Any, *, replace: bool) -> Any:
    from llmxai.save import save as write

    return write(explanation, out, replace=replace)


OUTLETS.update(document=_document, content=_content, page=_page, inline=_inline, folder=_folder)
