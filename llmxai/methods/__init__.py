"""Attribution methods: one file and one decorated function each."""

from llmxai.methods._ablation import Ablation, ablate
from llmxai.methods._product import refused_rollout
from llmxai.methods._registry import METHODS, Method
from llmxai.methods._removal import OPERATORS
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target, contrast_target, span_target, token_targets
from llmxai.methods._variants import BEST_EVIDENCED, require_variant, roll_variant, variant_names
from llmxai.methods.attention_rollout import attention_rollout
from llmxai.methods.context_cite import context_cite
from llmxai.methods.controls import random_scores, recency
from llmxai.methods.deep_lift import deep_lift
from llmxai.methods.gradient_shap import gradient_shap
from llmxai.methods.gradient_weighted_rollout import gradient_weighted_rollout
from llmxai.methods.gradient_x_input import gradient_x_input
from llmxai.methods.kernel_shap import kernel_shap
from llmxai.methods.last_layer_attention import last_layer_attention
from llmxai.methods.last_layers_rollout import last_layers_rollout
from llmxai.methods.layer_integrated_gradients import Compute, Tolerance, layer_integrated_gradients
from llmxai.methods.leave_one_out import leave_one_out
from llmxai.methods.lime import lime
from llmxai.methods.max_head_rollout import max_head_rollout
from llmxai.methods.mc_dropout import mc_dropout
from llmxai.methods.measured_residual_rollout import measured_residual_rollout
from llmxai.methods.min_head_rollout import min_head_rollout
from llmxai.methods.saliency import saliency
from llmxai.methods.sink_free_rollout import sink_free_rollout
from llmxai.methods.smoothgrad import smoothgrad
from llmxai.methods.value_norm_attention import value_norm_attention
from llmxai.methods.value_norm_rollout import value_norm_rollout

__all__ = [
    "BEST_EVIDENCED",
    "METHODS",
    "OPERATORS",
    "Ablation",
    "Compute",
    "Method",
    "Target",
    "TokenScores",
    "Tolerance",
    "ablate",
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
