"""An explanation in the JSON of Inseq (0.7), which `inseq.FeatureAttributionOutput.load` reads. Needs no library."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from llmxai.errors import OptionError, did_you_mean
from llmxai.store import read_folder
from llmxai.store.reading import stored_name

DEFAULT = "deletion_path"
MAPS = {"layer_integrated_gradients": "integrated_gradients", "attention_rollout": "rollout"}
"""Methods whose maps have other names."""


def to_inseq(folder: Path | str, *, method: str | None = None) -> str:
    """The explanation in a folder as Inseq's JSON: a sequence that continues its prompt, with one method's scores.

    `method`: by default the deletion path or, where that is refused, integrated gradients. A token's own and later
    positions, which have no score, are NaN, as Inseq has them. Step scores: `probability`, and `confirmed` (1 or 0).

    >>> Path("france.json").write_text(to_inseq("runs/france"))

    Raises OptionError for a method that the folder does not have and for an encoder-decoder or a classifier, and
    OutputError for a folder without an explanation.
    """
    document, maps = read_folder(folder)
    generation = document["generation"]
    if generation.get("source_len") or generation.get("classes"):
        raise OptionError(f"{folder}: is of an encoder-decoder or a classifier; Inseq's JSON is written for decoders.")
    chosen = method or (DEFAULT if DEFAULT in maps else "layer_integrated_gradients")
    names = {method: stored_name(method) for method in document["scores"]} | MAPS
    names[document["variant"]["method"]] = "rollout_variant"
    known = [method for method, name in names.items() if name in maps]
    if chosen not in known:
        raise OptionError(
            f"{folder}: has no scores of {chosen!r}.{did_you_mean(chosen, known)} It has: {', '.join(known)}."
        )
    first, tokens = generation["prompt_len"], [_token(one) for one in document["tokens"]]
    scores = maps[names[chosen]].T.astype(np.float32)
    for t in range(scores.shape[1]):
        scores[first + t :, t] = np.nan
    steps = {
        "probability": np.exp([target["replayed_logprob"] for target in document["targets"]]),
        "confirmed": [target["status"] == "confirmed" for target in document["targets"]],
    }
    sequence = {
        "source": tokens[:first],
        "target": tokens,
        "source_attributions": None,
        "target_attributions": _packed(scores),
        "step_scores": {name: _packed(np.asarray(values, dtype=np.float32)) for name, values in steps.items()},
        "sequence_scores": {},
        "attr_pos_start": first,
        "attr_pos_end": len(tokens),
    }
    texts = [one["text"] for one in document["tokens"]]
    info = {
        "attribution_method": chosen,
        "attributed_fn": "log-probability of the generated token (nats)",
        "model_name": document["environment"]["model"]["name"],
        "input_texts": ["".join(texts[:first])],
        "generated_texts": ["".join(texts)],
        "made_by": "llmxai",
    }
    output = {
        "info": info,
        "step_attributions": None,
        "sequence_attributions": [_instance("inseq.data.attribution", "FeatureAttributionSequenceOutput", sequence)],
    }
    return json.dumps(_instance("inseq.data.attribution", "FeatureAttributionOutput", output), ensure_ascii=False)


def _token(token: dict[str, Any]) -> dict[str, Any]:
    return _instance("inseq.utils.typing", "TokenWithId", {"id": token["id"], "token": token["text"]})


def _instance(module: str, name: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {"__instance_type__": [module, name], "attributes": attributes}


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(save({"attribution": np.ascontiguousarray(values)})).decode("ascii")
