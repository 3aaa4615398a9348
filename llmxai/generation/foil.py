"""What the model did not say: the first token in which another answer differs from the one that was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmxai.errors import PromptError
from llmxai.generation.prompt import require_text
from llmxai.generation.texts import WINDOW, token_texts
from llmxai.models import LoadedModel, ModelKind
from llmxai.models.adapters.classifier import class_number, label_names
from llmxai.types import Foil, Generation


def with_foil(loaded: LoadedModel, generation: Generation, *, foil: str) -> Generation:
    """The same answer, to be explained against `foil`: another answer, or another class of a classifier.

    The first generated token that differs from the foil's token at its place gets that one as its `Foil`: its F is then
    log p(token) - log p(foil's token), nats. White space before the answer counts as standing before the foil too.

    Raises PromptError where the two do not differ in any token that both have.
    """
    require_text(foil, what="The foil")
    if not foil.strip():
        raise PromptError("The foil is empty: there is nothing to explain the answer against. Give another answer.")
    found = (
        _class(loaded, generation, foil) if loaded.kind is ModelKind.CLASSIFIER else _token(loaded, generation, foil)
    )
    return replace(generation, foil=found, request={**generation.request, "foil": foil})


def _class(loaded: LoadedModel, generation: Generation, foil: str) -> Foil:
    names = label_names(loaded.model)
    number = class_number(names, foil, name=loaded.name)
    if number == generation.generated_ids[0]:
        raise PromptError(f"The foil {foil!r} is the class of the answer itself. Name another: {', '.join(names)}.")
    return Foil(t=0, id=number, text=names[number])


def _token(loaded: LoadedModel, generation: Generation, foil: str) -> Foil:
    said = generation.texts[generation.prompt_len :]
    ids, texts = _encoded(loaded, generation, foil)
    pairs = zip(generation.generated_ids, said, ids, texts, strict=False)
    for t, (own, own_text, other, other_text) in enumerate(pairs):
        spelt_alike = own_text.strip() and own_text.strip() == other_text.strip()
        if own != other and not spelt_alike:
            return Foil(t=t, id=other, text=other_text or str(loaded.tokenizer.convert_ids_to_tokens(other)))
    raise PromptError(
        f"The foil {foil!r} does not differ from the answer {''.join(said)!r} in any token that both have. Give an "
        f"answer that the model did not give, from its first word on."
    )


def _encoded(loaded: LoadedModel, generation: Generation, foil: str) -> tuple[list[int], Sequence[str]]:
    """Ids of the foil and what each adds to the text where the answer stands, with the answer's white space before it.

    Some tokenizers put a space of their own before the first word, others take it from the text.
    """
    answer = "".join(generation.texts[generation.prompt_len :])
    wanted = answer[: len(answer) - len(answer.lstrip())] + foil.lstrip()
    before = generation.ids[generation.source_len : generation.prompt_len][-WINDOW:]
    for text in (wanted, foil.lstrip(), foil):
        ids = list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        texts = token_texts(loaded.tokenizer, (*before, *ids))[len(before) :]
        if "".join(texts) == wanted:
            break
    return ids, texts
