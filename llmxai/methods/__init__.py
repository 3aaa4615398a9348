"""Attribution methods in three families: gradients, attention, perturbation. `METHODS` lists all of them."""

from llmxai.methods.attention.attention_gradients import gradient_weighted_rollout
from llmxai.methods.attention.rollout import attention_rollout
from llmxai.methods.controls import random_scores, recency
from llmxai.methods.features import CONTENT, chosen_tokens
from llmxai.methods.gradients.deletion_path import deletion_path
from llmxai.methods.gradients.integrated_gradients import layer_integrated_gradients
from llmxai.methods.gradients.one_pass import (
    deep_lift,
    gradient_shap,
    gradient_x_input,
    mc_dropout,
    saliency,
    smoothgrad,
)
from llmxai.methods.perturbation.effects import estimated, leave_one_out, measure_effects
from llmxai.methods.perturbation.surrogates import context_cite, kernel_shap, lime
from llmxai.methods.registry import METHODS, Method, method, method_options, require_method
from llmxai.methods.targets import (
    Target,
    answer_words,
    chosen_targets,
    contrast_target,
    span_target,
    targets_of,
    token_targets,
)
from llmxai.methods.tracing import missing_rows, traced, traced_deletion_path, with_missing_rows

__all__ = [
    "CONTENT",
    "METHODS",
    "Method",
    "Target",
    "answer_words",
    "attention_rollout",
    "chosen_targets",
    "chosen_tokens",
    "context_cite",
    "contrast_target",
    "deep_lift",
    "deletion_path",
    "estimated",
    "gradient_shap",
    "gradient_weighted_rollout",
    "gradient_x_input",
    "kernel_shap",
    "layer_integrated_gradients",
    "leave_one_out",
    "lime",
    "mc_dropout",
    "measure_effects",
    "method",
    "method_options",
    "missing_rows",
    "random_scores",
    "recency",
    "require_method",
    "saliency",
    "smoothgrad",
    "span_target",
    "targets_of",
    "token_targets",
    "traced",
    "traced_deletion_path",
    "with_missing_rows",
]
