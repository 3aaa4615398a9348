"""Attribution methods: one file and one decorated function each."""

from llmxai.methods._registry import METHODS, Method
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target, contrast_target, span_target, token_targets
from llmxai.methods.attention_rollout import attention_rollout
from llmxai.methods.context_cite import context_cite
from llmxai.methods.controls import random_scores, recency
from llmxai.methods.deep_lift import deep_lift
from llmxai.methods.gradient_shap import gradient_shap
from llmxai.methods.gradient_x_input import gradient_x_input
from llmxai.methods.kernel_shap import kernel_shap
from llmxai.methods.layer_integrated_gradients import Compute, Tolerance, layer_integrated_gradients
from llmxai.methods.lime import lime
from llmxai.methods.mc_dropout import mc_dropout
from llmxai.methods.saliency import saliency
from llmxai.methods.smoothgrad import smoothgrad

__all__ = [
    "METHODS",
    "Compute",
    "Method",
    "Target",
    "TokenScores",
    "Tolerance",
    "attention_rollout",
    "context_cite",
    "contrast_target",
    "deep_lift",
    "gradient_shap",
    "gradient_x_input",
    "kernel_shap",
    "layer_integrated_gradients",
    "lime",
    "mc_dropout",
    "random_scores",
    "recency",
    "saliency",
    "smoothgrad",
    "span_target",
    "token_targets",
]
