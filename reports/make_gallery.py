"""Real reports of the embedded model, laid out as one small run: reports/gallery (`make gallery`).

Written anew each time; short answers, so that it takes minutes on two cores and the files stay small.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmxai import Decoding, Explanation, LoadedModel, explain, load
from llmxai.report import rebuild, summarize, to_columns
from llmxai.store import read_folder, write_folder

GALLERY = Path(__file__).parent / "gallery"
QUESTIONS = {
    "1-capital": ([("user", "Which city is the capital of France?")], 8),
    "2-context": (
        [
            ("system", "Answer from the text only."),
            ("user", "The blue box holds 7 keys. How many keys?"),
        ],
        8,
    ),
    "3-french": ([("user", "Quelle est la capitale de l'Italie ?")], 8),
    "4-code": ([("user", "Write a Python function that adds 2 numbers.")], 12),
}


def main() -> None:
    model = load("smollm2")
    with tempfile.TemporaryDirectory(dir=GALLERY.parent, prefix=".gallery-") as scratch:
        run, rows = Path(scratch) / "gallery", []
        for name, (turns, length) in QUESTIONS.items():
            start = time.perf_counter()
            explanation = ask(model, turns, length)
            seconds = time.perf_counter() - start
            print(f"{name}: {seconds:.0f} s", flush=True)
            folder = write_folder(explanation, run / "records" / name, render=lambda *_parts: "")
            rows.append(summarize(read_folder(folder)[0], record=name, seconds=round(seconds, 1)))
        pq.write_table(pa.table(to_columns(rows)), run / "rows.parquet")
        rebuild(run)
        shutil.rmtree(GALLERY, ignore_errors=True)
        run.rename(GALLERY)
    print(GALLERY / "index.html")


def ask(model: LoadedModel, turns: list[tuple[str, str]], length: int) -> Explanation:
    messages = [{"role": role, "content": content} for role, content in turns]
    return explain(model, messages=messages, decoding=Decoding(max_new_tokens=length))


if __name__ == "__main__":
    main()
