"""A small server of the Open Inference Protocol v2 over HTTP, for tests and loopback.

One session, one inference at a time, and no batching: Triton is for production.
"""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from engines.contract import Array, Feeds, Session, TensorSpec
from engines.errors import DeployError
from pipeline import __version__
from pipeline.workflow.digests import parse_json

_VERSION = "1"
_MAX_REQUEST = 1 << 30  # bytes
_TIMEOUT = 60.0  # seconds in which a client has to send the next bytes
_HEADER = "Inference-Header-Content-Length"  # of the JSON; the tensors follow as bytes
# The protocol's names of numpy's dtypes.
_NAMES = {
    "bool": "BOOL",
    **{f"{sign}int{n}": f"{sign.upper()}INT{n}" for sign in ("", "u") for n in (8, 16, 32, 64)},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: The status of the reply.
    """

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


class OwnServer(ThreadingHTTPServer):
    """The server of one model.

    Attributes:
        model: The name of the model.
        session: What runs it; used by one thread at a time.
        idle: Held during an inference.
    """

    daemon_threads = True
    # A client that is connected does not keep the command from its end.
    block_on_close = False

    def __init__(self, host: str, port: int, model: str, session: Session) -> None:
        self.model, self.session, self.idle = model, session, threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.metadata = {
            "name": model,
            "versions": [_VERSION],
            "platform": "assay",
            "inputs": [_described(spec) for spec in session.inputs],
            "outputs": [_described(spec) for spec in session.outputs],
        }
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise DeployError(
                f"port {port} of {host} cannot be opened: {error.strerror or error}",
                "give another --http-port or --host, or end what uses it",
            ) from error

    def infer(self, request: Mapping[str, Any], binary: memoryview) -> tuple[bytes, bytes]:
        """Returns the JSON and the bytes of the reply to a request.

        Raises:
            RequestError: The request is not valid.
        """
        feeds = _feeds(request, binary)
        known = [spec.name for spec in self.session.outputs]
        wanted = request.get("outputs") or [{"name": name} for name in known]
        everything = bool((request.get("parameters") or {}).get("binary_data_output", False))
        names = [output["name"] for output in wanted]
        for name in names:
            if name not in known:
                raise RequestError(f"unknown output {name!r:.200}; available: {known}")
        if len(names) > len({*names}):  # a small request could ask for a reply of any size
            raise RequestError("an output is asked for twice")
        try:
            with self.idle:
                arrays = self.session.run(feeds)
        except DeployError as error:
            raise RequestError(error.message) from error
        outputs, parts = [], []
        for output in wanted:
            array = np.ascontiguousarray(arrays[output["name"]])
            entry = {
                "name": output["name"],
                "datatype": _protocol_name(array.dtype.name),
                "shape": [*array.shape],
            }
            if (output.get("parameters") or {}).get("binary_data", everything):
                parts.append(array.tobytes())
                entry["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                entry["data"] = _json_values(array, output["name"])
            outputs.append(entry)
        reply: dict[str, Any] = {"model_name": self.model, "model_version": _VERSION}
        if "id" in request:
            reply["id"] = str(request["id"])
        return json.dumps({**reply, "outputs": outputs}).encode(), b"".join(parts)


def _protocol_name(dtype: str) -> str:
    try:
        return _NAMES[dtype]
    except KeyError:
        raise DeployError(
            f"the protocol has no type for {dtype}", "export the model with other types"
        ) from None


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if axis is None else axis for axis in spec.shape]
    return {"name": spec.name, "datatype": _protocol_name(spec.dtype), "shape": shape}


def _json_values(array: Array, name: str) -> list[Any]:
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "f" and not all(map(math.isfinite, values)):
        raise RequestError(f"output {name!r} is not finite, which JSON cannot tell; ask for bytes")
    return values


def _feeds(request: Mapping[str, Any], binary: memoryview) -> Feeds:
    """Returns the arrays of a request; the session checks names, dtypes and shapes.

    Raises:
        RequestError: A tensor's type is unknown, or it has another size than its shape.
    """
    types = {protocol: dtype for dtype, protocol in _NAMES.items()}
    feeds: dict[str, Array] = {}
    position = 0
    for entry in request["inputs"]:
        name, shape = str(entry["name"]), tuple(entry["shape"])
        if name in feeds:
            raise RequestError(f"input {name!r} is there twice")
        if entry["datatype"] not in types:
            raise RequestError(f"input {name!r} has type {entry['datatype']!r}, which is unknown")
        if not all(type(axis) is int and 0 <= axis <= _MAX_REQUEST for axis in shape):
            raise RequestError(f"input {name!r} has shape {shape!r:.200}, which is not valid")
        dtype = np.dtype(types[entry["datatype"]])
        size = (entry.get("parameters") or {}).get("binary_data_size")
        if size is None:
            values = np.asarray(entry["data"])
            if values.size and values.dtype.kind not in {"b": "b", "f": "iuf"}.get(
                dtype.kind, "iu"
            ):
                raise RequestError(f"input {name!r} has values that are not {entry['datatype']}")
            cast = values.astype(dtype)
            if dtype.kind in "iu" and not np.array_equal(cast, values):
                raise RequestError(f"input {name!r} has values beyond {entry['datatype']}")
            values = cast.ravel()
        else:
            if type(size) is not int or not 0 <= size <= len(binary) - position:
                raise RequestError(f"input {name!r} has {size!r:.40} bytes, more than were sent")
            if size % dtype.itemsize:
                raise RequestError(f"input {name!r} has {size} bytes, not whole elements")
            values = np.frombuffer(binary[position : position + size], dtype)
            position += size
        if values.size != math.prod(shape):
            raise RequestError(f"input {name!r} has {values.size} elements, not of shape {shape}")
        feeds[name] = values.reshape(shape)
    if position != len(binary):
        raise RequestError(f"{len(binary) - position} bytes belong to no input")
    return feeds


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: OwnServer
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT
    # Otherwise a reply waits for the client's confirmation of its header, 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Prints nothing."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the base class refuses, such as an unknown method, in JSON as all else."""
        body = json.dumps({"error": message or explain or HTTPStatus(code).phrase}).encode()
        self.close_connection = True
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Answers questions about the server and the model."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answers inferences, and the list of models."""
        self._answer(self._post)

    def _answer(self, method: Any) -> None:
        try:
            self._require_plain()
            body, binary = method(self._words())
            status = HTTPStatus.OK
        except RequestError as error:
            body, binary, status = json.dumps({"error": str(error)}).encode(), b"", error.status
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            text = f"the request is not valid: {error!r:.200}"
            body, binary, status = json.dumps({"error": text}).encode(), b"", HTTPStatus.BAD_REQUEST
        if status != HTTPStatus.OK:
            self.close_connection = True  # its body may not have been read
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + len(binary)))
        if binary:
            self.send_header(_HEADER, str(len(body)))
        self.send_header(
            "Content-Type", "application/octet-stream" if binary else "application/json"
        )
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.write(binary)

    def _require_plain(self) -> None:
        """Raises RequestError unless it is clear where the request ends.

        Else a proxy and this server could see different requests in the same bytes.
        """
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) > 1:
            raise RequestError(
                "send one Content-Length, and no Transfer-Encoding", HTTPStatus.LENGTH_REQUIRED
            )
        if self.command == "GET" and lengths not in ([], ["0"]):
            raise RequestError("a GET has no body")

    def _words(self) -> list[str]:
        """Returns the parts of the path, without the version of the model.

        Raises:
            RequestError: It names another model or version.
        """
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        if words[:2] == ["v2", "models"]:
            if words[2:3] != [self.server.model]:
                raise RequestError(
                    f"unknown model {''.join(words[2:3])!r}; available: {self.server.model}",
                    HTTPStatus.NOT_FOUND,
                )
            if words[3:4] == ["versions"]:
                if words[4:5] != [_VERSION]:
                    raise RequestError(f"the version is {_VERSION}", HTTPStatus.NOT_FOUND)
                del words[3:5]
            words[2] = "MODEL"
        return words

    def _get(self, words: list[str]) -> tuple[bytes, bytes]:
        batch = self.server.session.batch
        extensions = ["binary_tensor_data", "model_repository"]
        answers: dict[str, Any] = {
            "v2": {"name": "assay", "version": __version__, "extensions": extensions},
            "v2/health/live": {"live": True},
            "v2/health/ready": {"ready": True},
            "v2/models/MODEL": self.server.metadata,
            "v2/models/MODEL/ready": {"name": self.server.model, "ready": True},
            "v2/models/MODEL/config": {
                "name": self.server.model,
                "max_batch_size": batch[1] if batch else 0,
            },
        }
        return json.dumps(self._known(answers, words)).encode(), b""

    def _post(self, words: list[str]) -> tuple[bytes, bytes]:
        model = {"name": self.server.model, "version": _VERSION, "state": "READY"}
        infer = object()
        known = {"v2/repository/index": [model], "v2/models/MODEL/infer": infer}
        answer = self._known(known, words)
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or self.headers.get("Content-Encoding", "identity") != "identity":
            raise RequestError(
                "send Content-Length in digits, and no Content-Encoding",
                HTTPStatus.LENGTH_REQUIRED,
            )
        if int(length) > _MAX_REQUEST:
            raise RequestError(
                f"more than {_MAX_REQUEST:,} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            )
        content = self.rfile.read(int(length))
        if answer is not infer:
            return json.dumps(answer).encode(), b""
        header = self.headers.get(_HEADER, length)
        if not header.isdecimal() or int(header) > len(content):
            raise RequestError(f"{_HEADER} is {header!r:.40}")
        request = parse_json(content[: int(header)])
        return self.server.infer(request, memoryview(content)[int(header) :])

    def _known(self, answers: Mapping[str, Any], words: list[str]) -> Any:
        path = "/".join(words)
        if path not in answers:
            raise RequestError(f"{self.path:.200} is not served", HTTPStatus.NOT_FOUND)
        return answers[path]


@contextmanager
def running(host: str, port: int, model: str, session: Session) -> Iterator[OwnServer]:
    """Serves a model while the block runs.

    Args:
        session: Nobody else may use it meanwhile.

    Raises:
        DeployError: The port cannot be opened, or an input or output has a type that the protocol
            does not have.
    """
    with OwnServer(host, port, model, session) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.idle.acquire()  # to the end: the session is closed next
