"""Load a frozen language model or classifier with its tokenizer by name, or fail with one clear paragraph."""

from __future__ import annotations

import inspect
import json
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from llmxai.errors import LlmxaiError, ModelLoadError, OptionError, UnsupportedModelError
from llmxai.models.adapters import adapter_of
from llmxai.models.embedding import input_device
from llmxai.models.families import ModelKind, auto_class, kind_of
from llmxai.models.finding import (
    FoundModel,
    find_model,
    first_line,
    is_local,
    knows_text,
    not_found,
    quantization_argument,
    quantization_config,
    quantization_of,
    refusal_of_hub,
    require_utf8,
)
from llmxai.models.forward import context_limit, frozen_eval, own_errors
from llmxai.models.identity import ModelIdentity, identify, stamps
from llmxai.models.memory import free_memory, weight_bytes
from llmxai.text import bounded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ADAPTER = "adapter_config.json"
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", ADAPTER)

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that Accelerate makes."""
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu|xla)(:\d+)?")

DeviceMap = str | Mapping[str, int | str]


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model, its tokenizer, and where they came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None
    quantization: str | None = None
    adapter: str | None = None
    weight_digest: str | None = None
    """SHA-256 of the single weight file; None until `weight_files` are hashed, and for a model made in memory."""
    weight_files: tuple[Path, ...] = ()
    computing: torch.dtype | None = None
    """What it computes in, where that is not the dtype of its weights (llmxai/models/precision.py)."""
    stored: torch.dtype | None = None
    """What its weights were stored in, where this is a widened copy."""
    adapter_files: tuple[Path, ...] = ()
    remote_code: bool = False
    """Whether code from the model's folder was allowed to run."""
    read: tuple[tuple[int, int], ...] = ()
    """Size and time of each of these files when they were loaded."""

    def __repr__(self) -> str:
        millions = self.model.num_parameters() / 1e6
        stored = self.quantization or str(self.stored_dtype).removeprefix("torch.")
        adapter = "" if self.adapter is None else f", adapter {self.adapter!r}"
        return (
            f"LoadedModel({self.name!r}: {type(self.model).__name__}, {millions:,.1f}M parameters, {stored}{adapter})"
        )

    @cached_property
    def identity(self) -> ModelIdentity:
        """Digests of everything that decides what the model computes."""
        return identify(self)

    @property
    def dtype(self) -> torch.dtype:
        """What its activations are computed in."""
        return self.computing or cast(torch.dtype, self.model.dtype)

    @property
    def stored_dtype(self) -> torch.dtype:
        """What its weights are stored in."""
        return self.stored or cast(torch.dtype, self.model.dtype)

    @property
    def kind(self) -> ModelKind:
        return kind_of(self.model)

    @property
    def context_length(self) -> int | None:
        """The most tokens of prompt and answer together; of an encoder-decoder, of the source. None: no limit."""
        return context_limit(self.model)

    @property
    def answer_length(self) -> int | None:
        """The most tokens on the side that generates: `context_length`, except for an encoder-decoder."""
        return context_limit(self.model, side="decoder")


def load(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a language model (causal or encoder-decoder) or a classifier of texts, frozen and in evaluation mode.

    `name_or_path`: `smollm2` (the embedded model), a `.gguf` file, a local HuggingFace folder, or a hub name.
    `dtype`: float32, bfloat16, float16, float64 or auto (the checkpoint's; the default).
    `device_map`: Accelerate's (auto, balanced, sequential, cpu, cuda:0, or a dict); the default is auto if there is a
    GPU, else the CPU. `quantize`: 4bit (NF4, double quantisation) or 8bit by bitsandbytes. `adapter`: a PEFT
    adapter's folder or hub name. `trust_remote_code`: let the Python files of the model's folder run, which can do
    anything; records say so.

    >>> load("meta-llama/Llama-3.1-8B-Instruct", dtype="bfloat16", quantize="4bit")

    Raises ModelLoadError, UnsupportedModelError or OptionError; each message suggests a fix.
    """
    require_options(dtype=dtype, device_map=device_map, quantize=quantize)
    if adapter is not None:
        require_adapter(str(adapter))
    found = find_model(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    name, config = found.name, found.config
    if device_map is None and torch.cuda.is_available():
        device_map = "auto"
    arguments = {
        "dtype": _dtype(dtype),
        "device_map": dict(device_map) if isinstance(device_map, Mapping) else device_map,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        **quantization_argument(found, quantize, dtype=_dtype(dtype)),
    }
    if device_map in (None, "cpu"):
        require_memory(found, dtype=stored_dtype(config, dtype), quantize=quantize)
    model, tokenizer = _from_pretrained(found, arguments=arguments)
    if adapter is not None:
        model = _with_adapter(model, str(adapter))
    model.requires_grad_(False)
    model.eval()
    files = _files(found.place, "config.json", revision=revision, code=trust_remote_code)
    adapter_files = () if adapter is None else _files(str(adapter), ADAPTER, revision=None)
    return wrap(
        model,
        tokenizer,
        name=name,
        revision=revision or getattr(config, "_commit_hash", None),
        adapter=str(adapter) if adapter is not None else None,
        weight_digest=found.digest,
        weight_files=files,
        adapter_files=adapter_files,
        remote_code=trust_remote_code,
        read=stamps((*files, *adapter_files)),
    )


def _files(place: str, known: str, *, revision: str | None, code: bool = False) -> tuple[Path, ...]:
    """The files with weights, and with the code that was allowed to run, of a folder or of a name on the hub."""
    found = cached_file(place, known, revision=revision, _raise_exceptions_for_missing_entries=False)
    folder = Path(place) if found is None else Path(found).parent
    patterns = (*WEIGHT_PATTERNS, *(("*.py",) if code else ()))
    return tuple(sorted(path for pattern in patterns for path in folder.glob(pattern)))


def wrap(model: nn.Module, tokenizer: PreTrainedTokenizerBase, **known: Any) -> LoadedModel:
    """Use a model that is already in memory, or a PeftModel around one. The model is not changed.

    >>> wrap(AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name))

    Raises UnsupportedModelError if a later token changes an earlier token's logits (such a model is an encoder), for a
    classifier whose classes are not mutually exclusive, for an encoder-decoder that does not read text, and for an
    adapter that works outside the layers.
    """
    if is_peft(model):
        known.setdefault("adapter", f"in memory: {', '.join(cast(Any, model).active_adapters)}")
        model = adapted_layers(model)
    model = cast(PreTrainedModel, model)
    known.setdefault("quantization", quantization_of(model.config))
    known.setdefault("name", getattr(model.config, "_name_or_path", "") or type(model).__name__)
    loaded = LoadedModel(model=model, tokenizer=tokenizer, **known)
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(
            f"{loaded.name}: {type(model).__name__} reads {model.main_input_name}, not token ids, so there are no "
            "words to which its answer could be attributed. Give a model that reads text."
        )
    adapter_of(model).require_explainable(model, name=loaded.name)
    return loaded


def require_options(*, dtype: str | torch.dtype | None, device_map: DeviceMap | None, quantize: str | None) -> None:
    """Raise OptionError for what no model is loaded with, before anything is looked for."""
    quantization_config(quantize, dtype=_dtype(dtype))
    if device_map is not None and device_map not in SPREAD:
        _require_devices(device_map)


def _require_devices(device_map: DeviceMap) -> None:
    """Raise OptionError for a device that is unknown or that this machine does not have, and for an empty map."""
    if isinstance(device_map, str) and not DEVICE.fullmatch(device_map):
        raise OptionError(
            f"device_map {device_map!r} is unknown. Known: {', '.join(SPREAD)}, a device (cpu, cuda:0), or a dict from "
            "module to device."
        )
    places = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if not places:
        raise OptionError('device_map {} is empty. Leave out --device-map, or give a device such as {"": "cpu"}.')
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    here = ["cpu", *(f"{kind}:{n}" for n in range(count))]
    named = {*here, "cpu:0", "disk", *([str(kind)] if count else [])}
    for place in places:
        number = isinstance(place, int) and not isinstance(place, bool)
        if not (place in range(count) if number else str(place) in named):
            raise OptionError(
                f"device_map {place!r}: there is no such device here, only {', '.join(here)}. Leave out "
                f"--device-map, or give cpu."
            )


def require_adapter(adapter: str) -> None:
    """Raise ModelLoadError if there is no such adapter, before the model is looked for."""
    require_utf8("adapter", adapter)
    if is_local(adapter) and not (Path(adapter) / ADAPTER).is_file():
        raise _no_adapter(adapter, FileNotFoundError(f"there is no {ADAPTER} in it"))
    if (error := refusal_of_hub(adapter, ADAPTER, revision=None)) is not None:
        raise _no_adapter(adapter, error) from error


def _no_adapter(adapter: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{adapter}: cannot be read as a PEFT adapter of this model ({first_line(error)}). Expected a folder, or a "
        f"name on the hub, with {ADAPTER} and adapter_model.safetensors made for the same base model."
    )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    if dtype is None or dtype == "auto":
        return "auto"
    return dtype if isinstance(dtype, torch.dtype) else torch_dtype(dtype)


def torch_dtype(name: str) -> torch.dtype:
    """The floating-point dtype of that name; raises OptionError for an unknown one."""
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r} is unknown. Known: {', '.join(DTYPES)}, and auto for the weights.")
    return DTYPES[name]


def stored_dtype(config: PreTrainedConfig, dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype that the weights will have; raises OptionError for an unknown one."""
    wanted = _dtype(dtype)
    if isinstance(wanted, torch.dtype):
        return wanted
    return cast(torch.dtype, getattr(config, "dtype", None) or torch.float32)


def require_memory(found: FoundModel, *, dtype: torch.dtype, quantize: str | None) -> None:
    """Raise ModelLoadError if the weights need more memory than is free, before any are read."""
    model = without_weights(found)
    quantized = quantize or quantization_of(found.config)
    needed, free = weight_bytes(model, dtype=dtype, quantize=quantized)[0], free_memory()
    if needed > free:
        raise ModelLoadError(
            f"{found.name}: its {model.num_parameters() / 1e9:.1f} billion weights need about {needed / 2**30:.1f} GiB "
            f"and {free / 2**30:.1f} GiB are free. Use a smaller dtype (--dtype bfloat16), --quantize 4bit, or "
            f"--device-map auto, which spreads layers over GPUs, memory and disk."
        )


def without_weights(found: FoundModel) -> PreTrainedModel:
    """The model that a configuration describes; raises ModelLoadError if it contradicts itself."""
    try:
        with init_empty_weights(include_buffers=True):
            model: PreTrainedModel = auto_class(found.kind, found.config).from_config(
                found.config, trust_remote_code=found.trust_remote_code
            )
        model.tie_weights()
    except Exception as error:  # transformers' code of each architecture raises all kinds of errors
        raise not_found(found.name, error) from error
    return model


def _from_pretrained(
    found: FoundModel, *, arguments: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name = found.name
    try:
        shared = {name: arguments[name] for name in ("revision", "trust_remote_code")}
        tokenizer = AutoTokenizer.from_pretrained(found.place, **shared)
        auto = auto_class(found.kind, found.config)
        model, told = auto.from_pretrained(found.place, **arguments, output_loading_info=True)
    except ImportError as error:
        raise ModelLoadError(f"{name}: {first_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelLoadError(
            f"{name}: not enough memory while loading ({first_line(error)}). Use --dtype bfloat16, --quantize 4bit "
            f"or --device-map auto."
        ) from error
    except Exception as error:  # the files are not ours, and their readers raise all kinds of errors
        raise not_found(name, error) from error
    if not knows_text(tokenizer):
        raise ModelLoadError(
            f"{name}: there is no vocabulary of a tokenizer (it cannot encode plain text). Expected tokenizer.json "
            f"next to the weights, as the tokenizer's save_pretrained writes it."
        )
    if missing := sorted(told["missing_keys"]):
        raise ModelLoadError(
            f"{name}: its files hold no weights for {len(missing)} of the parameters of {type(model).__name__} "
            f"({missing[0]!r}, ...), which would be random. Give the complete model."
        )
    return model, tokenizer


PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
"""Settings of an adapter that may be regular expressions over the names of modules; keys of others are, too."""


def _require_patterns(model: PreTrainedModel, adapter: str) -> None:
    """Raise ValueError if an adapter's regular expressions take too long on the names of the model's modules."""
    found = cached_file(adapter, ADAPTER, _raise_exceptions_for_missing_entries=False)
    told = {} if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    patterns = [told[name] for name in PATTERNS if isinstance(told.get(name), str)]
    patterns += [rf"(.*\.)?({key})$" for name in ("rank_pattern", "alpha_pattern") for key in told.get(name) or {}]
    names = [name for name, _ in model.named_modules()]
    if patterns:
        bounded(lambda: [sum(re.fullmatch(pattern, name) is not None for name in names) for pattern in patterns])


def _with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with an adapter that PEFT reads into its layers.

    Raises ModelLoadError if its files do not hold every weight of the adapter and no other, since the rest would be
    random, and UnsupportedModelError if the adapter works outside the layers.
    """
    try:
        from peft import PeftConfig, PeftModel
        from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

        _require_patterns(model, adapter)
        config: Any = PeftConfig.from_pretrained(adapter)
        if config.is_prompt_learning:
            raise _outside_its_layers(adapter, config.peft_type)
        told: list[Any] = []

        class Recorded(MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)):  # type: ignore[misc]
            def load_adapter(self, *arguments: Any, **options: Any) -> Any:
                told.append(super().load_adapter(*arguments, **options))
                return told[-1]

        config.task_type = None  # from_pretrained would choose the class by it
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            whole = Recorded.from_pretrained(model, adapter, config=config)
    except ImportError as error:
        raise ModelLoadError(f"Adapters need PEFT: pip install 'llmxai[peft]'. ({error})") from error
    except LlmxaiError:
        raise
    except Exception as error:  # as above
        raise _no_adapter(adapter, error) from error
    _require_whole(told[-1], adapter)
    return adapted_layers(whole)


def _require_whole(told: Any, adapter: str) -> None:
    """Raise ModelLoadError for weights of an adapter that its files lack, or that the model has no place for."""
    shared = ("vblora_vector_bank", ".tinylora_v.")  # written once, and referred to in every layer
    missing = sorted(name for name in told.missing_keys if not any(part in name for part in shared))
    if missing or told.unexpected_keys:
        absent = f"lack {len(missing)} of its weights ({missing[0]!r}, ...), which would be random" if missing else ""
        extra = sorted(told.unexpected_keys)
        foreign = f"hold {len(extra)} that this model has no place for ({extra[0]!r}, ...)" if extra else ""
        raise ModelLoadError(
            f"{adapter}: its files {' and '.join(filter(None, (absent, foreign)))}, so it is incomplete or was made "
            "for another model. Give the complete adapter, or the base model that it was made for."
        )


def is_peft(model: Any) -> bool:
    """Whether it is a PeftModel; PEFT is optional, and if it was never imported there is none."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def adapted_layers(model: Any) -> PreTrainedModel:
    """The base of a PeftModel, whose layers hold the adapter.

    Raises UnsupportedModelError if they do not; the base then computes something else (prompt tuning, X-LoRA).
    """
    base = cast(PreTrainedModel, model.get_base_model())
    kind = model.active_peft_config.peft_type
    ids = torch.arange(3, device=input_device(base))[None]
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if base.config.is_encoder_decoder else {})}
    with own_errors(base, what="be run with its adapter"), frozen_eval(model), torch.no_grad():
        want, got = (each(**inputs).logits.float() for each in (model, base))
    if want.shape != got.shape or not torch.allclose(want, got, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise _outside_its_layers(f"The adapter of this {type(model).__name__}", kind)
    return base


def _outside_its_layers(what: str, kind: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} ({getattr(kind, 'value', kind)}) works outside the model's layers, where llmxai cannot see it: it "
        "puts learned vectors in front of the text or its keys and values, or mixes several passes. Adapters inside "
        "the layers (LoRA and its relatives) work; to explain the model without the adapter, give the base model "
        "alone (in Python, model.get_base_model() with the tokenizer)."
    )
