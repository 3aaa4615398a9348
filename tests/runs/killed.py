"""Run a recipe in a child that is killed at random moments until it gets through. Prints how often it was killed.

A process of its own (started by test_survival.py): it loads everything once and forks a child for each attempt.
Arguments: model folder, data folder, run folder, seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from settings import make_recipe

from llmxai.runs import run_recipe


def attempt(model: Path, data: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run_recipe(make_recipe(model), out, root=data)
            code = 0
        finally:
            os._exit(code)
    return child


def main() -> None:
    model, data, out = (Path(argument) for argument in sys.argv[1:4])
    draw = random.Random(int(sys.argv[4]))
    torch.set_num_threads(1)
    kills, longest = 0, 1.0
    while True:
        child = attempt(model, data, out)
        deadline = time.monotonic() + draw.uniform(0.02, longest)
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills, longest = kills + 1, longest * 1.12  # so that it gets through in the end, also on a slow machine
                break
            time.sleep(0.002)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, status
            print(kills)
            return


main()
