"""Logging in to an OCI registry: what the library oras leaves out.

It knows the registries that hand out tokens, and sends a token to whatever host a registry names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from engines.errors import DeployError

_HEADER = "Authorization"


class Login:
    """Answers a registry that asks who it is, with the login that docker or oras have kept."""

    def __init__(self, auth: Any, registry: str) -> None:
        """Takes the place of the library's own answers.

        Args:
            auth: The library's `TokenAuth`, whose logins have been loaded.
            registry: The registry's host and port.
        """
        self._auth, self._registry, self._basic = auth, registry, ""
        self._by_token = auth.authenticate_request
        auth.authenticate_request = self.answer

    def answer(
        self, response: Any, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        """Returns the headers of a second try, and whether there is to be one.

        Raises:
            DeployError: There is no login, the registry does not take it, or another host asks.
        """
        host = urlsplit(response.url).netloc
        if host != self._registry:
            raise DeployError(f"another host, {host}, asks for a login")
        challenge = response.headers.get("Www-Authenticate") or ""
        kind = challenge.partition(" ")[0].lower()
        if kind == "basic":
            kept = getattr(self._auth, "_basic_auth", "")
            if not kept:
                raise DeployError("it asks for a login")
            if response.request.headers.get(_HEADER) == f"Basic {kept}":
                raise DeployError("it does not take the login that is kept for it")
            self._basic = f"Basic {kept}"
            return {**headers, _HEADER: self._basic}, True
        if kind != "bearer" or "realm=" not in challenge:
            asked = f"asks for a login in a way that is not known: {challenge!r:.80}"
            reason = asked if challenge else f"refuses ({response.status_code} {response.reason})"
            raise DeployError(f"it {reason}")
        try:
            answer: tuple[dict[str, str], bool] = self._by_token(response, headers, refresh)
        except (AttributeError, KeyError, TypeError) as error:
            raise DeployError("it answers the login with what is no token") from error
        if not answer[1]:
            raise DeployError("it gives no token for the login")
        return answer

    def headers(self, method: str, url: str, headers: Mapping[str, str] | None) -> dict[str, str]:
        """Returns the headers to send: who we are, but to no other host than the registry.

        Only tokens are got from other hosts (by GET), as the registry's answer says.
        """
        sent = dict(headers or {})
        if urlsplit(url).netloc != self._registry:
            return sent if method == "GET" else {k: v for k, v in sent.items() if k != _HEADER}
        if self._basic:
            sent.setdefault(_HEADER, self._basic)
        return sent
