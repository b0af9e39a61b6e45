"""A client of a server that speaks the Open Inference Protocol v2, over HTTP or gRPC."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from engines.checks import import_vendor
from engines.contract import Feeds, Outputs, TensorSpec
from engines.errors import DeployError, NotAvailableError, UsageError, suggestion

INSTALL = "pip install 'tritonclient[http,grpc]'"
# By scheme: the client's module, and whether it is encrypted.
_SCHEMES = {
    "http": ("http", False),
    "https": ("http", True),
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
}
_URL_HINT = "write it as in http://127.0.0.1:8000 or grpc://127.0.0.1:8001"
_POLL = 0.2  # seconds between two questions whether a server is ready
# gRPC's own limit of 4 MiB is less than a batch of images. Like HTTP's client, gRPC uses no proxy.
_CHANNEL = (
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.enable_http_proxy", 0),
)
_COUNTERS = ("rows", "requests", "executions", "queue_ns", "compute_ns")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Server:
    """A model of a server.

    Attributes:
        url: http://HOST:PORT or grpc://HOST:PORT, or with https or grpcs.
        name: The model's name on the server; "" if the server has only one.
        version: Its version; "" leaves the choice to the server.
        wait: Seconds to wait until the model is ready.
        timeout: Seconds in which each request has to be answered.
    """

    url: str
    name: str = ""
    version: str = ""
    wait: float = 10.0
    timeout: float = 30.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise UsageError(f"{self.url!r}: {error}", _URL_HINT) from error
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.username or parts.query:
            raise UsageError(f"{self.url!r} is not the address of a server", _URL_HINT)
        try:
            parts.port  # noqa: B018 - raises for a port that is not a number up to 65535
        except ValueError as error:
            raise UsageError(f"{self.url!r}: {error}", _URL_HINT) from error


@dataclass(frozen=True)
class Metadata:
    """What a server says of a model.

    Attributes:
        inputs: Its inputs, `[batch, …]`; () if the server does not tell.
        outputs: Its outputs, likewise.
        largest: The largest batch; None if the server names no limit.
        platform: The server's name for what runs it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    largest: int | None
    platform: str


class Client:
    """A connection to one server. Only one thread may use it at a time.

    Every method raises DeployError if the server does not answer, or answers with an error.
    """

    def __init__(self, server: Server, timeout: float | None = None) -> None:
        """Connects on the first request.

        Raises:
            NotAvailableError: The client library is not installed.
        """
        self._server, self._timeout = server, timeout or server.timeout
        kind, self._encrypted = _SCHEMES[urlsplit(server.url).scheme]
        self._library = import_vendor(f"tritonclient.{kind}", INSTALL)
        self._more: dict[str, Any] = {}
        self._binary: bool | None = None
        # A reply that comes byte by byte has no end, though each byte comes in time.
        self._deadline: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._too_late: tuple[type[BaseException], ...] = ()
        if kind == "grpc":
            self._more = {"client_timeout": self._timeout}
        else:
            late = import_vendor("gevent", INSTALL).Timeout
            self._deadline, self._too_late = functools.partial(late, self._timeout), (late,)
        self._client = self._connect()

    def _connect(self) -> Any:
        address = self._server.url.partition("://")[2].rstrip("/")
        if self._more:
            return self._library.InferenceServerClient(
                address, ssl=self._encrypted, channel_args=list(_CHANNEL)
            )
        secure = {}
        if self._encrypted:  # without a context of its own, it would accept any certificate
            context = import_vendor("gevent.ssl", INSTALL).create_default_context
            secure = {"ssl": True, "ssl_context_factory": context}
        return self._library.InferenceServerClient(
            address, connection_timeout=self._timeout, network_timeout=self._timeout, **secure
        )

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def live(self) -> bool:
        """Whether the server answers."""
        return bool(self._call("is it live", lambda: self._client.is_server_live(**self._more)))

    def ready(self, name: str, version: str) -> bool:
        """Whether a model can be asked."""
        asked = lambda: self._client.is_model_ready(name, version, **self._more)  # noqa: E731
        return bool(self._call(f"is {name} ready", asked))

    def models(self) -> dict[str, dict[str, str]] | None:
        """Returns why each version of a model is not ready, "" if it is, by model and version.

        The version is "" where the server does not tell it. None if it does not list its models,
        which is an extension of the protocol.
        """
        try:
            answer = self._call(
                "list of models", lambda: self._json(self._client.get_model_repository_index)
            )
            entries = answer.get("models", []) if isinstance(answer, dict) else answer
            known: dict[str, dict[str, str]] = {}
            for entry in entries:
                state = entry.get("state", "READY")
                why = "" if state == "READY" else f"{state} {entry.get('reason', '')}".strip()
                version = str(entry.get("version") or "")
                known.setdefault(str(entry["name"]), {})[version] = why
            return known
        except (DeployError, KeyError, TypeError, AttributeError):
            return None

    def metadata(self, name: str, version: str) -> Metadata:
        """Returns the inputs, outputs and largest batch of a model."""
        answer = self._call(
            f"metadata of {name}",
            lambda: self._json(self._client.get_model_metadata, name, version),
        )
        try:
            sides = [
                tuple(_spec(entry) for entry in answer.get(side) or ())
                for side in ("inputs", "outputs")
            ]
            platform = str(answer.get("platform", ""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._error(
                f"the metadata of {name}", f"cannot be understood: {error!r}"
            ) from error
        return Metadata(sides[0], sides[1], self._largest(name, version), platform)

    def _largest(self, name: str, version: str) -> int | None:
        """Returns the largest batch from Triton's own extension, the model configuration."""
        try:
            answer = self._call(
                "configuration", lambda: self._json(self._client.get_model_config, name, version)
            )
            config = answer.get("config", answer)
            return int(config.get("max_batch_size", 0)) or None
        except (DeployError, ValueError, TypeError, AttributeError):
            return None

    def facts(self, name: str, version: str) -> dict[str, str]:
        """Returns what the server says of itself and of a model, by name, in words."""
        server = self._call("metadata", lambda: self._json(self._client.get_server_metadata))
        model = self._call(
            f"metadata of {name}",
            lambda: self._json(self._client.get_model_metadata, name, version),
        )
        try:
            return {
                "server": f"{server.get('name', '')} {server.get('version', '')}".strip(),
                "versions of the model": ", ".join(map(str, model.get("versions") or ())),
                "platform": str(model.get("platform", "")),
            }
        except (AttributeError, TypeError) as error:
            raise self._error("metadata", f"cannot be understood: {error!r}") from error

    def statistics(self, name: str, version: str) -> dict[str, float] | None:
        """Returns a server's counters of a model; None if it has none.

        They are an extension of the protocol: `rows`, `requests` and `executions`, and of the
        successful ones `queue_ns` and `compute_ns` in nanoseconds.
        """
        try:
            answer = self._call(
                "statistics",
                lambda: self._json(self._client.get_inference_statistics, name, version),
            )
            counters = dict.fromkeys(_COUNTERS, 0.0)
            for model in answer["model_stats"]:
                times = model["inference_stats"]
                counters["rows"] += int(model.get("inference_count", 0))
                counters["executions"] += int(model.get("execution_count", 0))
                counters["requests"] += int(times.get("success", {}).get("count", 0))
                counters["queue_ns"] += int(times.get("queue", {}).get("ns", 0))
                counters["compute_ns"] += int(times.get("compute_infer", {}).get("ns", 0))
        except (DeployError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return counters

    def infer(self, name: str, version: str, feeds: Feeds, outputs: tuple[str, ...]) -> Outputs:
        """Returns the outputs for host arrays, as the server sends them: any shape and dtype."""
        library = self._library
        tensors = []
        for key, array in feeds.items():
            kind = _protocol_type(array.dtype)
            tensor = library.InferInput(key, list(array.shape), kind)
            tensor.set_data_from_numpy(np.ascontiguousarray(array), **self._form())
            tensors.append(tensor)
        wanted = [library.InferRequestedOutput(output, **self._form()) for output in outputs]

        def ask() -> Any:
            result = self._client.infer(
                name, tensors, model_version=version, outputs=wanted, **self._more
            )
            return {output: result.as_numpy(output) for output in outputs}

        arrays: Mapping[str, Any] = self._call(f"inference of {name}", ask)
        for output, array in arrays.items():
            if array is None:
                raise self._error(f"the reply of {name}", f"has no output {output!r}")
        return dict(arrays)

    def _form(self) -> dict[str, bool]:
        """Returns how HTTP sends tensors: as bytes if the server takes them, otherwise as JSON."""
        if self._more:
            return {}
        if self._binary is None:
            answer = self._call("server metadata", self._client.get_server_metadata)
            self._binary = "binary_tensor_data" in (answer.get("extensions") or ())
        return {"binary_data": self._binary}

    def _json(self, method: Callable[..., Any], *words: str) -> Any:
        """Returns a server's answer in the form of HTTP's JSON, whatever the protocol."""
        if not self._more:
            return method(*words)
        answer = method(*words, as_json=True, **self._more)
        return json.loads(answer) if isinstance(answer, str) else answer

    def _call(self, what: str, ask: Callable[[], _T]) -> _T:
        start = time.monotonic()
        try:
            with self._deadline():
                return ask()
        except self._too_late as error:
            # A reply that still comes would be taken for that of the next request.
            self._client.close()
            self._client = self._connect()
            raise self._error(
                what, f"no reply within {self._timeout:g} s", "wait longer with --timeout"
            ) from error
        # The client raises errors of its own, of sockets, of gevent and of JSON, and what numpy
        # raises for a reply whose bytes do not fit its shape.
        except Exception as error:
            if time.monotonic() - start >= self._timeout:
                raise self._error(
                    what, f"no reply within {self._timeout:g} s", "wait longer with --timeout"
                ) from error
            raise self._error(what, _reason(error)) from error

    def _error(self, what: str, why: str, hint: str = "") -> DeployError:
        hint = hint or "see the server's own log, and whether it still runs"
        return DeployError(f"{self._server.url}: {what}: {why}", hint)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:500] or type(error).__name__


def _protocol_type(dtype: np.dtype[Any]) -> str:
    utils = import_vendor("tritonclient.utils", INSTALL)
    kind = utils.np_to_triton_dtype(dtype)
    if kind is None:
        raise DeployError(
            f"the protocol has no type for {dtype.name}", "export the model with other inputs"
        )
    return str(kind)


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    """Returns an input or output from its metadata; ValueError if its type does not exist."""
    utils = import_vendor("tritonclient.utils", INSTALL)
    kind = utils.triton_to_np_dtype(entry["datatype"])
    if kind is None:
        raise ValueError(f"unknown type {entry['datatype']!r:.40}")
    axes = [int(axis) for axis in entry.get("shape") or ()]
    shape = tuple(None if axis < 0 else axis for axis in axes)
    return TensorSpec(str(entry["name"]), np.dtype(kind).name, shape)


def wait_until_ready(server: Server) -> str:
    """Waits until a model is ready; returns its name.

    Raises:
        NotAvailableError: It is not ready in time; the message says why.
        UsageError: The server does not have the model, or has several and none is named.
    """
    end = time.monotonic() + server.wait
    client = Client(server, min(server.timeout, max(1.0, server.wait)))
    reason = ""
    try:
        while True:
            try:
                if client.live():
                    name = server.name or _only(server, client.models())
                    if client.ready(name, server.version):
                        return name
                    reason = _not_ready(server, name, client.models())
                else:
                    reason = f"{server.url} answers that it is not live"
            except UsageError:
                raise
            except DeployError as error:
                reason = error.message
            left = end - time.monotonic()
            if left <= 0:
                raise NotAvailableError(
                    f"no model to judge within {server.wait:g} s: {reason}",
                    "start the server, or wait longer with --wait",
                )
            time.sleep(min(_POLL, left))
    finally:
        client.close()


def _only(server: Server, models: Mapping[str, Any] | None) -> str:
    """Returns the name of a server's only model."""
    if models and len(models) == 1:
        return next(iter(models))
    if models is None:
        raise UsageError(
            f"{server.url} does not list its models", "name the model with --model-name"
        )
    if not models:
        raise DeployError(f"{server.url} has no model")
    raise UsageError(
        f"{server.url} has {len(models)} models",
        f"name one with --model-name; available: {', '.join(models)}",
    )


def _not_ready(server: Server, name: str, models: dict[str, dict[str, str]] | None) -> str:
    """Returns why a model is not ready.

    Raises:
        UsageError: The server lists its models, and this one or its version is not among them.
    """
    if models is not None and name not in models:
        known = suggestion(name, list(models)) if models else "it has no model"
        raise UsageError(f"{server.url} has no model {name!r}", known)
    versions = (models or {}).get(name, {})
    if server.version and server.version not in versions and any(versions):
        raise UsageError(
            f"{server.url} has no version {server.version!r} of {name}",
            f"available: {', '.join(version for version in versions if version)}",
        )
    reasons = [versions.get(server.version, "")] if server.version else versions.values()
    why = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    version = f" version {server.version}" if server.version else ""
    return f"{name}{version} on {server.url} is not ready{': ' if why else ''}{why}"
