"""The pipeline in one function: answer, replay, attribute, remove, cross-check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from llmxai.crosscheck import RULE, cross_check
from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.explanation import DELETION, GRADIENTS, ROLLOUT, Explanation
from llmxai.generation import ChatInputs, answer, chat_inputs, generate_many, replay, require_foil
from llmxai.inputs import AnyModel, AnyPrompt, loaded_model, numbered, prompt_tokens, prompts_of, require_alone
from llmxai.methods import (
    METHODS,
    Target,
    chosen_targets,
    estimated,
    measure_effects,
    missing_rows,
    require_method,
    traced,
    with_missing_rows,
)
from llmxai.methods.attention.rollout import VARIANTS
from llmxai.methods.features import require_path_options
from llmxai.methods.perturbation.removal import prompt_units
from llmxai.methods.tracing import MOST_ROWS
from llmxai.models import LoadedModel, ModelKind
from llmxai.models.embedding import input_device
from llmxai.models.identity import environment_of
from llmxai.models.memory import plan_for, require_fits
from llmxai.models.precision import in_precision
from llmxai.models.speed import in_words, layer_operations, predicted_seconds
from llmxai.names import StageProgress, quiet
from llmxai.settings import Compute, Decoding, Settings, require_known
from llmxai.types import Effects, Generation, PromptTokens, Replay, Scores

AskedTargets = str | Target | Sequence[str | Target] | None
"""What `explain` takes as targets."""

STAGES = {
    GRADIENTS: "integrating gradients",
    DELETION: "integrating the deletion path",
    ROLLOUT: "rolling out attention",
}
"""What progress calls the methods that are always computed."""
SHORT = 1e10
"""Operations of a pass, times targets, below which no device takes a minute, so that its rate need not be measured."""
MINUTE = 60.0

Found = Callable[[Generation, Sequence[Target], Replay, Effects | None], None]
"""Called with the answer and its targets once it is replayed (effects None), and again once removals are measured."""


def explain(
    model: AnyModel,
    prompt: AnyPrompt | Generation,
    *,
    response: str | None = None,
    foil: str | None = None,
    documents: Sequence[Any] | None = None,
    documents_in: str = "auto",
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    continue_final_message: bool = False,
    targets: AskedTargets = None,
    decoding: Decoding = Decoding(),
    max_new_tokens: int | None = None,
    settings: Settings = Settings(),
    progress: StageProgress = quiet,
    found: Found = quiet,
) -> Explanation:
    """Explain one answer: every token of it, or the given targets.

    `model`: a `LoadedModel`, a name or folder, a model with its tokenizer, or a text-generation pipeline. `prompt`:
    text (passed to the model unchanged), chat messages (through the model's chat template), token ids, a tokenizer's
    output, or an existing answer (a `Generation`). `response` is explained instead of a generated answer; for a
    classifier it names the class. With `foil`, another answer, the first token in which the two differ is explained as
    a contrast. `targets`: what of the answer is explained, one or several of `token` (the default: each of them),
    `word`, `sentence`, `answer` (all of it at once), `i:j` (a range of generated tokens) and any text of the answer. A
    target of several tokens is their joint log-prob and costs as much as one token. `max_new_tokens` overrides that of
    `decoding`. Removals are measured first: `found` is called with the answer and its targets once it is replayed, and
    again with their effects, long before the gradients are done.

    With messages may come `documents` ([{title, text}]; also with text), `tools` (JSON schemas or functions), variables
    of the chat template (`chat_template_kwargs={"enable_thinking": False}`), and an assistant's turn to continue
    (`continue_final_message`). Documents go to the chat template; if it takes none, or with `documents_in="user"`, they
    stand before the text of the user's last message. What a template would leave out is refused. Which tokens carry
    which document, turn or tool: `explanation.generation.parts`.

    Every target's sources are given twice: directly, and traced through the answer's own words to the prompt.

    If attention rollout or its variant is not defined for the model (linear attention, state space), it is refused with
    the reason (`Scores.refused`), and everything else is computed. A model stored in 16 bits computes in float32
    (`Compute.precision`).

    >>> explain("smollm2", "The capital of France is", max_new_tokens=4)
    >>> explain("smollm2", "The capital of France is", targets=["answer", "Paris"])

    Raises UserError (see `llmxai.errors`) for everything that the caller can correct.
    """
    require_methods(settings)
    require_foil(foil)
    chat = chat_inputs(
        documents=documents,
        documents_in=documents_in,
        tools=tools,
        chat_template_kwargs=chat_template_kwargs,
        continue_final_message=continue_final_message,
    )
    loaded = loaded_model(model)
    require_settings(loaded, settings)
    decoding = _decoding(decoding, max_new_tokens)
    given = response is not None or isinstance(prompt, Generation)
    watched = partial(progress, "reading the answer" if given else _answering(loaded, decoding))
    watched(0, 1)
    asked = _asked(loaded, prompt, chat)
    generation = answer(loaded, asked, response=response, foil=foil, decoding=decoding, progress=watched)
    chosen = chosen_targets(generation, targets)
    with in_precision(loaded, settings.compute.precision) as exact:
        return explained(
            exact, generation, chosen, settings, environment=environment_of(loaded), progress=progress, found=found
        )


def _answering(loaded: LoadedModel, decoding: Decoding) -> str:
    """What progress calls the model's answering, with the most tokens that it counts up to."""
    if loaded.kind is ModelKind.CLASSIFIER:
        return "choosing a class"
    return f"generating, at most {decoding.max_new_tokens} tokens"


def _asked(loaded: LoadedModel, prompt: AnyPrompt | Generation, chat: ChatInputs) -> PromptTokens | Generation:
    if not isinstance(prompt, Generation):
        return prompt_tokens(loaded, prompt, chat)
    require_alone(chat, "an answer and its prompt")
    return prompt


def explained(
    loaded: LoadedModel,
    generation: Generation,
    targets: tuple[Target, ...],
    settings: Settings,
    *,
    environment: Mapping[str, Any],
    progress: StageProgress = quiet,
    found: Found = quiet,
) -> Explanation:
    """All measurements of an answer, in the precision of the given model."""
    progress("replaying", 0, 1)
    replayed = replay(loaded, generation)
    found(generation, targets, replayed, None)
    more = missing_rows(generation, targets)
    require_room(loaded, generation, settings.compute, progress, targets=max(len(targets), min(len(more), MOST_ROWS)))
    measured = _measured(loaded, generation, (*targets, *more), settings, replayed, progress)
    if measured is not None and found is not quiet:  # a regression for every target, for the caller alone
        found(generation, targets, replayed, estimated(measured, prior=None).of_first(len(targets)))
    scores = _scores(loaded, generation, targets, settings, f_of(replayed, targets, generation), progress)
    gradients, deletion, rollout = (scores[name] for name in (GRADIENTS, DELETION, ROLLOUT))
    variant = scores[settings.rollout.variant]
    judged, stage = deletion if deletion.refused is None else gradients, "tracing through the answer"
    progress(stage, 0, 1)
    watched = partial(progress, stage)
    followed = with_missing_rows(loaded, generation, targets, judged, compute=settings.compute, progress=watched)
    if measured is not None:
        measured = estimated(measured, prior=followed.rows_for((*targets, *more)) if judged is deletion else None)
    units = prompt_units(generation)[0] if measured is None else measured.units
    trace = traced(generation, targets, followed, units=units, effects=measured)
    effects = None if measured is None else measured.of_first(len(targets))
    return Explanation(
        generation=generation,
        targets=targets,
        replay=replayed,
        scores=scores,
        effects=effects,
        trace=trace,
        checks=cross_check(
            generation,
            targets,
            gradients=gradients,
            deletion=deletion,
            rollout=rollout,
            variant=variant,
            effects=effects,
            rule=RULE,
        ),
        settings=settings,
        computed=_computed(gradients, rollout, variant)
        | {"replay_tolerance": replayed.tolerance, "precision": _precision(loaded, generation, replayed)},
        environment=environment,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _scores(
    loaded: LoadedModel,
    generation: Generation,
    targets: tuple[Target, ...],
    settings: Settings,
    f_input: torch.Tensor,
    progress: StageProgress,
) -> dict[str, Scores]:
    """Both gradients, rollout, its variant and the methods of `settings.also`, by name."""
    known = {"targets": targets, "features": settings.features, "compute": settings.compute, "f_input": f_input}

    def computed(name: str, **options: Any) -> Scores:
        entry, stage = METHODS[name], STAGES.get(name, name.replace("_", " "))
        progress(stage, 0, 1)
        given = {key: value for key, value in known.items() if entry.accepts(key)}
        if entry.accepts("progress"):
            given["progress"] = partial(progress, stage)
        return entry.function(loaded, generation, **given, **options)

    def scored(name: str, **options: Any) -> Scores:
        return _or_refused(name, generation, len(targets), partial(computed, name, **options))

    asked = settings.rollout
    gradients = computed(GRADIENTS, **vars(settings.gradients))
    deletion = scored(DELETION, **vars(settings.deletion))
    rollout = scored(ROLLOUT, residual=asked.residual, head_fusion=asked.head_fusion)
    scores = {GRADIENTS: gradients, DELETION: deletion, ROLLOUT: rollout}
    for name in (asked.variant, *settings.also):
        if name not in scores:
            scores[name] = scored(name)
    return scores


def f_of(replayed: Replay, targets: Sequence[Target], generation: Generation) -> torch.Tensor:
    """F of every target with the real input, float64."""
    return torch.tensor([replayed.f_of(one, generation.prompt_len) for one in targets], dtype=torch.float64)


def _measured(
    loaded: LoadedModel,
    generation: Generation,
    targets: tuple[Target, ...],
    settings: Settings,
    replayed: Replay,
    progress: StageProgress,
) -> Effects | None:
    """The effects on `targets`: those asked for and, as a check of each traced step, the answer's other units.

    The latter cost no forward pass. None if nothing is removed.
    """
    if settings.removal is None:
        return None
    watched = partial(progress, "removing parts of the text")
    watched(0, 1)
    return measure_effects(
        loaded,
        generation,
        targets=targets,
        removal=settings.removal,
        f_input=f_of(replayed, targets, generation),
        progress=watched,
    )


def _precision(loaded: LoadedModel, generation: Generation, replayed: Replay) -> dict[str, Any]:
    """What the weights are stored in, what was computed in, and how far the log-probs are from those recorded."""
    recorded = generation.logprobs
    largest = None
    if recorded is not None:
        largest = max(abs(a - b) for a, b in zip(recorded, replayed.logprobs, strict=True))
    return {
        "stored": str(loaded.stored_dtype).removeprefix("torch."),
        "computed": str(loaded.dtype).removeprefix("torch."),
        "largest_difference": largest,
    }


def explain_many(
    model: AnyModel,
    prompts: Iterable[Any],
    *,
    batch_size: int = 8,
    response: str | Sequence[str | None] | None = None,
    foil: str | Sequence[str | None] | None = None,
    documents: Sequence[Any] | None = None,
    documents_in: str = "auto",
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    continue_final_message: bool = False,
    targets: AskedTargets = None,
    decoding: Decoding = Decoding(),
    max_new_tokens: int | None = None,
    settings: Settings = Settings(),
    progress: StageProgress = quiet,
) -> Iterator[Explanation]:
    """The explanations of several prompts in order, each as soon as it is ready; the same as one by one.

    `prompts`: an iterable of prompts as in `explain`, a tokenizer's batch, or a table (datasets, pandas, pyarrow) with
    a column `prompt`, `messages` or `text`, and maybe `documents` and `tools`. `batch_size` of them are answered
    together, then each answer is explained by itself. `response` and `foil` are one for all prompts, or a list with one
    for each (None: none). Everything else is as in `explain`. All prompts are encoded first, so an invalid one raises a
    PromptError with its number at once; explanations before a later error are not lost.

    >>> for explanation in explain_many("smollm2", ["The sky is", "The sea is"]): print(explanation.summary())
    """
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; expected at least 1.")
    require_methods(settings)
    for number, each in enumerate([foil] if foil is None or isinstance(foil, str) else foil, start=1):
        with numbered(number):
            require_foil(each)
    chat = chat_inputs(
        documents=documents,
        documents_in=documents_in,
        tools=tools,
        chat_template_kwargs=chat_template_kwargs,
        continue_final_message=continue_final_message,
    )
    loaded = loaded_model(model)
    require_settings(loaded, settings)
    decoding = _decoding(decoding, max_new_tokens)
    asked = prompts_of(loaded, prompts, chat)
    responses, foils = (_one_each(name, each, len(asked)) for name, each in (("response", response), ("foil", foil)))

    def explanations() -> Iterator[Explanation]:
        for first in range(0, len(asked), batch_size):
            batch = asked[first : first + batch_size]
            watched = partial(progress, f"generating {first + 1} to {first + len(batch)} of {len(asked)}")
            watched(0, 1)
            own = responses[first : first + batch_size]
            left_open = (one for one, text in zip(batch, own, strict=True) if text is None)
            new = [one for one in left_open if not isinstance(one, Generation)]
            generated = iter(generate_many(loaded, new, decoding=decoding, batch_size=batch_size, progress=watched))
            for number, (one, text) in enumerate(zip(batch, own, strict=True), start=first + 1):
                if text is None and not isinstance(one, Generation):
                    one = next(generated)
                each = partial(_numbered, progress, f"{number} of {len(asked)}")
                with numbered(number):
                    given = answer(loaded, one, response=text, foil=foils[number - 1])
                yield explain(loaded, given, targets=targets, settings=settings, progress=each)

    return explanations()


def _one_each(name: str, value: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """One text for each of `count` prompts. Raises OptionError for another number of them."""
    if value is None or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise OptionError(f"{name} is a list of {len(value)} for {count} prompts. Give one for each, or one for all.")
    return list(value)


def require_methods(settings: Settings) -> None:
    """Raise OptionError for a variant or another method that does not exist. Needs no model."""
    require_known("variant", settings.rollout.variant, tuple(variant_names()))
    for name in settings.also:
        require_method(name)


def require_settings(loaded: LoadedModel, settings: Settings) -> None:
    """Raise OptionError for a baseline that the model does not have, before anything is computed."""
    require_path_options(loaded, features=settings.features, baseline=settings.gradients.baseline)
    if settings.removal is not None and settings.removal.operator == "baseline":
        require_path_options(loaded, features=settings.features, baseline=settings.removal.baseline)


def variant_names() -> list[str]:
    """The methods that may stand next to plain rollout: those that give every target a row of attention."""
    return [*(variant.name for variant in VARIANTS), "gradient_weighted_rollout"]


def require_room(
    loaded: LoadedModel,
    generation: Generation,
    compute: Compute,
    progress: StageProgress = quiet,
    *,
    targets: int | None = None,
) -> None:
    """Report how long an explanation will take, if long, and the plan for its gradients, unless the caller made one.

    Raises InsufficientMemoryError, before gradients are computed, if no setting fits.
    """
    tokens, n = len(generation.ids), targets or generation.n_targets
    plan, checkpoint = None, bool(compute.checkpoint)
    if compute.chunk_tokens is None and compute.checkpoint is None:
        plan = plan_for(loaded.model, tokens=tokens, targets=n, dtype=loaded.dtype, computing=loaded.computing)
        require_fits(plan, name=loaded.name, tokens=tokens, dtype=loaded.dtype)
        checkpoint = plan.checkpoint
    long = expected_time(loaded, tokens=tokens, targets=n, checkpoint=checkpoint)
    if long is not None:
        progress(f"expected to take {long}", 0, 1)
    if plan is not None:
        progress(f"planned {plan.sentence()}", 0, 1)


def expected_time(loaded: LoadedModel, *, tokens: int, targets: int, checkpoint: bool = False) -> str | None:
    """In words how long an explanation takes; None if it is less than a minute."""
    if layer_operations(loaded.model, tokens=tokens) * targets < SHORT:
        return None
    seconds = predicted_seconds(
        loaded.model,
        tokens=tokens,
        targets=targets,
        device=input_device(loaded.model),
        dtype=loaded.dtype,
        checkpoint=checkpoint,
        widened=loaded.computing is not None,
    )
    return in_words(seconds) if seconds > MINUTE else None


def _or_refused(name: str, generation: Generation, targets: int, work: Callable[[], Scores]) -> Scores:
    """The scores or, if the method is not defined for the model, the reason."""
    try:
        return work()
    except (UnsupportedModelError, OptionError) as error:  # of options: the method's own defaults do not fit the model
        nothing = torch.zeros(targets, len(generation.ids), dtype=torch.float64)
        reason = str(error)
        return Scores(name, nothing, nothing.bool(), signed=False, settings={"refused": reason}, refused=reason)


def _computed(gradients: Scores, rollout: Scores, variant: Scores) -> dict[str, Any]:
    return {
        **gradients.settings,
        "rollout": dict(rollout.settings),
        "variant": {
            "method": variant.method,
            "source": METHODS[variant.method].source,
            "settings": dict(variant.settings),
        },
        "crosscheck": asdict(RULE),
    }


def _decoding(decoding: Decoding, max_new_tokens: int | None) -> Decoding:
    return decoding if max_new_tokens is None else replace(decoding, max_new_tokens=max_new_tokens)


def _numbered(progress: StageProgress, number: str, stage: str, done: int, total: int) -> None:
    progress(f"{number}: {stage}", done, total)
