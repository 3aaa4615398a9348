"""From a prompt or a chat to the answer that is explained, for every kind of model, and its foil."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, groupby

from transformers import PreTrainedTokenizerBase

from llmxai.errors import OptionError, PromptError
from llmxai.generation.chat import require_text
from llmxai.generation.prompt import WINDOW, Prompt, encode, require_embedded, require_fits, token_texts
from llmxai.generation.replay import replay
from llmxai.generation.template import thoughts_in
from llmxai.models import LoadedModel, ModelKind, adapter_of
from llmxai.models.adapters.classifier import class_number, classified, label_names
from llmxai.names import Progress, quiet
from llmxai.settings import Decoding
from llmxai.text import group_words, quoted
from llmxai.types import Answer, Foil, Generation, PromptTokens, Role


def with_foil(loaded: LoadedModel, generation: Generation, *, foil: str) -> Generation:
    """The same answer, to be explained against `foil`: another answer, or another class of a classifier.

    The first generated token that differs from the foil's token in the same place gets that token as its `Foil`; its F
    is then log p(token) - log p(foil's token), in nats. White space before the answer also counts as part of the foil.

    Raises PromptError if the two do not differ in any token that both have.
    """
    require_foil(foil)
    found = (
        _class(loaded, generation, foil) if loaded.kind is ModelKind.CLASSIFIER else _token(loaded, generation, foil)
    )
    return replace(generation, foil=found, request={**generation.request, "foil": foil})


NO_RESPONSE = "The response is empty: there is no token to explain. Give the answer's text."


def require_response(response: str | None) -> None:
    """Raise PromptError for a response that is no answer. Needs no model."""
    if response is not None:
        require_text(response, what="The response")
        if not response:
            raise PromptError(NO_RESPONSE)


def require_foil(foil: str | None) -> None:
    """Raise PromptError for a foil that is no answer. Needs no model."""
    if foil is not None:
        require_text(foil, what="The foil")
        if not foil.strip():
            raise PromptError("The foil is empty: there is nothing to explain the answer against. Give another answer.")


def _class(loaded: LoadedModel, generation: Generation, foil: str) -> Foil:
    names = label_names(loaded.model)
    number = class_number(names, foil, name=loaded.name)
    if number == generation.generated_ids[0]:
        raise PromptError(f"The foil {foil!r} is the class of the answer itself. Choose another: {', '.join(names)}.")
    return Foil(t=0, id=number, text=names[number])


def _token(loaded: LoadedModel, generation: Generation, foil: str) -> Foil:
    said = generation.texts[generation.prompt_len :]
    ids, texts = _encoded(loaded, generation, foil)
    require_embedded(loaded, ids)
    pairs = zip(generation.generated_ids, said, ids, texts, strict=False)
    for t, (own, own_text, other, other_text) in enumerate(pairs):
        spelt_alike = own_text.strip() and own_text.strip() == other_text.strip()
        if own != other and not spelt_alike:
            return Foil(t=t, id=other, text=other_text or str(loaded.tokenizer.convert_ids_to_tokens(other)))
    raise PromptError(
        f"The foil {foil!r} does not differ from the answer {''.join(said)!r} in any token that both have. Give the "
        f"other answer from its first word on."
    )


def _encoded(loaded: LoadedModel, generation: Generation, foil: str) -> tuple[Sequence[int], Sequence[str]]:
    """Ids of the foil and the text that each adds in place of the answer, with the answer's leading white space.

    Some tokenizers add a space before the first word, others take it from the text.
    """
    answer = "".join(generation.texts[generation.prompt_len :])
    wanted = answer[: len(answer) - len(answer.lstrip())] + foil.lstrip()
    before = generation.ids[generation.source_len : generation.prompt_len]
    found = spellings_after(loaded.tokenizer, before, wanted)
    ids = found.exact[0] if found.exact else found.plain
    return ids, _texts_after(loaded.tokenizer, before, ids)


def answer(
    loaded: LoadedModel,
    prompt: Prompt | PromptTokens | Generation,
    *,
    response: str | None = None,
    foil: str | None = None,
    decoding: Decoding = Decoding(),
    progress: Progress = quiet,
) -> Generation:
    """The answer to a prompt: the model's own, or `response`; with `foil`, to be explained against it.

    `prompt` is raw text, chat messages, or ids with their roles; an existing answer is returned unchanged. A
    classifier's answer is its most likely class, or the class that `response` names.

    >>> answer(loaded, "The capital of France is", response=" Paris.").texts

    Raises PromptError, OptionError, UnsupportedModelError and NonFiniteError.
    """
    if isinstance(prompt, Generation):
        if response is not None:
            raise OptionError("Both a generation and a response were given, and each is an answer. Leave one out.")
        found = prompt
    else:
        tokens = prompt if isinstance(prompt, PromptTokens) else encode(loaded, prompt)
        if response is not None:
            found = force_response(loaded, tokens, response=response)
        else:
            found = generate(loaded, tokens, decoding=decoding, progress=progress)
    return found if foil is None else with_foil(loaded, found, foil=foil)


def generate(
    loaded: LoadedModel, prompt: PromptTokens, *, decoding: Decoding = Decoding(), progress: Progress = quiet
) -> Generation:
    """The model's own answer, with the log-prob (nats, from the raw logits) of every id when it was chosen.

    The caller's random state is preserved. Raises NonFiniteError if the logits are NaN.
    """
    return generate_many(loaded, [prompt], decoding=decoding, progress=progress)[0]


def generate_many(
    loaded: LoadedModel,
    prompts: Sequence[PromptTokens],
    *,
    decoding: Decoding = Decoding(),
    batch_size: int = 8,
    progress: Progress = quiet,
) -> tuple[Generation, ...]:
    """The answers to all prompts, `batch_size` of them per pass; the same as `generate` one by one.

    `progress` is called with the tokens that the pass in hand has given each of its answers, and the most it may give.

    Rows are padded on the left and the padding is masked, so log-probs differ by rounding only (1e-4 nats in float32).
    Prompts of about the same length share a batch. These run one by one: sampled answers, since each has its own random
    stream; prompts with less room in the context than the rest; and models that cache more than keys and values.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; expected at least 1.")
    adapter = adapter_of(loaded.model)
    if decoding.temperature > 0 or not adapter.keeps_prefix(loaded.model):
        batch_size = 1
    found: dict[int, Generation] = {}
    rooms = {i: room_for(loaded, prompt, decoding) for i, prompt in enumerate(prompts)}
    order = sorted(range(len(prompts)), key=lambda i: (rooms[i], len(prompts[i].ids)))
    for room, alike in groupby(order, key=rooms.__getitem__):
        chosen = list(alike)
        for first in range(0, len(chosen), batch_size):
            part = chosen[first : first + batch_size]
            batch = [prompts[i] for i in part]
            answers = adapter.answers(
                loaded.model,
                name=loaded.name,
                prompts=batch,
                decoding=decoding,
                room=room,
                tokenizer=loaded.tokenizer,
                progress=progress,
            )
            used = asdict(decoding) | {"max_new_tokens": room, "do_sample": decoding.temperature > 0}
            for i, one in zip(part, answers, strict=True):
                found[i] = _generation(loaded, prompts[i], one, decoding={} if one.classes else used)
    return tuple(found[i] for i in range(len(prompts)))


def room_for(loaded: LoadedModel, prompt: PromptTokens, decoding: Decoding) -> int:
    """Most tokens that the answer may have: the requested number, within the model's context."""
    limit = loaded.answer_length
    own = len(prompt.ids) - prompt.source_len  # on the side that generates
    return decoding.max_new_tokens if limit is None else min(decoding.max_new_tokens, limit - own)


def force_response(loaded: LoadedModel, prompt: PromptTokens, *, response: str) -> Generation:
    """`response` as the answer, in the tokens that the model would have said it in; or the class of that name.

    After the prompt, the tokens read exactly as the response. Where several sequences do, the most probable is taken.
    Reasoning that the prompt begins is ended before a response that does not end it. `notes` says so.

    Raises PromptError for an empty response, one that does not fit into the model's context, or an unknown class.
    """
    if loaded.kind is ModelKind.CLASSIFIER:
        given = classified(loaded.model, prompt, name=loaded.name, label=response)
        return _generation(loaded, prompt, given, response=response)
    require_response(response)
    prompt = _thoughts_ended(loaded, prompt, response)
    before = () if prompt.source_len else prompt.ids
    found = spellings_after(loaded.tokenizer, before, response)
    if not found.plain:
        raise PromptError(NO_RESPONSE)
    ways = found.exact or (found.plain,)
    own = len(prompt.ids) - prompt.source_len
    require_fits(loaded.answer_length, own + min(map(len, ways)), what="The prompt with the response", name=loaded.name)
    require_embedded(loaded, found.plain)
    if not found.exact:
        said = "".join(_texts_after(loaded.tokenizer, before, found.plain))
        note = f"The tokenizer of {loaded.name} cannot write the response exactly: its tokens read {quoted(said, 80)}."
        prompt = replace(prompt, notes=(*prompt.notes, note))
    answers = [Answer(ids=ids, logprobs=None, stop="given") for ids in ways]
    generations = [_generation(loaded, prompt, each, response=response) for each in answers]
    return generations[0] if len(generations) == 1 else _most_probable(loaded, generations)


def _most_probable(loaded: LoadedModel, generations: Sequence[Generation]) -> Generation:
    """Of the same text in different tokens."""
    room = loaded.answer_length
    fit = [each for each in generations if room is None or len(each.ids) - each.source_len <= room]
    scored = sorted(((sum(replay(loaded, each).logprobs), i) for i, each in enumerate(fit)), reverse=True)
    best, chosen = scored[0]
    others = f", the next one {scored[1][0]:.2f}" if len(scored) > 1 else ""
    note = (
        f"{len(generations)} sequences of tokens read exactly as the given answer. The most probable one is explained: "
        f"its log-probs sum to {best:.2f} nats{others}."
    )
    return replace(fit[chosen], notes=(*fit[chosen].notes, note))


def _thoughts_ended(loaded: LoadedModel, prompt: PromptTokens, response: str) -> PromptTokens:
    """The prompt, with the end of the reasoning that it begins if the response has none."""
    if not prompt.thinks or prompt.thinks in response:
        return prompt
    text = f"\n{prompt.thinks}\n\n"
    found = spellings_after(loaded.tokenizer, prompt.ids, text)
    ids = found.exact[0] if found.exact else found.plain
    note = (
        f"The prompt begins reasoning, and the given answer does not end it: {prompt.thinks} was put before the "
        f"answer. Give the reasoning and {prompt.thinks} with the answer to explain both."
    )
    return replace(
        prompt,
        ids=(*prompt.ids, *ids),
        roles=(*prompt.roles, *[Role.TEMPLATE] * len(ids)),
        thinks="",
        notes=(*prompt.notes, note),
    )


@dataclass(frozen=True)
class Spellings:
    """A text as token ids: the sequences that read exactly so in their place, and what the tokenizer gives for it
    alone."""

    exact: tuple[tuple[int, ...], ...]
    plain: tuple[int, ...]


def spellings_after(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], text: str) -> Spellings:
    """`text` as it can follow the ids `before`.

    Many tokenizers put a space before the first word of any text. The text is also encoded behind others, such as the
    end of what is before, whose own ids are then taken off.
    """

    def encoded(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    plain = encoded(text) if text else ()
    tail = list(before[-WINDOW:])
    decoded = str(tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    found = [plain]
    for front in dict.fromkeys((decoded, *FRONTS)) if before else ():
        own, both = encoded(front), encoded(front + text)
        if both[: len(own)] == own:
            found.append(both[len(own) :])
    exact = [ids for ids in dict.fromkeys(found) if ids and "".join(_texts_after(tokenizer, before, ids)) == text]
    return Spellings(tuple(exact), plain)


FRONTS = ("\n", "a", ".", "1")
"""Texts behind which another is encoded as in the middle of a text."""


def _texts_after(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each of `ids` adds behind the ids before them."""
    tail = tuple(before[-WINDOW:])
    return token_texts(tokenizer, (*tail, *ids))[len(tail) :]


def _generation(
    loaded: LoadedModel,
    prompt: PromptTokens,
    given: Answer,
    *,
    decoding: dict[str, object] | None = None,
    response: str | None = None,
) -> Generation:
    """Prompt and answer as one sequence with texts, roles and words."""
    ids = (*prompt.ids, *given.ids)
    # the two sides of an encoder-decoder are separate texts; a class is not a token of the tokenizer
    sides = (prompt.ids,) if given.classes else (ids[: prompt.source_len], ids[prompt.source_len :])
    texts = tuple(text for side in sides for text in token_texts(loaded.tokenizer, side))
    roles = (*prompt.roles, *_answer_roles(texts[len(prompt.ids) :] or [""] * len(given.ids), opened=prompt.thinks))
    words = group_words(texts, roles[: len(texts)])
    if given.classes:
        texts, words = (*texts, given.classes[given.ids[0]]), (*words, (len(texts), len(ids)))
    generation = Generation(
        ids=ids,
        prompt_len=len(prompt.ids),
        roles=roles,
        texts=texts,
        words=words,
        logprobs=given.logprobs,
        stop=given.stop,
        request=dict(prompt.request) | ({} if response is None else {"response": response}),
        decoding=decoding or {},
        source_len=prompt.source_len,
        parts=prompt.parts,
        notes=prompt.notes,
    )
    return replace(generation, classes=given.classes, read_at=given.read_at) if given.classes else generation


def _answer_roles(texts: Sequence[str], *, opened: str) -> list[Role]:
    """`thinking` for tokens of the answer that begin in reasoning or in its marks, `generated` for the rest."""
    spans = thoughts_in("".join(texts), opened=opened, whole=True).spans
    starts = accumulate((len(text) for text in texts), initial=0)
    return [
        Role.THINKING if any(start <= at < end for start, end in spans) else Role.GENERATED
        for at, _ in zip(starts, texts, strict=False)
    ]
