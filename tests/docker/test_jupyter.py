"""The real Jupyter of the image, with its guard: no form of a command opens it without a strong token."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from needed import needed

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-notebook"
TOKEN = "0123456789abcdef"
PLAIN = ("--no-browser", "--port=0", "--allow-root")
EMPTY = "--IdentityProvider.token="


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if not (ENVIRONMENT / ".made").exists():
        needed("no JupyterLab", "notebook")


def variables(home: Path, **others: str) -> dict[str, str]:
    return {"PATH": f"{ENVIRONMENT / 'bin'}:/usr/bin:/bin", "HOME": str(home), **others}


def opened(home: Path, *command: str, **others: str) -> subprocess.CompletedProcess[str]:
    """How the command ended. A server that does start is stopped after a while, and then its end is no exit 2."""
    return subprocess.run(
        ["timeout", "--signal=KILL", "60", *command],
        env=variables(home, **others),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(ended: subprocess.CompletedProcess[str], words: str) -> None:
    assert ended.returncode == 2, ended.stdout + ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("llmxai: ")]
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.parametrize(
    "command",
    [
        ["jupyter", "lab", EMPTY, *PLAIN],
        ["jupyter", "server", "--ServerApp.token", "", *PLAIN],
        ["jupyter-lab", "--NotebookApp.token=", *PLAIN],
        ["python", "-m", "jupyter", "lab", EMPTY, *PLAIN],
        ["python", "-I", "-m", "jupyterlab", EMPTY, *PLAIN],
        ["python", "-m", "jupyter_server", EMPTY, *PLAIN],
        ["python", "-c", f"from jupyter_server.serverapp import main; main({[EMPTY, *PLAIN]})"],
        ["bash", "-c", f"cd / && exec jupyter server {EMPTY}'' {' '.join(PLAIN)}"],
        ["env", "JUPYTER_TOKEN=", "jupyter", "server", "--IdentityProvider.token= \t ", *PLAIN],
    ],
    ids=lambda command: " ".join(command)[:60],
)
def test_an_empty_token_is_refused_whatever_the_form(tmp_path: Path, command: list[str]) -> None:
    refused(opened(tmp_path, *command), "no Jupyter server without a token")


@pytest.mark.parametrize("place", ["--config", "JUPYTER_CONFIG_PATH", ".jupyter"])
def test_a_configuration_file_that_empties_it_is_refused(tmp_path: Path, place: str) -> None:
    folder = tmp_path / ".jupyter" if place == ".jupyter" else tmp_path / "elsewhere"
    folder.mkdir()
    if place == ".jupyter":
        (folder / "jupyter_server_config.json").write_text(json.dumps({"IdentityProvider": {"token": ""}}))
    else:
        (folder / "jupyter_server_config.py").write_text("c.IdentityProvider.token = ''\n")
    options = ["--config", str(folder / "jupyter_server_config.py")] if place == "--config" else []
    others = {place: str(folder)} if place.isupper() else {}
    ended = opened(tmp_path, "jupyter", "server", *options, *PLAIN, JUPYTER_TOKEN=TOKEN, **others)
    refused(ended, "no Jupyter server without a token")


@pytest.mark.parametrize(
    ("token", "words"),
    [(" " * 20, "without a token"), ("short", "has 5 characters"), (f"{TOKEN} \n", "holds white space")],
)
def test_a_weak_token_is_none(tmp_path: Path, token: str, words: str) -> None:
    refused(opened(tmp_path, "jupyter", "server", *PLAIN, JUPYTER_TOKEN=token), words)
    (tmp_path / "secret").write_text(token)
    refused(opened(tmp_path, "jupyter", "server", *PLAIN, JUPYTER_TOKEN_FILE=str(tmp_path / "secret")), words)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--ServerApp.disable_check_xsrf=True", "with disable_check_xsrf"),
        ("--ServerApp.cookie_secret=x", "whose cookie_secret is shorter than 32 bytes"),
        ("--PasswordIdentityProvider.hashed_password=argon2:x", "also lets in a password"),
        (
            "--ServerApp.identity_provider_class=jupyter_server.auth.identity.LegacyIdentityProvider",
            "identified by jupyter_server.auth.identity.LegacyIdentityProvider",
        ),
        ("--ServerApp.tornado_settings={'disable_check_xsrf': True}", "with disable_check_xsrf"),
    ],
)
def test_ways_around_the_token_are_refused(tmp_path: Path, option: str, words: str) -> None:
    refused(opened(tmp_path, "jupyter", "server", f"--IdentityProvider.token={TOKEN}", option, *PLAIN), words)


def answer(port: int, token: str) -> int:
    url = f"http://127.0.0.1:{port}/api/contents"
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_with_a_strong_token_it_starts_and_asks_for_it(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = ["jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    with subprocess.Popen(
        command,
        env=variables(tmp_path, JUPYTER_TOKEN=TOKEN),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            for _ in range(240):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None
                time.sleep(0.25)
            assert [answer(port, token) for token in (TOKEN, "", "wrong", f"{TOKEN}0")] == [200, 403, 403, 403]
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_other_programs_of_the_environment_run_as_before(tmp_path: Path) -> None:
    ended = opened(
        tmp_path, "python", "-c", "import tornado.httpserver, tornado.web as w; print(w.Application().settings)"
    )
    assert ended.returncode == 0, ended.stderr
    ended = opened(tmp_path, "jupyter", "server", "list")
    assert ended.returncode == 0, ended.stderr
