"""Signed bundles from the command line: nothing is opened before the signature is verified."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import assay as library
from engines import backends
from engines.errors import DeployError
from pipeline.bundling import archive, signature
from pipeline.workflow.runner import Store
from tests.bundles import bundle_of, members, pack, resigned
from tests.conftest import Result
from tests.pipeline.bundling.test_signature import Authority
from tests.subset import ROOT, python_path

Assay = Callable[..., Result]
# An engine that writes a file when it is opened.
CANARY = """
import os
from dataclasses import dataclass
from pathlib import Path
from tests.faulty_engines.base import Faulty
from engines.contract import OpenOptions, Session

@dataclass(frozen=True)
class Canary(Faulty):
    def open(self, built: Path, options: OpenOptions) -> Session:
        Path(os.environ["ASSAY_TEST_CANARY"]).write_text("opened")
        return super().open(built, options)

ENGINE = Canary("canary")
"""


@pytest.fixture
def key(tmp_path: Path, assay: Assay) -> Path:
    assert assay("keygen", tmp_path / "key").code == 0
    return tmp_path / "key"


@pytest.fixture
def bundle(built: Store, tmp_path: Path, key: Path, assay: Assay) -> Path:
    """A signed copy of the bundle of the chain."""
    path = tmp_path / "signed.tar.zst"
    shutil.copy(bundle_of(built), path)
    assert assay("sign", path, "--key", key).code == 0
    return path


@pytest.fixture
def unread(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if anything parses an archive, once the bundle is signed."""
    assert bundle.exists()

    def parse(*_arguments: object) -> None:
        raise AssertionError("the archive was parsed")

    monkeypatch.setattr(archive, "TarStream", parse)


@pytest.mark.slow(2)
def test_a_bundle_by_the_named_key_needs_no_trust(bundle: Path, key: Path, assay: Assay) -> None:
    result = assay("check", bundle, "--engine", "onnxruntime", "--public-key", f"{key}.pub")
    assert result.code == 0
    shown = assay("keygen", f"{key}2", "--json")  # another key has another fingerprint
    fingerprint = json.loads(shown.out)["fingerprint"]
    assert fingerprint not in result.out
    assert f"{bundle}: signed by the key SHA256:" in result.out


def test_without_a_key_the_question_stays(bundle: Path, assay: Assay) -> None:
    result = assay("check", bundle)
    assert result.code == 2
    assert "--trust" in result.err


def test_a_signature_that_nobody_asked_to_verify_is_mentioned(bundle: Path, assay: Assay) -> None:
    result = assay("check", bundle, "--digests-only")
    assert result.code == 0
    assert f"{bundle}.sig was not verified" in result.err
    assert "signed by" not in result.out


@pytest.mark.usefixtures("unread")
def test_a_required_signature_needs_a_signer(bundle: Path, assay: Assay) -> None:
    result = assay("check", bundle, "--require-signature", "--trust")
    assert result.code == 2
    assert "--public-key FILE or --certificate-chain FILE" in result.err
    both = ("--public-key", "a", "--certificate-chain", "b")
    assert assay("check", bundle, *both).code == 2


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("case", ["wrong key", "no signature", "flipped bit", "truncated"])
def test_a_bundle_that_is_not_signed_is_not_read(
    bundle: Path, key: Path, tmp_path: Path, assay: Assay, case: str
) -> None:
    sig = Path(f"{bundle}.sig")
    if case == "wrong key":
        key = tmp_path / "other"
        assay("keygen", key)
    elif case == "no signature":
        sig.unlink()
    elif case == "truncated":
        sig.write_bytes(sig.read_bytes()[:-9])
    else:
        content = bytearray(bundle.read_bytes())
        content[len(content) // 2] ^= 1
        bundle.write_bytes(content)
    public = f"{key}.pub"
    for words in (
        ("check", bundle, "--trust", "--public-key", public),
        ("check", bundle, "--digests-only", "--require-signature", "--public-key", public),
        ("compare", bundle, bundle, "--trust", "--public-key", public),
    ):
        result = assay(*words)
        assert result.code == 1, result.err
        assert str(sig) in result.err
        assert not result.out
    for call in (library.load, library.check):
        with pytest.raises(DeployError, match=r"signed\.tar\.zst\.sig"):
            call(bundle, public_key=public)


@pytest.mark.slow(3)
def test_bundles_by_the_named_key_are_compared_without_trust(
    bundle: Path, key: Path, assay: Assay
) -> None:
    words = ("--engine", "onnxruntime", "--budget", "0.3", "--public-key", f"{key}.pub")
    result = assay("compare", bundle, bundle, *words)
    assert result.code != 2, result.err
    assert "B takes" in result.out


def test_a_certificate_of_the_named_authority_is_enough(
    bundle: Path, tmp_path: Path, assay: Assay
) -> None:
    acme = Authority(tmp_path, "acme")
    assert assay("sign", bundle, "--key", acme.key, "--certificate", acme.certificate).code == 0
    words = ("check", bundle, "--digests-only", "--require-signature", "--certificate-chain")
    result = assay(*words, acme.root)
    assert result.code == 0, result.err
    assert f"{bundle}: signed by CN=acme, certificate SHA256:" in result.out
    assert assay(*words, Authority(tmp_path, "other").root).code == 1


@pytest.mark.slow(2)
def test_the_library_takes_the_key(bundle: Path, key: Path) -> None:
    with library.load(bundle, engine="onnxruntime", public_key=f"{key}.pub") as predictor:
        assert predictor.engine == "onnxruntime"
    assert library.check(bundle, digests_only=True, public_key=f"{key}.pub").manifest


@pytest.mark.slow(3)
def test_the_bundle_command_signs_what_it_writes_and_what_it_skips(
    store: Store, key: Path, assay: Assay
) -> None:
    bundle, place = bundle_of(store), ("--root", store.root, "--dist", store.dist)
    before = bundle.read_bytes()
    record = (store.root / "lenet/fp32/bundle.json").read_bytes()
    for _ in range(2):
        result = assay("bundle", "lenet", "--key", key, *place)
        assert result.code == 0, result.err
        assert "signed by the key SHA256:" in result.out
        assert (store.root / "lenet/fp32/bundle.json").read_bytes() == record  # it was skipped
        signature.verify(bundle, signature.Trusted(public_key=Path(f"{key}.pub")))
        Path(f"{bundle}.sig").unlink()
    assert assay("bundle", "lenet", "--force", "--key", key, *place).code == 0
    assert bundle.read_bytes() == before
    signature.verify(bundle, signature.Trusted(public_key=Path(f"{key}.pub")))


def test_the_signature_of_a_bundle_that_is_replaced_is_removed(
    store: Store, key: Path, assay: Assay
) -> None:
    where = ("--root", store.root, "--dist", store.dist)
    assert assay("bundle", "lenet", "--key", key, *where).code == 0
    signed = store.dist / "lenet-fp32.tar.zst.sig"
    assert signed.exists()
    assert assay("bundle", "lenet", *where).code == 0  # skipped
    assert signed.exists()
    result = assay("bundle", "lenet", "--include", "checkpoint", *where)
    assert result.code == 0
    assert not signed.exists()
    assert f"{signed} is removed" in result.err


def test_a_bundle_is_not_written_without_the_key_to_sign_it(
    store: Store, tmp_path: Path, assay: Assay
) -> None:
    words = ("bundle", "lenet", "--root", store.root, "--dist", tmp_path / "new")
    result = assay(*words, "--key", tmp_path / "nothing.key")
    assert result.code in (1, 2)
    assert "nothing.key does not exist" in result.err
    assert not (tmp_path / "new").exists()


def test_keygen_takes_a_passphrase_from_the_environment(
    tmp_path: Path, bundle: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_KEY_PASSPHRASE", "secret")
    locked = tmp_path / "locked"
    result = assay("keygen", locked)
    assert "private key, encrypted" in result.out
    assert b"ENCRYPTED" in locked.read_bytes()
    assert assay("sign", bundle, "--key", locked).code == 0
    monkeypatch.delenv("ASSAY_KEY_PASSPHRASE")
    result = assay("sign", bundle, "--key", locked)
    assert result.code == 2
    assert "set ASSAY_KEY_PASSPHRASE" in result.err
    result = assay("keygen", tmp_path / "more", "--passphrase")
    assert result.code == 2
    assert not (tmp_path / "more").exists()
    result = assay("keygen", locked)
    assert result.code == 2
    assert "never replaced" in result.err


@pytest.mark.parametrize(
    "words",
    [(), ("--key", "k", "--sigstore"), ("--certificate", "c"), ("--sigstore", "--key", "k")],
)
def test_sign_takes_one_way(bundle: Path, assay: Assay, words: tuple[str, ...]) -> None:
    assert assay("sign", bundle, *words).code == 2


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Adds the engine `canary`; returns the file that exists once it has been opened."""
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / "canary.py").write_text(CANARY)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder)])
    monkeypatch.setenv("ASSAY_TEST_CANARY", str(tmp_path / "opened"))
    return tmp_path / "opened"


@pytest.mark.slow(5)
@pytest.mark.usefixtures("in_process")
def test_no_engine_is_opened_before_digests_records_and_signature_are_checked(
    store: Store, key: Path, canary: Path, tmp_path: Path, assay: Assay
) -> None:
    place = ("--root", store.root, "--dist", store.dist)
    for stage in ("build", "verify", "bundle"):
        more = ("--no-measurements", "--key", key) if stage == "bundle" else ()
        result = assay(stage, "lenet", "--engine", "canary", *more, *place)
        assert result.code == 0, result.err
    bundle, public = bundle_of(store), f"{key}.pub"
    canary.unlink()
    contents = members(bundle)

    def refused(path: Path, code: int, *words: object) -> None:
        result = assay("check", path, *words)
        assert result.code == code, result.err
        assert not canary.exists(), words
        for call in (library.load, library.check):
            if code == 1:
                trusted = {"public_key": public} if "--public-key" in words else {}
                with pytest.raises(DeployError):
                    call(path, **trusted)
                assert not canary.exists()

    refused(bundle, 2)  # unsigned as far as we know, and nobody to ask
    # A digest that does not match.
    name = next(name for name in contents if name.endswith("model.onnx"))
    damaged = {**contents, name: contents[name][:-1] + b"x"}
    refused(pack(tmp_path / "damaged.tar.zst", list(damaged.items())), 1, "--trust")
    # Digests that match, with a chain of records that does not.
    forged = pack(tmp_path / "forged.tar.zst", list(resigned(damaged).items()))
    refused(forged, 1, "--trust")
    # Everything in order, but not signed, or signed by somebody else.
    copy = tmp_path / "copy.tar.zst"
    shutil.copy(bundle, copy)
    refused(copy, 1, "--trust", "--public-key", public)
    assay("keygen", tmp_path / "mallory")
    assay("sign", copy, "--key", tmp_path / "mallory")
    refused(copy, 1, "--trust", "--public-key", public)
    # And the canary does sing.
    result = assay("check", bundle, "--public-key", public)
    assert result.code == 0, result.err
    assert canary.exists()


@pytest.mark.slow(10)
def test_a_signature_is_verified_without_a_network(bundle: Path, key: Path, tmp_path: Path) -> None:
    hook = "import os, sys\nsys.addaudithook(lambda event, _: event in ("
    hook += '"socket.connect", "socket.getaddrinfo") and os._exit(99))\n'
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(hook)
    alone = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []
    words = ["check", bundle, "--engine", "onnxruntime", "--public-key", f"{key}.pub"]
    done = subprocess.run(
        [*alone, sys.executable, "-m", "pipeline.cli", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(tmp_path / "hook")},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "signed by" in done.stdout
