"""Attribution methods: one file and one decorated function each."""

from llmxai.methods._ablation import OPERATORS, Ablation, ablate
from llmxai.methods._registry import METHODS, Method
from llmxai.methods._targets import Target, contrast_target, span_target, token_targets
from llmxai.methods.attention_rollout import attention_rollout
from llmxai.methods.layer_integrated_gradients import Compute, Tolerance, layer_integrated_gradients
from llmxai.methods.gradient_weighted_rollout import gradient_weighted_rollout
from llmxai.methods.leave_one_out import leave_one_out

__all__ = [
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
    "layer_integrated_gradients",
    "leave_one_out",
    "span_target",
    "token_targets",
]
