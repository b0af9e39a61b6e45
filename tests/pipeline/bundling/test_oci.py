"""Bundles in a registry: a real one on loopback, and hostile ones."""

import base64
import contextlib
import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engines.errors import DeployError, UsageError
from pipeline.bundling import archive, oci, registry_login, signature
from pipeline.bundling.oci import Reference
from tests.conftest import Result

CONFIG = """
version: 0.1
storage:
  filesystem:
    rootdirectory: {root}
http:
  addr: 127.0.0.1:{port}
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "lenet-fp32.tar.zst"
    archive.write(path, "lenet-fp32", {"model": "lenet"}, {"a": b"content" * 1000})
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signature.make_keys(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(storage: Path) -> Iterator[str]:
    """A registry of Debian's package docker-registry; its address."""
    with real_registry(storage) as address:
        yield address


@contextlib.contextmanager
def real_registry(storage: Path, more: str = "") -> Iterator[str]:
    """Runs docker-registry, with more lines of its configuration; yields its address."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = storage / "config.yml"
    config.write_text(CONFIG.format(root=storage / "blobs", port=port) + more)
    with (
        (storage / "log").open("wb") as log,
        subprocess.Popen([program, "serve", config], stdout=log, stderr=log) as process,
    ):
        try:
            for _ in range(200):
                try:
                    fetch(f"127.0.0.1:{port}", "/v2/")
                    break
                except OSError:
                    assert process.poll() is None, (storage / "log").read_text()
                    time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


# Of "secret", by bcrypt.
HASHED = "$2b$04$NdnTmMczDSz0tA2JcgASmeWX30r8bi64xlurL.l107ibgwmdM7Jie"


@pytest.fixture
def with_password(tmp_path: Path) -> Iterator[str]:
    """A registry that asks for a name and a password; its address."""
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "passwords").write_text(f"user:{HASHED}\n")
    login = f"auth: {{htpasswd: {{realm: Registry Realm, path: {folder / 'passwords'}}}}}\n"
    with real_registry(folder, login) as address:
        yield address


def keep_login(monkeypatch: pytest.MonkeyPatch, folder: Path, address: str, text: str) -> None:
    """Keeps a login as docker does."""
    encoded = base64.b64encode(text.encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": encoded}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def test_a_registry_with_a_password_takes_the_login_of_docker(
    with_password: str,
    bundle: Path,
    tmp_path: Path,
    assay: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"{with_password}/models/lenet:1"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    result = assay("push", bundle, name, "--plain-http")
    assert result.code == 1
    assert f"{name}: it asks for a login" in result.err
    assert "docker login" in result.err
    keep_login(monkeypatch, tmp_path, with_password, "user:wrong")
    result = assay("push", bundle, name, "--plain-http")
    assert result.code == 1
    assert "it does not take the login that is kept for it" in result.err
    result = assay("pull", name, "--plain-http", "--out", tmp_path / "none.tar.zst")
    assert result.code == 1
    assert "it does not take the login that is kept for it" in result.err
    # The file in the home folder does not count then, as with docker.
    home = tmp_path / "home/.docker"
    home.mkdir(parents=True)
    keep_login(monkeypatch, home, with_password, "user:stale")
    monkeypatch.setenv("HOME", str(home.parent))
    keep_login(monkeypatch, tmp_path, f"https://{with_password}/v2/", "user:secret")
    named = pushed(bundle, name)
    path, _, _ = pulled(named, tmp_path / "out.tar.zst")
    assert path.read_bytes() == bundle.read_bytes()


# What docker's programs for logins answer, and what is told of it.
HELPERS = {
    "none": (None, "docker-credential-kept, which keeps docker's logins, is not on the PATH"),
    "unknown": ("echo not in the key ring; exit 1", "tells no login for it (exit code 1)"),
    "odd": ("echo '[1]'", "docker-credential-kept tells no login for it (exit code 0)"),
    "empty": ("true", "tells no login for it (exit code 0)"),
    "numbers": ("""echo '{"Username": 1, "Secret": 2}'""", "tells no login for it"),
    "failed": ("""echo '{"Username": "user", "Secret": "hidden"}'; exit 3""", "(exit code 3)"),
    "other text": (r"""printf '{"Username": "user", "Secret": "hidden\351"}'""", "tells no login"),
    "killed": ("kill -9 $$", "tells no login for it (signal 9)"),
    "endless": ("exec yes hidden", "tells no login for it (signal 9)"),
    "hanging": ("sleep 30 & sleep 30", "has not answered for 1 s"),
    "token": ("""echo '{"Username": "<token>", "Secret": "x"}'""", "keeps an identity token"),
    "wrong": ("""echo '{"Username": "user", "Secret": "x"}'""", "it does not take the login"),
}


@pytest.mark.parametrize("kind", ["credsStore", "credHelpers"])
def test_a_program_that_keeps_logins_is_asked_and_named(
    with_password: str,
    bundle: Path,
    tmp_path: Path,
    assay: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    kept = "kept" if kind == "credsStore" else {with_password: "kept"}
    (tmp_path / "config.json").write_text(json.dumps({kind: kept}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(registry_login, "_HELPER_SECONDS", 1.0)
    program = tmp_path / "docker-credential-kept"

    def write(lines: str) -> None:
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)

    name = f"{with_password}/models/lenet:1"
    for lines, message in HELPERS.values():
        if lines is not None:
            write(lines)
        result = assay("push", bundle, name, "--plain-http")
        assert result.code == 1
        assert message in result.err
        assert "hidden" not in result.err
    write(
        f"""test "$1 $(cat)" = "get {with_password}" &&"""
        """ echo '{"Username": "user", "Secret": "secret"}'"""
    )
    pushed(bundle, name)


def fetch(address: str, path: str, accept: str = "*/*") -> bytes:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        return connection.getresponse().read()
    finally:
        connection.close()


def pushed(bundle: Path, text: str) -> str:
    return oci.push(bundle, text, plain_http=True)


def pulled(text: str, out: Path) -> tuple[Path, str, bool]:
    return oci.pull(text, out, plain_http=True)


def test_a_signed_bundle_comes_back_as_it_was(
    registry: str, bundle: Path, key: Path, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    assert assay("sign", bundle, "--key", key).code == 0
    name = f"{registry}/models/lenet:1"
    result = assay("push", bundle, name, "--plain-http", "--json")
    assert result.code == 0, result.err
    digest = json.loads(result.out)["reference"]
    out = tmp_path / "back" / "again.tar.zst"
    for text in (name, digest):
        out.parent.mkdir()
        result = assay("pull", text, "--out", out, "--plain-http")
        assert result.code == 0, result.err
        assert f"pulled from {digest}, with its signature" in result.out
        assert out.read_bytes() == bundle.read_bytes()
        signature.verify(out, signature.Trusted(public_key=Path(f"{key}.pub")))
        shutil.rmtree(out.parent)


def test_the_manifest_is_that_of_modelpack(registry: str, bundle: Path) -> None:
    digest = pushed(bundle, f"{registry}/lenet:form").partition("@")[2]
    accept = "application/vnd.oci.image.manifest.v1+json"
    content = fetch(registry, "/v2/lenet/manifests/form", accept)
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
    manifest = json.loads(content)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.model.weight.v1.tar+zstd"
    assert layer["digest"] == f"sha256:{hashlib.sha256(bundle.read_bytes()).hexdigest()}"
    config = json.loads(fetch(registry, f"/v2/lenet/blobs/{manifest['config']['digest']}"))
    assert config["descriptor"]["name"] == "lenet"
    (diff,) = config["modelfs"]["diffIds"]
    plain = subprocess.run(["zstd", "-dc", bundle], capture_output=True, check=False).stdout
    if plain:
        assert diff == f"sha256:{hashlib.sha256(plain).hexdigest()}"


def test_a_large_bundle_is_sent_in_parts(
    registry: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "_WHOLE", 0)
    pushed(bundle, f"{registry}/parts:1")
    out, _, signed = pulled(f"{registry}/parts:1", tmp_path / "out.tar.zst")
    assert out.read_bytes() == bundle.read_bytes()
    assert not signed


def test_pushing_again_gives_the_same_digest(registry: str, bundle: Path) -> None:
    assert pushed(bundle, f"{registry}/again:1") == pushed(bundle, f"{registry}/again:2")


def test_a_file_is_never_replaced(registry: str, bundle: Path) -> None:
    pushed(bundle, f"{registry}/keep:1")
    before = bundle.read_bytes()
    with pytest.raises(DeployError, match="exists"):
        pulled(f"{registry}/keep:1", bundle)
    assert bundle.read_bytes() == before


def test_a_blob_that_was_changed_in_the_registry_is_refused(
    registry: str, storage: Path, bundle: Path, key: Path, tmp_path: Path
) -> None:
    archive.write(bundle, "lenet-fp32", {"model": "lenet"}, {"a": b"another"})
    signature.sign(bundle, key, lambda: "")
    pushed(bundle, f"{registry}/changed:1")
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    (blob,) = storage.glob(f"blobs/**/{digest}/data")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    (tmp_path / "new").mkdir()
    with pytest.raises(DeployError, match="answers with other bytes"):
        pulled(f"{registry}/changed:1", tmp_path / "new" / "out.tar.zst")
    assert not list((tmp_path / "new").iterdir())


def test_what_is_no_bundle_is_not_sent(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("text")
    with pytest.raises(DeployError, match="text"):
        pushed(path, f"{registry}/text:1")
    with pytest.raises(DeployError, match="is not there"):
        pulled(f"{registry}/text:1", tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == {"text"}


@pytest.mark.parametrize(
    "text",
    ["", "lenet", "localhost/", "localhost/LeNet:1", "a b/c", "h/x:", "h/../x:1", "h/x@md5:1"],
)
def test_what_is_no_reference_is_wrong_usage(text: str, assay: Callable[..., Result]) -> None:
    with pytest.raises(UsageError, match="does not name an artifact"):
        Reference.parse(text)
    assert assay("pull", text).code == 2


def test_a_reference_gives_a_file_name() -> None:
    assert Reference.parse("localhost:5000/a/lenet:1.2").file_name == "lenet-1.2.tar.zst"
    digest = "sha256:" + "0" * 64
    assert Reference.parse(f"localhost/lenet@{digest}").file_name == f"lenet-{'0' * 12}.tar.zst"
    assert Reference.parse("localhost/lenet").tag == "latest"


def test_a_registry_that_does_not_answer_is_an_error_at_once(bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    for call in (
        lambda: pushed(bundle, f"{address}/x:1"),
        lambda: pulled(f"{address}/x:1", tmp_path / "o"),
    ):
        with pytest.raises(DeployError, match=r"127\.0\.0\.1") as raised:
            call()
        assert "--plain-http" in raised.value.hint
    assert time.monotonic() - start < 10
    assert not (tmp_path / "o").exists()


BLOB = b"a bundle"
GOOD = {
    "schemaVersion": 2,
    "artifactType": "application/vnd.cncf.model.manifest.v1+json",
    "layers": [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.tar+zstd",
            "digest": f"sha256:{hashlib.sha256(BLOB).hexdigest()}",
            "size": len(BLOB),
        }
    ],
}
LAYER = GOOD["layers"][0]


def with_layer(**fields: object) -> dict:
    return {**GOOD, "layers": [{**LAYER, **fields}]}


MANIFESTS: dict[str, bytes | dict] = {
    "not JSON": b"<html>",
    "a list": b"[]",
    "huge": b" " * (5 << 20),
    "another type": {**GOOD, "artifactType": "application/json"},
    "no layers": {**GOOD, "layers": []},
    "layers of text": {**GOOD, "layers": ["x"]},
    "two bundles": {**GOOD, "layers": [LAYER, LAYER]},
    "a digest with a path": with_layer(digest="../../../etc/passwd"),
    "another digest": with_layer(digest="sha256:" + "0" * 64),
    "another size": with_layer(size=3),
    "a larger size": with_layer(size=100),
    "no bytes": with_layer(size=0, digest=f"sha256:{hashlib.sha256(b'').hexdigest()}"),
    "a size of text": with_layer(size="8"),
    "too large": with_layer(size=1 << 50),
    "a large signature": {
        **GOOD,
        "layers": [
            LAYER,
            {
                **LAYER,
                "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "size": 1 << 30,
            },
        ],
    },
}


@contextlib.contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Runs a server on a free port; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hostile() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that answers with a manifest, and with BLOB for every blob."""
    answers: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answers["manifest"] if "/manifests/" in self.path else BLOB
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Handler) as address:

        def serve(manifest: bytes) -> str:
            answers["manifest"] = manifest
            return f"{address}/x"

        yield serve


@pytest.fixture
def stranger() -> Iterator[Callable[[int, dict[str, str]], str]]:
    """Starts a server that knows no blob, and has one answer to everything else."""
    answer: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(404 if self.command == "HEAD" else answer["status"])
            for name, value in answer["headers"].items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names of the base class

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Handler) as address:

        def serve(status: int, headers: dict[str, str]) -> str:
            answer.update(status=status, headers=headers)
            return f"{address}/x:1"

        yield serve


@pytest.mark.parametrize("command", ["push", "pull"])
@pytest.mark.parametrize("status", [200, 403, 500])
def test_a_web_page_is_named_as_one(
    stranger: Callable[[int, dict[str, str]], str],
    bundle: Path,
    assay: Callable[..., Result],
    tmp_path: Path,
    command: str,
    status: int,
) -> None:
    name = stranger(status, {"Content-Type": "text/html; charset=utf-8"})
    words = (bundle, name) if command == "push" else (name, "--out", tmp_path / "out")
    result = assay(command, *words, "--plain-http")
    assert result.code == 1
    if status == 200:
        assert "the answer is a web page" in result.err
    if status == 500:
        assert "500 Internal Server Error" in result.err
    assert name in result.err
    assert not (tmp_path / "out").exists()


def test_an_upload_without_a_place_is_named_as_such(
    stranger: Callable[[int, dict[str, str]], str], bundle: Path, assay: Callable[..., Result]
) -> None:
    result = assay("push", bundle, stranger(202, {}), "--plain-http")
    assert result.code == 1
    assert "no Location" in result.err
    assert len(result.err) < 500


def test_a_token_is_sent_to_no_other_host(bundle: Path) -> None:
    """The registry has the file sent to another host, which then asks for a login."""
    seen: dict[str, list[tuple[str, str | None]]] = {"registry": [], "other": []}

    class Other(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen["other"].append((self.command, self.headers.get("Authorization")))
            self.send_response(401)
            realm = f"http://127.0.0.1:{self.server.server_address[1]}/token"
            self.send_header("Www-Authenticate", f'Bearer realm="{realm}",service="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT  # noqa: N815 - a name of the base class

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Other) as elsewhere:

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                authorization = self.headers.get("Authorization")
                seen["registry"].append((self.command, authorization))
                body = b""
                if self.path.startswith("/token"):
                    body = json.dumps({"token": "hidden"}).encode()
                    self.send_response(200)
                elif authorization is None:
                    self.send_response(401)
                    realm = f"http://127.0.0.1:{self.server.server_address[1]}/token"
                    self.send_header("Www-Authenticate", f'Bearer realm="{realm}",service="x"')
                else:
                    self.send_response(404 if self.command == "HEAD" else 202)
                    self.send_header("Location", f"http://{elsewhere}/up/1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_POST = do_GET  # noqa: N815 - names of the base class

            def log_message(self, *_arguments: object) -> None:
                pass

        with (
            answering(Handler) as address,
            pytest.raises(DeployError, match=r"another host, 127.0.0.1:[0-9]+, asks for a login"),
        ):
            pushed(bundle, f"{address}/x:1")
    assert ("POST", "Bearer hidden") in seen["registry"]
    assert seen["other"] == [("PUT", None)]


def test_an_expired_token_is_renewed(bundle: Path) -> None:
    """Each token is good for two requests."""
    tokens: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorization, body = self.headers.get("Authorization"), b""
            if self.path.startswith("/token"):
                tokens.append(2)
                body = json.dumps({"token": f"t{len(tokens)}"}).encode()
                self.send_response(200)
            elif authorization != f"Bearer t{len(tokens)}" or not tokens[-1]:
                self.send_response(401)
                self.send_header("Www-Authenticate", 'Bearer realm="/token",service="x"')
            else:
                tokens[-1] -= 1
                self.send_response(404 if self.command == "HEAD" else 201)
                self.send_header("Location", "/up/1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names of the base class

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Handler) as address:
        named = pushed(bundle, f"{address.replace('127.0.0.1', 'LOCALHOST')}/x:1")
    assert named.startswith("LOCALHOST")
    assert len(tokens) > 2


@pytest.mark.parametrize(
    "content", [b"[]", b"not JSON", b'{"auths": ["x"]}', b'{"auths": {"a": 1}}']
)
def test_a_damaged_file_of_logins_is_named(
    bundle: Path,
    assay: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    result = assay("push", bundle, "127.0.0.1:9/x:1", "--plain-http")
    assert result.code == 1
    assert f"{tmp_path}/config.json" in result.err
    assert "bug" not in result.err


@pytest.mark.parametrize(
    ("challenge", "message"),
    [
        ("Bearer", "does not say where to get one"),
        ("Digest realm=x", "in a way that is not known: 'Digest realm=x'"),
        ('Bearer realm="http://ADDRESS/list"', "its answer to the login does not have a token"),
        ('BEARER  REALM = "/list" , service=s', "its answer to the login does not have a token"),
        (
            'Bearer realm="/list",service="s", Basic realm="x"',
            "its answer to the login does not have a token",
        ),
        ("Negotiate, Basic realm=x", "it asks for a login"),
    ],
)
def test_odd_ways_to_ask_for_a_login_are_named(
    bundle: Path, assay: Callable[..., Result], challenge: str, message: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            address = f"127.0.0.1:{self.server.server_address[1]}"
            self.send_response(200 if self.path.startswith("/list") else 401)
            self.send_header("Www-Authenticate", challenge.replace("ADDRESS", address))
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"[]")

        do_GET = do_HEAD  # noqa: N815 - a name of the base class

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Handler) as address:
        result = assay("push", bundle, f"{address}/x:1", "--plain-http")
    assert result.code == 1
    assert message in result.err


@pytest.mark.parametrize("case", MANIFESTS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_hostile_manifest_is_refused_and_nothing_is_left(
    hostile: Callable[[bytes], str], tmp_path: Path, assay: Callable[..., Result], case: str
) -> None:
    document = MANIFESTS[case]
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    name = hostile(content)
    result = assay("pull", f"{name}:1", "--out", tmp_path / "out", "--plain-http")
    assert result.code == 1
    assert "127.0.0.1" in result.err or "registry" in result.err or "bundle" in result.err
    assert not list(tmp_path.iterdir())


def test_other_bytes_than_the_named_digest_are_refused(
    hostile: Callable[[bytes], str], tmp_path: Path
) -> None:
    content = json.dumps(GOOD).encode()
    name = hostile(content)
    with pytest.raises(DeployError, match="answers with other bytes"):
        pulled(f"{name}@sha256:{'0' * 64}", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert pulled(f"{name}@{digest}", tmp_path / "out")[0].read_bytes() == BLOB


@pytest.mark.timeout(60)
def test_the_answer_of_a_login_is_bounded(tmp_path: Path) -> None:
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        self.wfile.write(b" " * (1 << 20))
                        sent.append(1)
                return
            self.send_response(401)
            realm = f"http://127.0.0.1:{self.server.server_address[1]}/token"
            self.send_header("Www-Authenticate", f'Bearer realm="{realm}",service="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Handler) as address, pytest.raises(DeployError, match="answer has more than"):
        pulled(f"{address}/x:1", tmp_path / "out")
    assert len(sent) < 50
    assert not (tmp_path / "out").exists()
