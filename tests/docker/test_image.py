"""The image's files: linted, and the entry point's refusals, run directly. No Docker engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
TOKEN = "0123456789abcdef"
NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that any user can read, with a `jupyter` that says how it was called."""
    folder = Path(tempfile.mkdtemp())
    try:
        programs = folder / "bin"
        programs.mkdir()
        stub = programs / "jupyter"
        stub.write_text('#!/bin/sh\necho "jupyter $*"\necho "token=${JUPYTER_TOKEN-unset}"\n')
        stub.chmod(0o755)
        for place in (folder, programs):
            place.chmod(0o755)
        shutil.copy(DOCKER / "entrypoint.sh", folder / "entrypoint.sh")
        yield folder
    finally:
        shutil.rmtree(folder)


def enter(home: Path, *arguments: str, root: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    user = None if root or os.getuid() else NOBODY
    return subprocess.run(
        ["sh", str(home / "entrypoint.sh"), *arguments],
        env={"PATH": f"{home / 'bin'}:/usr/bin:/bin", "HOME": str(home), **variables},
        cwd=home,
        user=user,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def refused(ended: subprocess.CompletedProcess[str], words: str) -> None:
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("entrypoint: ")
    assert words in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("lab",), ("jupyter", "lab")])
@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.168.1.5", ""])
def test_no_public_listening_without_a_token(home: Path, arguments: tuple[str, ...], listen: str) -> None:
    ended = enter(home, *arguments, **({"LLMXAI_LISTEN": listen} if listen else {}))
    refused(ended, f"would listen on {listen or '0.0.0.0'} without a token")
    assert "Set JUPYTER_TOKEN" in ended.stderr


@pytest.mark.parametrize("listen", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize(
    ("token", "words"),
    [
        *[(blank, "is empty or blank") for blank in ("", " ", " " * 16, "\t\t", "\n", " \t\r\n\v\f" * 8)],
        *[
            (mixed, "holds white space")
            for mixed in (f"{TOKEN} ", f" {TOKEN}", f"{TOKEN}\n", "01234567 89abcdef", f"{TOKEN}\t")
        ],
        ("short", "has 5 characters; expected at least 16"),
    ],
)
def test_an_empty_a_blank_or_a_short_token_is_none(home: Path, listen: str, token: str, words: str) -> None:
    ended = enter(home, JUPYTER_TOKEN=token, LLMXAI_LISTEN=listen)
    refused(ended, words)
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("secret", ["", " \n", "\t\n\n"])
def test_a_mounted_secret_without_a_token_is_refused(home: Path, secret: str) -> None:
    (home / "secret").write_text(secret)
    refused(enter(home, JUPYTER_TOKEN_FILE=str(home / "secret"), LLMXAI_LISTEN="127.0.0.1"), "is empty or blank")


def test_with_a_token_it_listens_and_the_token_is_on_no_command_line(home: Path) -> None:
    ended = enter(home, "lab", "--ServerApp.shutdown_no_activity_timeout=60", JUPYTER_TOKEN=TOKEN)
    assert ended.returncode == 0, ended.stderr
    command, token = ended.stdout.splitlines()
    assert command.startswith("jupyter lab --no-browser --ip=0.0.0.0 --port=8888 ")
    assert command.endswith("--ServerApp.shutdown_no_activity_timeout=60")
    assert TOKEN not in command
    assert token == f"token={TOKEN}"


def test_the_token_can_be_a_mounted_secret(home: Path) -> None:
    (home / "secret").write_text(TOKEN + "\n")
    assert f"token={TOKEN}" in enter(home, JUPYTER_TOKEN_FILE=str(home / "secret")).stdout
    refused(enter(home, JUPYTER_TOKEN_FILE=str(home / "nothing")), "cannot be read")


def test_alone_with_itself_it_needs_no_token_and_jupyter_makes_one_up(home: Path) -> None:
    ended = enter(home, LLMXAI_LISTEN="127.0.0.1")
    assert ended.returncode == 0
    assert "--ip=127.0.0.1" in ended.stdout
    assert "token=unset" in ended.stdout  # an empty one would switch the token off


@pytest.mark.parametrize(
    "option",
    [
        *("--IdentityProvider.token=", "--ServerApp.token=''", "--NotebookApp.token=x", "--ServerApp.password="),
        *("--ip=0.0.0.0", "--ServerApp.ip=::", "--allow-root", "--ServerApp.allow_root=True", "--config=/tmp/x.py"),
        *("--ServerApp.allow_origin=*", "--ServerApp.allow_unauthenticated_access=True", "--ServerApp.sock=/tmp/s"),
        *("--ServerApp.identity_provider_class=x.Y", "--ServerApp.authorizer_class=x.Y", "--config"),
        *("--ServerApp.login_handler_class=x.Y", "--ServerApp.authenticate_prometheus=False"),
    ],
)
def test_options_that_change_who_may_get_in_are_refused(home: Path, option: str) -> None:
    refused(enter(home, "jupyter", "lab", option, JUPYTER_TOKEN=TOKEN), f"{option} would change who may get in")


def test_other_servers_of_jupyter_are_not_started(home: Path) -> None:
    refused(enter(home, "jupyter", "notebook", JUPYTER_TOKEN=TOKEN), "only `jupyter lab` is started here")


def test_any_other_command_is_run_as_it_is(home: Path) -> None:
    ended = enter(home, "sh", "-c", "echo $0 $1; exit 7", "a b", "c")
    assert (ended.returncode, ended.stdout) == (7, "a b c\n")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try to start it as root")
def test_root_is_refused(home: Path) -> None:
    refused(enter(home, "lab", root=True, JUPYTER_TOKEN=TOKEN), "started as root")


def test_ssh_is_off_by_default_and_wants_keys(home: Path) -> None:
    script = (DOCKER / "entrypoint.sh").read_text()
    assert '[ "${LLMXAI_SSH:-0}" = 1 ]' in script
    refused(enter(home, JUPYTER_TOKEN=TOKEN, LLMXAI_SSH="1"), "needs public keys in")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "authorized_keys").write_text("# nobody yet\n")
    refused(enter(home, JUPYTER_TOKEN=TOKEN, LLMXAI_SSH="1"), "there is no password")


def test_the_healthcheck_asks_jupyter_and_else_runs_the_command(home: Path) -> None:
    """Where no Jupyter runs, the command must answer; one that fails is not healthy."""
    if any(b"jupyter" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)):
        pytest.skip("some Jupyter runs on this machine")
    for code in (0, 3):
        (home / "bin" / "llmxai").write_text(f"#!/bin/sh\nexit {code}\n")
        (home / "bin" / "llmxai").chmod(0o755)
        environment = {"PATH": f"{home / 'bin'}:/usr/bin:/bin"}
        ended = subprocess.run(["sh", str(DOCKER / "healthcheck.sh")], env=environment, timeout=20, check=False)
        assert ended.returncode == code


JUPYTER_STANDS_IN = """
import http.server, socket, socketserver, sys

class Server(socketserver.TCPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET

class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api" else 404)
        self.end_headers()

server = Server((sys.argv[1], 0), Api)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(("listen", "at"), [("", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::", "::1")])
def test_the_healthcheck_asks_where_jupyter_listens(listen: str, at: str) -> None:
    command = [sys.executable, "-c", JUPYTER_STANDS_IN, at, "jupyter"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        codes = []
        for asked in (port, "1"):  # nobody listens on port 1
            environment = {
                "PATH": os.environ["PATH"],
                "LLMXAI_PORT": asked,
                **({"LLMXAI_LISTEN": listen} if listen else {}),
            }
            health = ["sh", str(DOCKER / "healthcheck.sh")]
            ended = subprocess.run(health, env=environment, timeout=20, check=False, capture_output=True)
            codes.append(ended.returncode)
        server.kill()
    assert codes == [0, 1]


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "files",
    [
        ["hadolint", "Dockerfile"],
        ["shellcheck", "locks/install.sh", *(f"docker/{script.name}" for script in DOCKER.glob("*.sh"))],
    ],
)
def test_linted(files: list[str]) -> None:
    program = Path(sys.executable).parent / files[0]
    ended = subprocess.run([str(program), *files[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_what_the_dockerfile_promises() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert stages == ["build", "runtime"]
    users = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert users
    assert users[-1] != "0"
    assert not re.search(r"^(ARG|ENV).*(TOKEN|SECRET|PASSWORD|KEY)", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.12-slim-bookworm@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}


def test_only_what_is_built_from_goes_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        *("llmxai", "recipes", "docker", "locks", "pyproject.toml", "setup.py", "README.md", "LICENSE"),
    }
