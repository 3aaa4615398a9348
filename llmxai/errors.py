"""The errors that llmxai raises on purpose.

    LlmxaiError
    └── UserError                the request cannot be fulfilled; the message says what came, what was expected, a fix
        ├── ModelLoadError       the model could not be found, reached, read or fitted into memory
        ├── UnsupportedModelError  the model loads, but this explanation is not defined for it (encoder, ...)
        ├── InsufficientMemoryError  the memory planner finds no setting that fits
        ├── PromptError          prompt, messages or response cannot be turned into token ids
        ├── OptionError          an option has an unknown or invalid value, or two options contradict
        ├── RecipeError          a recipe, or the data that it names, is invalid
        ├── OutputError          the output folder cannot be written, or what is read from one is not ours
        ├── EvidenceError        an evidence log cannot be read or written, is damaged, or has no such record
        ├── KeyFileError         a key is missing, readable by others, or not a key
        └── NumericalError       the model gave numbers that cannot be explained
            ├── ReplayError      the replayed log-probs are not those recorded while generating
            └── NonFiniteError   NaN or infinity where a number was needed

A `UserError` prints one paragraph and exits 2; anything else keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class LlmxaiError(Exception):
    """The root of the tree."""


class UserError(LlmxaiError):
    """The request cannot be fulfilled; the message suggests a fix."""


class ModelLoadError(UserError):
    """The model could not be found, reached, read, or fitted into memory."""


class UnsupportedModelError(UserError):
    """The model exists, but this explanation cannot be computed with it."""


class InsufficientMemoryError(UserError):
    """The memory planner finds no setting that fits."""


class PromptError(UserError):
    """Prompt, messages or response cannot be turned into token ids."""


class OptionError(UserError, ValueError):
    """An option's value is unknown, out of range, or contradicts another."""


class RecipeError(UserError):
    """A recipe, or the data that it names, is invalid."""


class OutputError(UserError):
    """An output folder cannot be written, or one that is read is not ours."""


class EvidenceError(UserError):
    """An evidence log cannot be read or written, is damaged, or does not hold the requested record."""


class KeyFileError(UserError):
    """A key file is missing, cannot be read, can be read by others, or holds something else."""


class NumericalError(UserError):
    """The model gave numbers that cannot be explained."""


class ReplayError(NumericalError):
    """Replayed log-probs differ from those recorded while generating."""


class NonFiniteError(NumericalError):
    """NaN or infinity where a number was needed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence, with a leading space, that suggests the nearest of `known`; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
