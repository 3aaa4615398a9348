"""A classifier's answer: one class, as if it were the one token that the model says."""

from __future__ import annotations

import torch

from llmxai.errors import NonFiniteError, PromptError, UnsupportedModelError
from llmxai.generation.prompt import PromptTokens
from llmxai.generation.words import group_words, token_texts
from llmxai.models import LoadedModel
from llmxai.models.seams import input_device, positions_read, undisturbed
from llmxai.types import Generation, Role


def classify(loaded: LoadedModel, prompt: PromptTokens, *, label: str | None = None) -> Generation:
    """The most likely class of `prompt`, or the class `label` (its name or number), with its log-prob (nats).

    The class stands behind the prompt as the one generated token: its id is the class's number, its text its name.

    Raises PromptError for a label that the model does not have and NonFiniteError where the logits are NaN.
    """
    model = loaded.model
    ids = torch.tensor([prompt.ids], device=input_device(model))
    with undisturbed(model), torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
        try:
            read = positions_read(model, prompt.ids)
        except UnsupportedModelError:
            read = ()
    if not torch.isfinite(logits).all():
        raise NonFiniteError(
            f"{loaded.name}: the logits of the classes hold NaN or infinity in {loaded.dtype}. Load it with --dtype "
            f"float32 (or bfloat16), or check the weights."
        )
    names = label_names(loaded)
    chosen = int(logits.argmax()) if label is None else class_number(names, label, name=loaded.name)
    texts = (*token_texts(loaded.tokenizer, prompt.ids), names[chosen])
    roles = (*prompt.roles, Role.GENERATED)
    return Generation(
        ids=(*prompt.ids, chosen),
        prompt_len=len(prompt.ids),
        roles=roles,
        texts=texts,
        words=(*group_words(texts[:-1], roles[:-1]), (len(prompt.ids), len(prompt.ids) + 1)),
        logprobs=None if label is not None else (float(torch.log_softmax(logits, dim=-1)[chosen]),),
        stop="class" if label is None else "given",
        request=dict(prompt.request) | ({} if label is None else {"response": label}),
        classes=tuple(names),
        read_at=read,
    )


def label_names(loaded: LoadedModel) -> list[str]:
    """The names of a classifier's classes, in the order of its logits."""
    known = loaded.model.config.id2label
    return [str(known.get(number, f"LABEL_{number}")) for number in range(loaded.model.config.num_labels)]


def class_number(names: list[str], label: str, *, name: str) -> int:
    """The class that `label` names, by its name or its number. Raises PromptError for one that is not there."""
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise PromptError(
        f"{name} has no class {label!r}. Known: {', '.join(map(repr, names))}, or a number from 0 to {len(names) - 1}."
    )
