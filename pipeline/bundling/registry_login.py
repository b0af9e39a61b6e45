"""Logging in to an OCI registry: what the library oras leaves out.

It reads logins in the home folder only, tells nothing of a program for logins that fails, knows one
form of a registry's question who we are, keeps a token that has expired, and sends a token to
whatever host a registry names.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urljoin, urlsplit

from engines.errors import DeployError
from pipeline.workflow.digests import parse_json, read_json

_HEADER = "Authorization"
# One of several questions in a header (RFC 9110, 11.6.1), and its parameters.
_CHALLENGE = re.compile(
    r"(?P<kind>[\w-]+)(?P<parameters>(?:[ ,]+\w+ *= *(?:\"[^\"]*\"|[^\s\",]+))*) *(?:,|$)", re.ASCII
)
_PARAMETER = re.compile(r"(\w+) *= *(?:\"([^\"]*)\"|([^\s\",]+))", re.ASCII)
# How long a program that keeps logins may take, which may ask for the password of a key ring, and
# how many bytes it may print.
_HELPER_SECONDS = 60.0
_MAX_PRINTED = 1 << 16
# Why a login is asked for again.
REFUSED = "it does not take the login that is kept for it"
# A name that says that the password is a token, which is exchanged for another.
_NO_NAME = "<token>"


def kept_logins() -> dict[str, Any]:
    """Returns the logins that docker and oras have kept, in the form that the library expects.

    Raises:
        DeployError: The file of logins is not one of docker's.
    """
    folder = os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()
    path = Path(folder) / "config.json"
    if not path.is_file():
        return {"auths": {}, "credsStore": None, "credHelpers": {}}
    try:
        kept = read_json(path)
        auths = {}
        for name, entry in dict(kept.get("auths") or {}).items():
            host = urlsplit(name if "://" in name else f"//{name}").netloc.lower()
            auth = entry.get("auth")
            if not auth and entry.get("username"):
                auth = _basic(entry["username"], entry.get("password", ""))
            auths[host] = {"auth": auth} if auth else {}
        helpers = dict(kept.get("credHelpers") or {})
        store = kept.get("credsStore")
    except (AttributeError, TypeError, ValueError) as error:
        raise DeployError(f"{path} has not the form of docker's logins: {error}") from error
    except DeployError as error:
        raise DeployError(error.message) from error
    return {"auths": auths, "credsStore": store, "credHelpers": helpers}


def _basic(name: str, password: str) -> str:
    """Returns a login as Basic authentication sends it."""
    return base64.b64encode(f"{name}:{password}".encode()).decode()


def _run(program: str, text: str) -> tuple[int, bytes]:
    """Runs one of docker's programs; returns its exit code and what it prints, up to a bound.

    It ends with all that it has started.

    Raises:
        TimeoutError: It takes too long.
        OSError: It cannot be run.
    """
    began = time.monotonic()
    with subprocess.Popen(
        [program, "get"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        timer = threading.Timer(_HELPER_SECONDS, _end, [process.pid])
        timer.start()
        try:
            with suppress(BrokenPipeError), cast("IO[bytes]", process.stdin) as asking:
                asking.write(text.encode())
            printed = cast("IO[bytes]", process.stdout).read(_MAX_PRINTED)
            if len(printed) == _MAX_PRINTED:
                _end(process.pid)
            code = process.wait()
        finally:
            timer.cancel()
            _end(process.pid)
    if time.monotonic() - began >= _HELPER_SECONDS:
        raise TimeoutError
    return code, printed


def _end(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


class Login:
    """Answers a registry that asks who it is, with the login that docker or oras have kept."""

    def __init__(self, auth: Any, registry: str) -> None:
        """Takes the place of the library's own answers.

        Args:
            auth: The library's `TokenAuth`.
            registry: The registry's host and port.
        """
        self._auth, self._registry, self._basic = auth, registry.lower(), ""
        self._problem = ""  # of the program that keeps logins
        self._by_token = auth.authenticate_request
        auth.authenticate_request = self.answer
        auth._get_auth_from_creds_store = self._ask_helper
        auth._auth_config = kept_logins()

    def _ask_helper(self, suffix: str, host: str) -> str | None:
        """Returns the login that one of docker's programs keeps for a host; None if it has none.

        What the program prints is not repeated: it may hold the password.
        """
        if self._problem:  # the library asks for other names of this machine, too
            return None
        program = f"docker-credential-{suffix}"
        try:
            code, printed = _run(program, host)
            kept = parse_json(printed)
            name, password = kept["Username"], kept["Secret"]
            if code or not isinstance(name, str) or not isinstance(password, str):
                raise ValueError
        except FileNotFoundError:
            self._problem = f"; {program}, which keeps docker's logins, is not on the PATH"
        except TimeoutError:
            self._problem = f"; {program} has not answered for {_HELPER_SECONDS:g} s"
        except OSError as error:
            self._problem = f"; {program} cannot be run: {error.strerror or error}"
        except (ValueError, KeyError, TypeError):
            ended = f"exit code {code}" if code >= 0 else f"signal {-code}"
            self._problem = f"; {program} tells no login for it ({ended})"
        else:
            if name != _NO_NAME:
                return _basic(name, password)
            self._problem = (
                f"; {program} keeps an identity token for it, and a name and a password are needed"
            )
        return None

    def answer(
        self, response: Any, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        """Returns the headers of a second try, and whether there is to be one.

        Raises:
            DeployError: No login is kept, the registry refuses it, or another host asks for one.
        """
        host = urlsplit(response.url).netloc.lower()
        if host != self._registry:
            raise DeployError(f"another host, {host}, asks for a login")
        asked = response.headers.get("Www-Authenticate") or ""
        known = {match["kind"].lower(): match for match in _CHALLENGE.finditer(asked)}
        if "bearer" in known:
            return self._token(response, known["bearer"]["parameters"], headers, refresh)
        if "basic" in known:
            return self._password(response, headers)
        if asked:
            raise DeployError(f"it asks for a login in a way that is not known: {asked!r:.80}")
        raise DeployError(f"it refuses ({response.status_code} {response.reason})")

    def _password(self, response: Any, headers: dict[str, str]) -> tuple[dict[str, str], bool]:
        kept = getattr(self._auth, "_basic_auth", "")
        if not kept:
            raise DeployError(f"it asks for a login{self._problem}")
        if response.request.headers.get(_HEADER) == f"Basic {kept}":
            raise DeployError(REFUSED)
        self._basic = f"Basic {kept}"
        return {**headers, _HEADER: self._basic}, True

    def _token(
        self, response: Any, parameters: str, headers: dict[str, str], refresh: bool
    ) -> tuple[dict[str, str], bool]:
        challenge = {one[0].lower(): one[1] or one[2] for one in _PARAMETER.findall(parameters)}
        if not challenge.get("realm"):
            raise DeployError("it asks for a token, and does not say where to get one")
        challenge["realm"] = urljoin(response.url, challenge["realm"])
        # In the one form that the library reads.
        listed = ",".join(f'{name}="{value}"' for name, value in challenge.items())
        response.headers["Www-Authenticate"] = f"Bearer {listed}"
        expired = response.request.headers.get(_HEADER) == f"Bearer {self._auth.token}"
        try:
            answer: tuple[dict[str, str], bool] = self._by_token(
                response, headers, refresh=refresh or expired
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise DeployError("its answer to the login does not have a token") from error
        if not answer[1]:
            raise DeployError(f"it gives no token for the login{self._problem}")
        return answer

    def headers(self, method: str, url: str, headers: Mapping[str, str] | None) -> dict[str, str]:
        """Returns the headers to send: who we are, but to no other host than the registry.

        Only tokens are got from other hosts (by GET), as the registry's answer says.
        """
        sent = dict(headers or {})
        if urlsplit(url).netloc.lower() != self._registry:
            return sent if method == "GET" else {k: v for k, v in sent.items() if k != _HEADER}
        if self._basic:
            sent.setdefault(_HEADER, self._basic)
        return sent
