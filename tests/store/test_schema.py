"""What does not fit is said with its place, what came, what was expected and a fix; what fits is read unchanged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmxai.errors import OutputError
from llmxai.store import read_document, read_folder
from llmxai.store.reading import LARGEST_JSON
from tests.report.run_sample import write_sample
from tests.report.sample import Sample, measured, sample

Change = Callable[[dict[str, Any]], object]


def explanation() -> Sample:
    return measured(sample(["<s>", " a", " b"], [" x", " y"]), statuses=["confirmed"] * 2)


FAULTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda d: d["targets"][1].pop("gap"), "targets.1.gap is missing."),
    "a text": (lambda d: d["targets"][0].update(gap="0.1"), "targets.0.gap is '0.1'; expected a valid number."),
    "a truth": (lambda d: d["targets"][0].update(gap=True), "targets.0.gap is True; expected a valid number."),
    "too large": (lambda d: d["targets"][0].update(gap=1e31), "targets.0.gap is 1e+31; expected less than or equal to"),
    "no tolerance": (lambda d: d["targets"][0].update(tolerance=-1), "tolerance is -1; expected greater than or equal"),
    "certain": (lambda d: d["targets"][0].update(replayed_logprob=5), "replayed_logprob is 5; expected less than"),
    "a list": (lambda d: d.update(computed=[1]), "computed is a list of 1; expected a valid dictionary"),
    "a status": (
        lambda d: d["targets"][0].update(status="perfect"),
        "targets.0.status is 'perfect'; expected 'confirmed'",
    ),
    "no words": (lambda d: d["words"].pop(), "words end at token 4; expected 5, the number of tokens."),
    "an empty word": (lambda d: d["words"].insert(0, [0, 0]), "words.0 is [0, 0]; expected a range of tokens"),
    "a target": (lambda d: d["targets"].pop(), "one behind it has no replayed_logprob and is no target"),
    "an index": (lambda d: d["tokens"][2].update(index=7), "tokens.2.index is 7; expected 2."),
    "another token": (lambda d: d["targets"][0].update(id=9), "with the id 9; expected token 3, with the id 3"),
    "a source": (
        lambda d: d["targets"][0]["sources"]["rollout"][0].update(index=5),
        "sources.rollout.0 has no index below 5",
    ),
    "a unit": (lambda d: d["targets"][0]["sources"]["leave_one_out"][0].update(unit=2), "has no unit below 2"),
    "no method": (lambda d: d["targets"][0]["sources"].pop("lime"), "targets.0.sources has no 'lime'"),
    "units": (
        lambda d: d["ablations"]["units"].__setitem__(0, [1, 9]),
        "ablations.units.0 is [1, 9]; expected a range",
    ),
    "other units": (lambda d: d["effects"]["units"].pop(0), "effects.units of the kind prompt are not the units"),
    "an effect": (lambda d: d["effects"]["low"][0].pop(), "effects.low has another shape; expected 2 rows"),
    "no effect": (lambda d: d["effects"]["low"][0].__setitem__(0, None), "effects.low is null in other places"),
    "no removal": (lambda d: d.update(ablations=None), "ablations is None; expected a mapping, since effects"),
    "no verdict": (lambda d: d["targets"][0].update(verdict=None), "targets.0.verdict is missing and verdict there"),
    "layers": (lambda d: d["targets"][0]["curve"]["entropy"].pop(), "curve has lists of 5 and 6 layers"),
    "a referee": (lambda d: d["targets"][0]["referee"].update(sources=[8]), "names the unit 8; expected one below 2."),
    "an interval": (lambda d: d["targets"][0]["referee"].update(difference=None), "since there is an interval."),
    "no row": (lambda d: d["targets"][0]["rollout"].update(sink_mass=None), "has no sink_mass or no null_divergence"),
    "what a terminal obeys": (lambda d: d["targets"][0]["sources"].update({"\x1b[2J": 3}), r"sources.\x1b[2J is 3;"),
}


@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_said_with_what_came_what_was_expected_and_a_fix(tmp_path: Path, change: Change, said: str) -> None:
    document, maps = explanation()
    change(document)
    folder = write_sample(tmp_path / "one", (document, maps))
    with pytest.raises(OutputError) as error:
        read_folder(folder)
    told = str(error.value)
    assert told.startswith(f"{folder}: its explanation.json does not match its schema: ")
    assert said in told
    assert told.endswith("Explain the answer again, or copy the folder again from where it came from.")
    assert told.isprintable()


def test_what_fits_is_read_unchanged_with_whole_numbers_where_none_are_needed(tmp_path: Path) -> None:
    document, maps = explanation()
    document["targets"][0]["gap"] = 0  # as another program may write 0.0
    document["targets"][0]["unknown"] = {"of": "a later version"}
    folder = write_sample(tmp_path / "one", (document, maps))
    found, same = read_folder(folder)
    given = json.loads((folder / "explanation.json").read_bytes())
    assert isinstance(found["targets"][0]["gap"], float)
    assert {key: found[key] for key in given} == given | {"targets": found["targets"]}
    for own, other in zip(found["targets"], given["targets"], strict=True):
        assert {key: own[key] for key in other} == other
    assert list(found["computed"]) == list(given["computed"]), "the order in which settings are shown"
    assert all((maps[name] == same[name]).all() for name in maps)


@pytest.mark.parametrize("name", ["explanation.json", "maps.safetensors"])
@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "device"])
def test_only_files_are_read(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_sample(tmp_path / "one", explanation())
    (folder / name).rename(tmp_path / name)
    make: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(tmp_path / name),
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
    }
    make[kind](folder / name)
    with pytest.raises(OutputError, match=r"is no file|links are not followed"):
        read_folder(folder)


def test_a_file_that_is_larger_than_any_of_ours_is_not_read(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "one", explanation())
    os.truncate(folder / "explanation.json", LARGEST_JSON + 1)
    with pytest.raises(OutputError, match=f"expected at most {LARGEST_JSON}"):
        read_document(folder)


@pytest.mark.parametrize("text", ["[" * 60 + "]" * 60, "[" * 100_000, '{"a": NaN}', '{"a": 1e999}', '{"\\ud800": 1}'])
def test_json_that_none_of_ours_is(tmp_path: Path, text: str) -> None:
    folder = write_sample(tmp_path / "one", explanation())
    (folder / "explanation.json").write_text(text)
    with pytest.raises(OutputError, match=r"nested|which is not a number|surrogates not allowed"):
        read_document(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e31])
def test_maps_hold_numbers(tmp_path: Path, value: float) -> None:
    folder = write_sample(tmp_path / "one", explanation())
    maps = load_file(folder / "maps.safetensors")
    maps["rollout"][0, 0] = value
    save_file(maps, folder / "maps.safetensors")
    with pytest.raises(OutputError, match="'rollout' holds NaN, infinity or a number beyond"):
        read_folder(folder)
