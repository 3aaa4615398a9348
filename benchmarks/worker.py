"""One measurement in a process of its own: prints a line of JSON with the seconds of each repeat and the peak memory.

With the option `count`, the floating-point operations of its matrix products are counted instead.

Usage: python benchmarks/worker.py NAME '{"option": value}'
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from llmxai import Compute, Decoding, LoadedModel, Tolerance, layer_integrated_gradients, load
from llmxai.generation import encode_messages, generate
from llmxai.methods import Target
from llmxai.models.compiled import COMPILATION
from llmxai.types import Generation, Scores, predicting_position

PROMPTS = json.loads((Path(__file__).parent / "prompts.json").read_text())


def answer(loaded: LoadedModel, number: int) -> Generation:
    prompt = PROMPTS[number]
    tokens = encode_messages(loaded, prompt["messages"])
    return generate(loaded, tokens, decoding=Decoding(max_new_tokens=prompt["max_new_tokens"]))


def figures(result: Scores) -> dict[str, Any]:
    certificate = result.certificate
    assert certificate is not None
    return {
        "gaps": certificate.gap.tolist(),
        "local_errors": certificate.local_error.tolist(),
        "tolerances": certificate.tolerance.tolist(),
        "nets": (certificate.f_input - certificate.f_baseline).tolist(),
        "nodes": list(certificate.nodes),
        "converged": list(certificate.converged),
        "again": result.settings["panels_computed_again_in_dtype"],
        "values": result.values.tolist(),
    }


def llmxai(*, prompt: int = 0, **options: Any) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    """llmxai's integrated gradients; options as in `layer_integrated_gradients`.

    `compiling`: layers are compiled in the first call, whatever it saves; else never.
    """
    COMPILATION["cpu"] = 0.0 if options.pop("compiling", False) else math.inf
    loaded = load("smollm2")
    generation = answer(loaded, prompt)
    options["compute"] = Compute(gradient_dtype=options.pop("gradient_dtype", "float32"))
    if "tolerance" in options:
        options["tolerance"] = Tolerance(**options["tolerance"])
    targets = every_token(generation)
    return (lambda: layer_integrated_gradients(loaded, generation, targets=targets, **options)), figures


def every_token(generation: Generation) -> tuple[Target, ...]:
    """Also the end mark, which is no target by default, but is one of Captum's and Inseq's."""
    place = partial(predicting_position, generation.prompt_len)
    return tuple(Target("logprob", (place(t),), (token,)) for t, token in enumerate(generation.generated_ids))


def captum(
    *, prompt: int = 0, n_steps: int, batch: int | None = None
) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Captum's LLMGradientAttribution over LayerIntegratedGradients, baseline id 0, prompt tokens as features."""
    from captum.attr import LayerIntegratedGradients, LLMGradientAttribution, TextTokenInput

    loaded = load("smollm2")
    generation = answer(loaded, prompt)
    given_text = TextTokenInput(loaded.tokenizer.decode(generation.ids[: generation.prompt_len]), loaded.tokenizer)
    target = torch.tensor(generation.generated_ids)
    method = LLMGradientAttribution(
        LayerIntegratedGradients(loaded.model, loaded.model.get_input_embeddings()), loaded.tokenizer
    )
    options = {"n_steps": n_steps} | ({"internal_batch_size": batch} if batch else {})
    return (
        lambda: method.attribute(given_text, target=target, **options),
        lambda result: {"values": result.token_attr.tolist()},
    )


def inseq(*, prompt: int = 0, n_steps: int, batch: int = 50) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Inseq's integrated_gradients at its default (the probability of each token), the same prompt and answer."""
    import inseq as package

    loaded = load("smollm2")
    generation = answer(loaded, prompt)
    source = loaded.tokenizer.decode(generation.ids[: generation.prompt_len])
    whole = loaded.tokenizer.decode(generation.ids)
    model = package.load_model(loaded.model, "integrated_gradients", tokenizer=loaded.tokenizer)
    return (
        lambda: model.attribute(
            source,
            whole,
            n_steps=n_steps,
            internal_batch_size=batch,
            show_progress=False,
        ),
        lambda _result: {},
    )


def matmul(*, rows: int = 1024, dtype: str = "float32") -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    """The ceiling: the model's own widest layer product, in GFLOP/s."""
    a = torch.randn(rows, 576, dtype=getattr(torch, dtype))
    w = torch.randn(1536, 576, dtype=getattr(torch, dtype))

    def work() -> float:
        start = time.perf_counter()
        for _ in range(20):
            torch.nn.functional.linear(a, w)
        return 20 * 2 * rows * 576 * 1536 / (time.perf_counter() - start) / 1e9

    return work, lambda result: {"gflops": result}


class Operations(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas (its FlopCounterMode breaks inside autograd.grad)."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


WORKERS = {f.__name__: f for f in (llmxai, captum, inseq, matmul)}


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    repeats, count = options.pop("repeats", 1), options.pop("count", False)
    work, describe = WORKERS[name](**options)
    if count:
        with Operations() as counter:
            work()
        print("RESULT " + json.dumps({"flops": counter.total}))
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if repeats > 1:
        work()  # warm up
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = {"seconds": seconds, "before_gib": before / 2**20, "peak_gib": peak / 2**20, **describe(result)}
    print("RESULT " + json.dumps(line))


if __name__ == "__main__":
    main()
