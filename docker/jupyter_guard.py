"""No Jupyter server without a strong token, however it was started.

`install.sh` puts this file into the image's environment, with a .pth file that imports it whenever a Python of that
environment starts. A command can hide its options from the entry point (`bash -c`, `python -m jupyterlab`, a
configuration file, a variable). It cannot hide the server's state from the server: each one makes a Tornado HTTP
server from its settings before it opens a port, and that is where they are checked. docs/image.md says what is not
covered.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, NoReturn

CHECKED = "tornado.httpserver"
SHORTEST_TOKEN = 16
SHORTEST_COOKIE_SECRET = 32
OWN_PROVIDERS = {"IdentityProvider", "PasswordIdentityProvider"}


def refuse(reason: str) -> NoReturn:
    print(f"llmxai: this image starts no Jupyter server {reason}", file=sys.stderr, flush=True)
    sys.exit(2)


def check(settings: dict[str, Any]) -> None:
    """Exit with 2 and one sentence if the settings of a Jupyter server let in anyone without a strong token."""
    provider = settings["identity_provider"]
    kind = type(provider)
    if kind.__module__ != "jupyter_server.auth.identity" or kind.__name__ not in OWN_PROVIDERS:
        refuse(f"whose visitors are identified by {kind.__module__}.{kind.__name__}; use JUPYTER_TOKEN.")
    token = provider.token or ""
    if not token.strip():
        refuse("without a token: set JUPYTER_TOKEN, and leave out the option that empties it.")
    if token.split() != [token]:
        refuse("whose token holds white space; set JUPYTER_TOKEN to the output of: openssl rand -hex 24")
    if len(token) < SHORTEST_TOKEN:
        refuse(f"whose token has {len(token)} characters; expected at least {SHORTEST_TOKEN}.")
    if getattr(provider, "hashed_password", ""):
        refuse("that also lets in a password; use JUPYTER_TOKEN alone.")
    if settings.get("disable_check_xsrf"):
        refuse("with disable_check_xsrf: another page in the same browser could run code.")
    if len(settings.get("cookie_secret") or b"") < SHORTEST_COOKIE_SECRET:
        refuse(f"whose cookie_secret is shorter than {SHORTEST_COOKIE_SECRET} bytes: cookies could be forged.")


def watch(module: Any) -> None:
    """Check the settings of every Jupyter application that this module's HTTP server is made for."""
    plain = module.HTTPServer.initialize

    def initialize(self: Any, request_callback: Any, *arguments: Any, **options: Any) -> Any:
        settings = getattr(request_callback, "settings", {})
        if "identity_provider" in settings:
            check(settings)
        return plain(self, request_callback, *arguments, **options)

    module.HTTPServer.initialize = initialize


class Finder:
    """Finds one module, the usual way, and has it watched as soon as it is loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == CHECKED else None
        if spec is not None and spec.loader is not None:
            plain = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                plain(module)
                watch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
