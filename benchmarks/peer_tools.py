"""The tools that `peers.py` compares, each at its defaults: functions from a model and a question to the timed work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llmxai import LoadedModel
from llmxai.evaluation import Case, Row
from llmxai.evaluation.case import token_positions
from llmxai.methods import METHODS
from llmxai.methods.perturbation.effects import estimated, measure_effects
from llmxai.methods.perturbation.removal import over_tokens


@dataclass(frozen=True)
class Question:
    """A prompt and its answer, as every tool gets them."""

    row: Row
    case: Case
    prompt: str
    """As the model reads it, with the chat template."""
    answer: str

    @property
    def first(self) -> str:
        """The answer's first token."""
        return self.case.generation.texts[self.case.generation.prompt_len]

    @property
    def prompt_len(self) -> int:
        return self.case.generation.prompt_len


Explained = tuple[Tensor, dict[str, Any]]
"""Scores of the tokens of the prompt, or of the whole sequence, and what else is told of them."""
Work = Callable[[], Explained]


@dataclass(frozen=True)
class Tool:
    """One row of the table."""

    name: str
    prepare: Callable[[LoadedModel, Question], Work]
    """Imports what it needs and returns what is timed."""
    scored: str
    error: str
    """What it says about how far off it is."""


def require_ids(what: str, found: Sequence[int], ids: Sequence[int]) -> None:
    if list(found) != list(ids):
        raise RuntimeError(f"{what}: the tokens {list(found)} are not those that llmxai explains, {list(ids)}.")


def user_text(question: Question) -> str:
    """The prompt without the chat template, for tools that apply the template themselves."""
    if question.row.messages is not None and len(question.row.messages) != 1:
        raise RuntimeError(f"{question.row.id}: {len(question.row.messages)} messages, and the others take one.")
    return question.row.text


def spread(ranges: Iterable[Iterable[int]], scores: Iterable[float], n: int) -> Tensor:
    """Scores of sets of tokens, each spread evenly over its tokens, of `n`."""
    values = torch.zeros(n, dtype=torch.float64)
    for tokens, score in zip(map(list, ranges), scores, strict=True):
        values[tokens] += score / len(tokens)
    return values


def llmxai(method: str) -> Callable[[LoadedModel, Question], Work]:
    def prepare(loaded: LoadedModel, question: Question) -> Work:
        def work() -> Explained:
            scores = METHODS[method].function(loaded, question.case.generation, targets=(question.case.target,))
            told: dict[str, Any] = {}
            if (certificate := scores.certificate) is not None:
                told = {"converged": certificate.converged[0], "error": float(certificate.local_error[0])}
            return scores.values[0], told

        return work

    return prepare


def llmxai_effects(loaded: LoadedModel, question: Question) -> Work:
    """The effects that `llmxai explain` measures, estimated around the scores of the deletion path."""

    def work() -> Explained:
        generation, targets = question.case.generation, (question.case.target,)
        prior = METHODS["deletion_path"].function(loaded, generation, targets=targets)
        effects = estimated(measure_effects(loaded, generation, targets=targets), prior)
        effect, low, high = (cast(Tensor, part) for part in (effects.effect, effects.low, effects.high))
        values = over_tokens(effect, effects.units, len(generation.ids))[0][0]
        return values, {"half_width": float((high - low)[0].median() / 2)}

    return work


def captum_gradients(loaded: LoadedModel, question: Question) -> Work:
    from captum.attr import LayerIntegratedGradients, LLMGradientAttribution, TextTokenInput

    def work() -> Explained:
        text = TextTokenInput(question.prompt, loaded.tokenizer)
        gradients = LayerIntegratedGradients(loaded.model, loaded.model.get_input_embeddings())
        target = torch.tensor(question.case.generation.generated_ids[:1])
        return LLMGradientAttribution(gradients, loaded.tokenizer).attribute(text, target=target).token_attr[0], {}

    return work


def captum_ablation(loaded: LoadedModel, question: Question) -> Work:
    from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput

    def work() -> Explained:
        text = TextTokenInput(question.prompt, loaded.tokenizer)
        target = torch.tensor(question.case.generation.generated_ids[:1])
        found = LLMAttribution(FeatureAblation(loaded.model), loaded.tokenizer).attribute(text, target=target)
        return found.token_attr[0], {}

    return work


def inseq(method: str) -> Callable[[LoadedModel, Question], Work]:
    def prepare(loaded: LoadedModel, question: Question) -> Work:
        import inseq as package

        def work() -> Explained:
            n = question.prompt_len
            model = package.load_model(loaded.model, method, tokenizer=loaded.tokenizer)
            found = model.attribute(
                question.prompt,
                question.prompt + question.answer,
                attr_pos_start=n,
                attr_pos_end=n + 1,
                show_progress=False,
            )
            scores = found.sequence_attributions[0].aggregate().target_attributions[:n, 0]
            # as many are cut off the end as there are padding tokens, here the ends of turns (`drop_padding`)
            if len(scores) <= question.case.features[-1]:
                raise RuntimeError(f"{question.row.id}: {len(scores)} scores of {n} prompt tokens.")
            return torch.nn.functional.pad(scores, (0, n - len(scores))), {}

        return work

    return prepare


def flashtrace(loaded: LoadedModel, question: Question) -> Work:
    from flashtrace import FlashTrace

    loaded.model.set_attn_implementation("eager")  # it reads attention maps

    def work() -> Explained:
        tracer = FlashTrace(loaded.model, loaded.tokenizer)
        found = tracer.trace(prompt=question.prompt, target=question.answer, output_span=(0, 0))
        return torch.tensor(found.scores), {}

    return work


def with_sentences() -> dict[str, Any]:
    """Let NLTK cut sentences where its English model cannot be downloaded: by its algorithm without that model."""
    import nltk
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    try:
        nltk.sent_tokenize("One. Two.")
    except LookupError:
        nltk.sent_tokenize = PunktSentenceTokenizer().tokenize
        return {"note": "NLTK's English sentence model (punkt_tab) could not be downloaded: its Punkt algorithm alone"}
    return {}


def context_cite(source_type: str) -> Callable[[LoadedModel, Question], Work]:
    def prepare(loaded: LoadedModel, question: Question) -> Work:
        from context_cite import ContextCiter

        told = with_sentences() if source_type == "sentence" else {}
        text, generation = user_text(question), question.case.generation
        if question.row.messages is None:
            loaded.tokenizer.chat_template = "{{ messages[0]['content'] }}"

        def work() -> Explained:
            citer = ContextCiter(
                loaded.model, loaded.tokenizer, text, "", source_type=source_type, prompt_template="{context}"
            )
            citer._cache["output"] = question.prompt + question.answer  # the answer is given, not generated
            require_ids(question.row.id, (*citer._get_prompt_ids(), *citer._response_ids), generation.ids)
            first = question.first.strip()
            start = citer.response.index(first)
            scores = citer.get_attributions(start, start + len(first), verbose=False)
            spans, end = [], 0
            for part in citer.sources:
                start = text.index(part, end)
                end = start + len(part)
                spans.append(sorted(token_positions(generation, text, [(start, end)])))
            return spread(spans, scores, len(generation.ids)), told

        return work

    return prepare


def at2_task(loaded: LoadedModel, question: Question) -> Any:
    """AT2's own task of a prompt, whose whole text is the context; the answer is given, not generated."""
    from at2.tasks import SimpleContextAttributionTask

    task = SimpleContextAttributionTask(user_text(question), "", loaded.model, loaded.tokenizer)
    task.template = "{context}"
    if question.row.messages is None:
        task.apply_chat_template = lambda prompt: prompt
    task.set_generation(question.answer)
    require_ids(question.row.id, task.get_tokens()["input_ids"], question.case.generation.ids)
    return task


def at2_extractor(loaded: LoadedModel) -> Any:
    from at2 import AT2FeatureExtractor
    from at2.attribution.attention import get_attentions_shape

    kind = loaded.model.config.model_type  # it guesses from the model's name, and knows "llama", "phi", "qwen", "gemma"
    return AT2FeatureExtractor(*get_attentions_shape(loaded.model), model_type=kind)


def at2_training(loaded: LoadedModel, known: Sequence[Question]) -> dict[str, Any]:
    """The weights of its estimator, trained as its README says, on generated questions that are not asked here."""
    from at2 import AT2Trainer

    with_sentences()

    def task_of(number: int, *_: Any) -> Any:
        return at2_task(loaded, known[number])

    np.random.seed(0)  # its sampling draws from here
    start = time.process_time()
    with TemporaryDirectory() as folder:
        trainer = AT2Trainer(
            Path(folder),
            range(len(known)),
            loaded.model,
            loaded.tokenizer,
            task_of,
            feature_extractor=at2_extractor(loaded),
            split_target_by="token",
        )
        trainer.generations_save_path.mkdir()
        given = {number: question.answer for number, question in enumerate(known)}
        (trainer.generations_save_path / "0_of_1.json").write_text(json.dumps(given))
        trainer.generate()  # nothing: the answers are given
        trainer.compute_features_and_outputs()
        estimator = trainer.train(batch_size=len(known), device="cpu")
    weights = estimator.linear.weight.detach()[0].tolist()
    return {"weights": weights, "seconds": time.process_time() - start, "questions": len(known)}


def at2(weights: list[float]) -> Callable[[LoadedModel, Question], Work]:
    def prepare(loaded: LoadedModel, question: Question) -> Work:
        from at2 import AT2Attributor, AT2ScoreEstimator

        def work() -> Explained:
            task, estimator = at2_task(loaded, question), AT2ScoreEstimator(at2_extractor(loaded))
            estimator.linear.weight.data[:] = torch.tensor(weights)
            scores = AT2Attributor(task, estimator).get_attribution_scores(token_start=0, token_end=1)
            ranges = [range(*pair) for pair in task.source_token_ranges]
            return spread(ranges, scores.tolist(), len(question.case.generation.ids)), {}

        return work

    return prepare


TOOLS = (
    Tool(
        "llmxai, deletion path",
        llmxai("deletion_path"),
        "tokens",
        "always: a certificate (here an error of at most {error} nats, {converged} within tolerance)",
    ),
    Tool(
        "llmxai, layer integrated gradients",
        llmxai("layer_integrated_gradients"),
        "tokens",
        "always: a certificate (here an error of at most {error} nats, {converged} within tolerance)",
    ),
    Tool(
        "llmxai, measured effects",
        llmxai_effects,
        "words",
        "always: a 90 % interval of every effect (here ± {half_width} nats, median)",
    ),
    Tool("llmxai, gradient-weighted rollout", llmxai("gradient_weighted_rollout"), "tokens", "no"),
    Tool(
        "Captum, layer integrated gradients",
        captum_gradients,
        "tokens",
        "no: `LayerIntegratedGradients` returns a convergence delta on request, but asked through "
        "`LLMGradientAttribution` it ends in an AttributeError",
    ),
    Tool("Captum, feature ablation", captum_ablation, "tokens", "no (every single ablation is exact)"),
    Tool("Inseq, saliency", inseq("saliency"), "tokens", "no"),
    Tool(
        "Inseq, integrated gradients",
        inseq("integrated_gradients"),
        "tokens",
        "on request: a convergence delta (`return_convergence_delta`)",
    ),
    Tool("FlashTrace", flashtrace, "tokens", "no"),
    Tool(
        "ContextCite, sentences",
        context_cite("sentence"),
        "sentences",
        "no: nothing of how well its fit explains the ablations",
    ),
    Tool("ContextCite, words", context_cite("word"), "words", "no: nothing of how well its fit explains the ablations"),
)


def at2_tool(weights: list[float]) -> Tool:
    return Tool("AT2, trained here", at2(weights), "tokens", "no: only its loss in training")
