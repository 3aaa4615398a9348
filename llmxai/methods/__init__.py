"""Attribution methods: one file and one decorated function each."""

from llmxai.methods.attention.attention_gradients import gradient_weighted_rollout
from llmxai.methods.attention.rollout import (
    attention_rollout,
    last_layer_attention,
    last_layers_rollout,
    max_head_rollout,
    measured_residual_rollout,
    min_head_rollout,
    sink_free_rollout,
    value_norm_attention,
    value_norm_rollout,
)
from llmxai.methods.attention.rows import refused_rollout
from llmxai.methods.attention.variants import BEST_EVIDENCED, require_variant, roll_variant, variant_names
from llmxai.methods.controls import random_scores, recency
from llmxai.methods.gradients.integrated_gradients import Compute, Tolerance, layer_integrated_gradients
from llmxai.methods.gradients.one_pass import (
    deep_lift,
    gradient_shap,
    gradient_x_input,
    mc_dropout,
    saliency,
    smoothgrad,
)
from llmxai.methods.perturbation.effects import Removal, leave_one_out, measure_effects
from llmxai.methods.perturbation.removal import OPERATORS
from llmxai.methods.perturbation.surrogates import context_cite, kernel_shap, lime
from llmxai.methods.registry import METHODS, Method
from llmxai.methods.targets import Target, contrast_target, span_target, token_targets
from llmxai.types import TokenScores

__all__ = [
    "BEST_EVIDENCED",
    "METHODS",
    "OPERATORS",
    "Compute",
    "Method",
    "Removal",
    "Target",
    "TokenScores",
    "Tolerance",
    "attention_rollout",
    "context_cite",
    "contrast_target",
    "deep_lift",
    "gradient_shap",
    "gradient_weighted_rollout",
    "gradient_x_input",
    "kernel_shap",
    "last_layer_attention",
    "last_layers_rollout",
    "layer_integrated_gradients",
    "leave_one_out",
    "lime",
    "max_head_rollout",
    "mc_dropout",
    "measure_effects",
    "measured_residual_rollout",
    "min_head_rollout",
    "random_scores",
    "recency",
    "refused_rollout",
    "require_variant",
    "roll_variant",
    "saliency",
    "sink_free_rollout",
    "smoothgrad",
    "span_target",
    "token_targets",
    "value_norm_attention",
    "value_norm_rollout",
    "variant_names",
]
