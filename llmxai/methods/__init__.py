"""Attribution methods: one file and one decorated function each."""

from llmxai.methods._ablation import OPERATORS, Ablation, ablate
from llmxai.methods._registry import METHODS, Method
from llmxai.methods._targets import Target, contrast_target, span_target, token_targets
from llmxai.methods._variants import BEST_EVIDENCED, require_variant, roll_variant, variant_names
from llmxai.methods.attention_rollout import attention_rollout
from llmxai.methods.gradient_weighted_rollout import gradient_weighted_rollout
from llmxai.methods.last_layer_attention import last_layer_attention
from llmxai.methods.last_layers_rollout import last_layers_rollout
from llmxai.methods.layer_integrated_gradients import Compute, Tolerance, layer_integrated_gradients
from llmxai.methods.leave_one_out import leave_one_out
from llmxai.methods.max_head_rollout import max_head_rollout
from llmxai.methods.measured_residual_rollout import measured_residual_rollout
from llmxai.methods.min_head_rollout import min_head_rollout
from llmxai.methods.sink_free_rollout import sink_free_rollout
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
    "Tolerance",
    "ablate",
    "attention_rollout",
    "contrast_target",
    "gradient_weighted_rollout",
    "last_layer_attention",
    "last_layers_rollout",
    "layer_integrated_gradients",
    "leave_one_out",
    "max_head_rollout",
    "measured_residual_rollout",
    "min_head_rollout",
    "require_variant",
    "roll_variant",
    "sink_free_rollout",
    "span_target",
    "token_targets",
    "value_norm_attention",
    "value_norm_rollout",
    "variant_names",
]
