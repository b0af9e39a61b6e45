"""Bundles in an OCI registry, as artifacts of CNCF's ModelPack, with the signature as a layer."""

from __future__ import annotations

import functools
import hashlib
import http
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from engines import temporary
from engines.cache import require_new, write_atomic
from engines.checks import import_vendor
from engines.errors import DeployError, UsageError
from pipeline.bundling import archive, signature
from pipeline.bundling.registry_login import REFUSED, Login
from pipeline.workflow import phases
from pipeline.workflow.artifacts import BUNDLE_SUFFIX
from pipeline.workflow.digests import dump_json, parse_json, require_file, sha256_file

_INSTALL = "pip install oras"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_WEIGHTS = "application/vnd.cncf.model.weight.v1.tar+zstd"
_SIGNATURE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_FILE_PATH = "org.cncf.model.filepath"
_NAME = re.compile(
    r"(?P<registry>[\w-]+(\.[\w-]+)*(:\d{1,5})?)/(?P<name>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_MANIFEST, _MAX_SIGNATURE = 4 << 20, 1 << 20
# Larger files are sent in parts, which takes less memory; not every registry knows how.
_WHOLE = 256 << 20
_CHUNK = 1 << 20
_SECONDS = 60.0  # that a registry may be silent
_OK = (200, 201, 202)


@dataclass(frozen=True)
class Reference:
    """Where an artifact is: REGISTRY/NAME:TAG, or REGISTRY/NAME@sha256:DIGEST."""

    registry: str
    name: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Returns the reference; raises UsageError if the text is not one."""
        match = _NAME.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} does not name an artifact",
                "give REGISTRY/NAME:TAG, as in localhost:5000/models/lenet:1",
            )
        tag = match["tag"] or ("" if match["digest"] else "latest")
        return cls(match["registry"], match["name"], tag, match["digest"] or "")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def file_name(self) -> str:
        """A name for the bundle's file."""
        version = self.tag or self.digest.partition(":")[2][:12]
        return f"{self.name.rpartition('/')[2]}-{version}{BUNDLE_SUFFIX}"


class _Registry:
    """A registry that is asked once, with a bound on its silence; oras knows how to log in."""

    def __init__(self, reference: Reference, plain_http: bool) -> None:
        provider = import_vendor("oras.provider", _INSTALL)
        self._oras = provider.Registry(reference.registry, insecure=plain_http)
        # oras tries five times, for minutes, even if nothing listens.
        ask = provider.Registry.do_request.__wrapped__
        self._oras.do_request = functools.partial(ask, self._oras)
        login = Login(self._oras.auth, reference.registry)
        self._oras.session.request = functools.partial(_bounded, self._oras.session.request, login)
        self._reference = reference
        self._container = self._oras.get_container(f"{reference.registry}/{reference.name}")
        self._oras.auth.load_configs(self._container)
        scheme = "http" if plain_http else "https"
        self._base = f"{scheme}://{reference.registry}/v2/{reference.name}"

    def close(self) -> None:
        """Ends the connections."""
        self._oras.session.close()

    def send(self, path: Path, media_type: str) -> dict[str, Any]:
        """Sends a file, unless the registry has it, and returns its descriptor."""
        size = path.stat().st_size
        digest = f"sha256:{sha256_file(path)}"
        layer = {"mediaType": media_type, "digest": digest, "size": size}
        phases.start(f"sending {path.name}", size)
        response = self._oras.upload_blob(
            str(path), self._container, layer, do_chunked=size > _WHOLE
        )
        _require_ok(response, f"{path.name} was not taken")
        return layer

    def tag(self, manifest: bytes) -> None:
        """Sends a manifest under the tag of the reference."""
        url = f"{self._base}/manifests/{self._reference.tag}"
        headers = {"Content-Type": _MANIFEST}
        _require_ok(
            self._oras.do_request(url, "PUT", data=manifest, headers=headers), "no manifest"
        )

    @contextmanager
    def get(self, kind: str, name: str) -> Iterator[Iterator[bytes]]:
        """Yields the parts of a manifest or a blob."""
        headers = {"Accept": _MANIFEST} if kind == "manifests" else {}
        url = f"{self._base}/{kind}/{name}"
        response = self._oras.do_request(url, "GET", headers=headers, stream=True)
        with response:
            _require_ok(response, f"{name} is not there")
            yield response.iter_content(_CHUNK)


def _bounded(
    request: Callable[..., Any], login: Login, method: str, url: str, **options: Any
) -> Any:
    """Sends a request; reads no more of its answer than a manifest may have, unless it streams."""
    whole = not options.get("stream")
    options["headers"] = login.headers(method, url, options.get("headers"))
    response = request(method, url, **{"timeout": _SECONDS, **options, "stream": True})
    if problem := _no_registry(response):
        response.close()
        raise DeployError(f"{method} {url}: {problem}")
    if place := response.headers.get("Location"):  # oras knows none relative to the request
        response.headers["Location"] = urljoin(response.url, place)
    if whole:
        with response:
            parts = response.iter_content(_CHUNK)
            response._content = _limited(parts, _MAX_MANIFEST)
    return response


def _no_registry(response: Any) -> str:
    """Returns why an answer is not of a registry or refuses an upload, in words; "" if neither."""
    asked = response.history[0] if response.history else response
    began = asked.request.method == "POST" and "/blobs/uploads" in asked.request.url
    if not response.ok:
        login = response.status_code in (401, 403)  # which oras tries next
        return f"{response.status_code} {response.reason}" if began and not login else ""
    if "html" in response.headers.get("Content-Type", ""):  # as login pages and proxies answer
        return "the answer is a web page, so this is not the address of a registry"
    if began and not response.headers.get("Location"):
        return "the answer does not say where to send the file (it has no Location)"
    return ""


def _require_ok(response: Any, problem: str) -> None:
    if response.status_code == http.HTTPStatus.UNAUTHORIZED:
        raise DeployError(REFUSED)
    if response.status_code not in _OK:
        raise DeployError(f"{problem} ({response.status_code} {response.reason})")


@contextmanager
def _naming(reference: Reference) -> Iterator[None]:
    """Makes errors of the registry, or on the way to it, name it."""
    try:
        yield
    except UsageError:
        raise
    except (DeployError, OSError, ValueError) as error:  # requests' errors are OSErrors
        if isinstance(error, DeployError) and error.hint:
            raise
        reason = error.message if isinstance(error, DeployError) else _innermost(error)
        raise DeployError(
            f"{reference}: {reason}",
            "check the name, and `docker login` or `oras login`; --plain-http is for a registry"
            " without TLS",
        ) from error


def _innermost(error: Exception) -> str:
    """Returns the message of the innermost error: requests and urllib3 wrap one several times."""
    within = (getattr(error, "reason", None), *error.args)
    for inner in within:
        if isinstance(inner, Exception) and inner is not error:
            return _innermost(inner)
    return " ".join(str(error).split()) or type(error).__name__


def push(bundle: Path, text: str, *, plain_http: bool = False) -> str:
    """Sends a bundle, and the signature beside it if there is one, to a registry.

    Args:
        text: REGISTRY/NAME:TAG.
        plain_http: Without TLS.

    Returns:
        REGISTRY/NAME@sha256:DIGEST, which names these bytes for ever.

    Raises:
        DeployError: The file is not a bundle, or the registry does not take it.
        NotAvailableError: oras is missing.
    """
    reference = Reference.parse(text)
    if reference.digest:
        raise UsageError(f"{text}: a digest cannot be chosen", "give REGISTRY/NAME:TAG")
    require_file(bundle, archive.NO_BUNDLE)
    facts, uncompressed = archive.describe(bundle)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary.folder())
        stack.enter_context(_naming(reference))
        stack.enter_context(phases.showing("push"))
        registry = stack.enter_context(closing(_Registry(reference, plain_http)))
        weights = registry.send(bundle, _WEIGHTS)
        layers = [{**weights, "annotations": {_FILE_PATH: bundle.name}}]
        signed = signature.beside(bundle)
        if signed.is_file():
            layer = registry.send(signed, _SIGNATURE)
            layers.append({**layer, "annotations": {_FILE_PATH: signed.name}})
        config = {
            "descriptor": {"name": facts["model"], "title": facts["model"]},
            "config": {"architecture": facts["model"], "format": "onnx"},
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{uncompressed}"]},
        }
        (folder / "config.json").write_bytes(dump_json(config))
        manifest = dump_json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "artifactType": _ARTIFACT,
                "config": registry.send(folder / "config.json", _CONFIG),
                "layers": layers,
            }
        )
        registry.tag(manifest)
    return f"{reference.registry}/{reference.name}@{_digest_of(manifest)}"


def pull(
    text: str, out: Path | None = None, *, plain_http: bool = False, max_bytes: int = 64 << 30
) -> tuple[Path, str, bool]:
    """Gets a bundle and its signature from a registry. Checks their digests, and opens nothing.

    Args:
        text: REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST.
        out: The file to write, which must not exist; None means NAME-TAG.tar.zst.
        plain_http: Without TLS.
        max_bytes: What the bundle's file may take.

    Returns:
        The file, REGISTRY/NAME@sha256:DIGEST, and whether a signature lies beside it.

    Raises:
        DeployError: The registry does not have it, or answers with other bytes; nothing is left
            then.
        NotAvailableError: oras is missing.
        UsageError: The file, or a signature beside it, exists.
    """
    reference = Reference.parse(text)
    target = Path(reference.file_name) if out is None else out
    beside = signature.beside(target)
    for path in (target, beside):
        require_new(path)
    with _naming(reference), phases.showing("pull"), ExitStack() as stack:
        registry = stack.enter_context(closing(_Registry(reference, plain_http)))
        name = reference.digest or reference.tag
        with registry.get("manifests", name) as parts:
            manifest = _limited(parts, _MAX_MANIFEST)
        digest = _digest_of(manifest)
        if reference.digest not in ("", digest):
            raise DeployError(f"the registry answers with other bytes: {digest}", _tampered())
        weights, signed = _layers(manifest)
        if weights["size"] > max_bytes:
            raise DeployError(
                f"{reference}: the bundle has {weights['size']:,} bytes, more than the"
                f" {max_bytes:,} that are allowed",
                "if you trust its source, allow more with --max-size GIB",
            )
        hints = {target.absolute().parent: "free some space there, or give another --out FILE"}
        stack.enter_context(temporary.full_disk_named(hints))
        # Both take their places once both are complete.
        part = stack.enter_context(write_atomic(target, replace=False))
        if signed is not None:
            _get(registry, signed, stack.enter_context(write_atomic(beside, replace=False)))
        _get(registry, weights, part)
    return target, f"{reference.registry}/{reference.name}@{digest}", signed is not None


def _tampered() -> str:
    return "somebody changed it in the registry or on the way; ask who pushed it for its digest"


def _digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _limited(parts: Iterator[bytes], limit: int) -> bytes:
    content = b""
    for part in parts:
        content += part
        if len(content) > limit:
            raise DeployError(f"its answer has more than {limit:,} bytes")
    return content


def _layers(content: bytes) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns the descriptors of the bundle and of its signature, if it has one.

    Raises:
        DeployError: The manifest is not one that `push` writes.
    """
    try:
        manifest = parse_json(content)
        if manifest["artifactType"] != _ARTIFACT:
            raise ValueError(f"its type is {manifest['artifactType']!r:.80}")
        by_type: dict[str, list[dict[str, Any]]] = {_WEIGHTS: [], _SIGNATURE: []}
        for layer in manifest["layers"]:
            if not _DIGEST.fullmatch(layer["digest"]) or type(layer["size"]) is not int:
                raise ValueError("a layer has neither a SHA-256 nor a size")
            by_type.setdefault(layer["mediaType"], []).append(layer)
        (weights,), signed = by_type[_WEIGHTS], by_type[_SIGNATURE]
        if weights["size"] <= 0:
            raise ValueError("its bundle is empty")
        if len(signed) > 1 or any(layer["size"] > _MAX_SIGNATURE for layer in signed):
            raise ValueError("it has several signatures, or a large one")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(
            f"it is not a bundle that `assay push` sent: {error}", "check the name"
        ) from error
    return weights, signed[0] if signed else None


def _get(registry: _Registry, layer: dict[str, Any], part: Path) -> None:
    """Writes a blob; raises DeployError unless it has the size and the digest of its layer."""
    digest, size = hashlib.sha256(), 0
    phases.start("receiving", layer["size"])
    with part.open("wb") as file, registry.get("blobs", layer["digest"]) as parts:
        for content in parts:
            size += len(content)
            if size > layer["size"]:
                break
            digest.update(content)
            file.write(content)
            phases.advance(len(content))
    if size != layer["size"] or f"sha256:{digest.hexdigest()}" != layer["digest"]:
        raise DeployError(
            f"the registry answers with other bytes than {layer['digest']}", _tampered()
        )
