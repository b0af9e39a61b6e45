"""Signatures of bundles: only the one who is named can have signed, and nothing else is read."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import signing

from engines.errors import DeployError, NotAvailableError, UsageError
from pipeline.bundling import archive, signature
from pipeline.bundling.signature import Trusted
from tests.subset import ROOT

PEM = serialization.Encoding.PEM


def no_passphrase() -> str:
    raise AssertionError("asked for a passphrase")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "release.key"
    signature.make_keys(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path, key: Path) -> Path:
    """A signed bundle of one member."""
    path = tmp_path / "model.tar.zst"
    archive.write(path, "model", {"model": "m"}, {"a": b"content"})
    signature.sign(path, key, no_passphrase)
    return path


def public(key: Path) -> Trusted:
    return Trusted(public_key=Path(f"{key}.pub"))


def refuse(bundle: Path, trusted: Trusted, words: str) -> str:
    with pytest.raises(DeployError, match=words) as raised:
        signature.verify(bundle, trusted)
    assert raised.value.exit_code == 1
    return raised.value.message


def test_a_signed_bundle_is_verified_by_its_public_key(bundle: Path, key: Path) -> None:
    signed = signature.verify(bundle, public(key))
    content = Path(f"{key}.pub").read_bytes()
    loaded = serialization.load_pem_public_key(content)
    assert signed.signer == f"the key {signature.fingerprint(loaded)}"
    archive.extract(bundle, bundle.parent / "out", sha256=signed.sha256)


def test_the_fingerprint_is_that_of_openssl(key: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", f"{key}.pub", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-r"], input=der, capture_output=True, check=True
    ).stdout
    loaded = serialization.load_pem_public_key(Path(f"{key}.pub").read_bytes())
    assert signature.fingerprint(loaded) == f"SHA256:{digest[:64].decode()}"


@pytest.mark.slow(3)
def test_the_tool_of_openssf_verifies_our_signature_and_we_verify_its(
    bundle: Path, key: Path
) -> None:
    tool = [sys.executable, "-m", "model_signing"]
    sig = f"{bundle}.sig"
    options = ["--signature", sig, "--public_key", f"{key}.pub", str(bundle)]
    subprocess.run([*tool, "verify", "key", *options], check=True, capture_output=True)
    Path(sig).unlink()
    options = ["--signature", sig, "--private_key", str(key), str(bundle)]
    subprocess.run([*tool, "sign", "key", *options], check=True, capture_output=True)
    signature.verify(bundle, public(key))


def test_a_renamed_bundle_and_a_link_to_one_keep_their_signature(bundle: Path, key: Path) -> None:
    renamed = bundle.with_name("other.tar.zst")
    bundle.rename(renamed)
    Path(f"{bundle}.sig").rename(f"{renamed}.sig")
    signature.verify(renamed, public(key))
    link = bundle.with_name("link.tar.zst")
    link.symlink_to(renamed)
    Path(f"{link}.sig").symlink_to(f"{renamed}.sig")
    signature.verify(link, public(key))


def test_another_key_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    signature.make_keys(other)
    refuse(bundle, public(other), "Key mismatch")
    # The name of the key in the signature is a hint only, which a forger would change.
    forged = json.loads(Path(f"{bundle}.sig").read_text())
    signature.sign(bundle, other, no_passphrase)
    hint = json.loads(Path(f"{bundle}.sig").read_text())["verificationMaterial"]
    forged["verificationMaterial"] = hint
    Path(f"{bundle}.sig").write_text(json.dumps(forged))
    refuse(bundle, public(other), "not by this key")


def test_a_signature_of_another_file_is_refused(bundle: Path, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tar.zst"
    archive.write(other, "model", {"model": "m"}, {"a": b"other"})
    shutil.copy(f"{bundle}.sig", f"{other}.sig")
    refuse(other, public(key), "made for another file, or the bundle has changed")


def test_a_missing_signature_is_an_error(bundle: Path, key: Path) -> None:
    Path(f"{bundle}.sig").unlink()
    refuse(bundle, public(key), "sig does not exist")


@pytest.mark.slow(5)
def test_every_flipped_bit_of_a_signature_is_refused(bundle: Path, key: Path) -> None:
    path = Path(f"{bundle}.sig")
    good = path.read_bytes()
    # All of what is outside the signed payload, and some of that.
    start = good.index(b'"payload":"') + 11
    end = good.index(b'"', start)
    for index in [*range(start), *range(start, end, 97), *range(end, len(good))]:
        for bit in range(8):
            bad = bytearray(good)
            bad[index] ^= 1 << bit
            path.write_bytes(bad)
            refuse(bundle, public(key), "not a valid signature")


def test_every_flipped_bit_of_an_archive_is_refused(bundle: Path, key: Path) -> None:
    good = bundle.read_bytes()
    for index in range(0, len(good), 7):
        bad = bytearray(good)
        bad[index] ^= 1 << index % 8
        bundle.write_bytes(bad)
        refuse(bundle, public(key), "made for another file, or the bundle has changed")


def edited(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return edit


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda good: good[: len(good) // 2],
    "empty": lambda _good: b"",
    "huge": lambda good: good + b" " * (2 << 20),
    "not JSON": lambda _good: b"signature",
    "not UTF-8": lambda _good: b"\xff\xfe",
    "a list": lambda _good: b"[]",
    "null": lambda _good: b"null",
    "a number": lambda _good: b"1",
    "deep": lambda _good: b"[" * 200_000,
    "an empty object": lambda _good: b"{}",
    "a key twice": lambda good: good[:-1] + b',"mediaType":"x"}',
    "another media type": edited(lambda d: d.update(mediaType="application/json")),
    "an unknown field": edited(lambda d: d.update(comment="x")),
    "no signature": edited(lambda d: d["dsseEnvelope"].update(signatures=[])),
    "two signatures": edited(
        lambda d: d["dsseEnvelope"].update(signatures=d["dsseEnvelope"]["signatures"] * 2)
    ),
    "no payload": edited(lambda d: d["dsseEnvelope"].update(payload="")),
    "no envelope": edited(lambda d: d.pop("dsseEnvelope")),
    "no key": edited(lambda d: d["verificationMaterial"].pop("publicKey")),
    "a key without name": edited(lambda d: d["verificationMaterial"].update(publicKey={})),
    "a certificate instead": edited(
        lambda d: d.update(verificationMaterial={"x509CertificateChain": {"certificates": []}})
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_signature_is_refused(bundle: Path, key: Path, case: str) -> None:
    path = Path(f"{bundle}.sig")
    path.write_bytes(HOSTILE[case](path.read_bytes()))
    refuse(bundle, public(key), "not a valid signature|larger than 1 MiB")


def test_a_signature_that_is_no_file_is_refused(bundle: Path, key: Path) -> None:
    path = Path(f"{bundle}.sig")
    path.unlink()
    os.mkfifo(path)
    refuse(bundle, public(key), "is not a file")


def test_an_archive_that_is_replaced_after_its_signature_was_verified_is_refused(
    bundle: Path, key: Path, tmp_path: Path
) -> None:
    signed = signature.verify(bundle, public(key))
    archive.write(bundle, "model", {"model": "m"}, {"a": b"other"})
    with pytest.raises(DeployError, match="was replaced"):
        archive.extract(bundle, tmp_path / "out", sha256=signed.sha256)


def test_only_a_bundle_is_signed(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    for content in (b"", b"graph", b"\x28\xb5\x2f"):
        other.write_bytes(content)
        with pytest.raises(DeployError, match=r"model\.onnx is not a bundle"):
            signature.sign(other, key, no_passphrase)
    assert not signature.beside(other).exists()


def test_keys_are_private_and_never_replaced(key: Path, tmp_path: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    content = key.read_bytes()
    with pytest.raises(UsageError, match=r"release\.key exists"):
        signature.make_keys(key)
    assert key.read_bytes() == content
    (tmp_path / "new.pub").write_text("something else")
    with pytest.raises(UsageError, match=r"new\.pub exists"):
        signature.make_keys(tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"new.pub"}
    with pytest.raises(DeployError, match="cannot be written"):
        signature.make_keys(tmp_path / "no" / "folder")


def test_a_key_with_a_passphrase_needs_it(bundle: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    signature.make_keys(locked, "größe")
    signature.sign(bundle, locked, lambda: "größe")
    signature.verify(bundle, public(locked))
    before = Path(f"{bundle}.sig").read_bytes()
    with pytest.raises(DeployError, match=r"passphrase of .* is wrong"):
        signature.sign(bundle, locked, lambda: "other")
    assert Path(f"{bundle}.sig").read_bytes() == before


def test_files_that_are_no_keys_are_named(bundle: Path, key: Path, tmp_path: Path) -> None:
    private = rsa.generate_private_key(65537, 2048)
    text = tmp_path / "rsa"
    text.write_bytes(
        private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    Path(f"{text}.pub").write_bytes(
        private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(DeployError, match=r"rsa is not an EC key"):
        signature.sign(bundle, text, no_passphrase)
    refuse(bundle, public(text), "rsa.pub cannot be used")
    refuse(bundle, Trusted(public_key=key), "release.key cannot be used")
    refuse(bundle, Trusted(public_key=bundle), "cannot be used")
    refuse(bundle, Trusted(certificate_chain=Path(f"{key}.pub")), "cannot be used")
    with pytest.raises(DeployError, match="is not a private key"):
        signature.sign(bundle, Path(f"{key}.pub"), no_passphrase)
    with pytest.raises(DeployError, match="does not exist"):
        signature.sign(bundle, tmp_path / "none", no_passphrase)


def test_one_signer_is_named() -> None:
    assert Trusted.of(None, None) is None
    with pytest.raises(UsageError, match="both given"):
        Trusted.of("a", "b")


class Authority:
    """A certificate authority for tests, and a certificate that it gave to a signer."""

    def __init__(self, folder: Path, name: str, *, code_signing: bool = True) -> None:
        self.root = folder / f"{name}-root.pem"
        self.certificate = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        signature.make_keys(self.key)
        loaded = serialization.load_pem_private_key(self.key.read_bytes(), None)
        root_key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} root")])
        person = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        root = (
            _certificate(authority, authority, root_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(root_key, hashes.SHA256())
        )
        usages = [x509.ExtendedKeyUsageOID.CODE_SIGNING]
        if not code_signing:
            usages = [x509.ExtendedKeyUsageOID.SERVER_AUTH]
        leaf = (
            _certificate(person, authority, loaded.public_key())
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(_key_usage(signing=True), critical=True)
            .sign(root_key, hashes.SHA256())
        )
        self.root.write_bytes(root.public_bytes(PEM))
        self.certificate.write_bytes(leaf.public_bytes(PEM))


def _certificate(subject: x509.Name, issuer: x509.Name, key: object) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _key_usage(*, signing: bool) -> x509.KeyUsage:
    others = dict.fromkeys(
        (
            "content_commitment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=signing, key_encipherment=not signing, **others)


def test_a_certificate_of_the_authority_is_accepted_and_no_other(
    bundle: Path, key: Path, tmp_path: Path
) -> None:
    acme, other = Authority(tmp_path, "acme"), Authority(tmp_path, "other")
    signature.sign(bundle, acme.key, no_passphrase, acme.certificate)
    signed = signature.verify(bundle, Trusted(certificate_chain=acme.root))
    assert signed.signer.startswith("CN=acme, certificate SHA256:")
    refuse(bundle, Trusted(certificate_chain=other.root), "not a valid signature")
    refuse(bundle, public(key), "not a valid signature")
    with pytest.raises(DeployError, match="does not match"):
        signature.sign(bundle, acme.key, no_passphrase, other.certificate)
    bundle.write_bytes(bundle.read_bytes()[:-1] + b"x")
    refuse(
        bundle,
        Trusted(certificate_chain=acme.root),
        "made for another file, or the bundle has changed",
    )


def test_a_certificate_for_another_use_is_refused(bundle: Path, tmp_path: Path) -> None:
    server = Authority(tmp_path, "server", code_signing=False)
    with pytest.raises(DeployError, match="not for code signing"):
        signature.sign(bundle, server.key, no_passphrase, server.certificate)
    # The library signs with it, and would accept it.
    config = signing.Config().use_certificate_signer(
        private_key=server.key,
        signing_certificate=server.certificate,
        certificate_chain=[server.certificate],
    )
    config.sign(bundle, signature.beside(bundle))
    refuse(bundle, Trusted(certificate_chain=server.root), "not for code signing")


def test_a_signature_says_by_which_option_it_is_verified(
    bundle: Path, key: Path, tmp_path: Path
) -> None:
    acme = Authority(tmp_path, "acme")
    refuse(bundle, Trusted(certificate_chain=acme.root), "--public-key verifies it")
    signature.sign(bundle, acme.key, no_passphrase, acme.certificate)
    refuse(bundle, public(key), "--certificate-chain verifies it")


def test_a_certificate_and_a_passphrase_do_not_go_together(bundle: Path, tmp_path: Path) -> None:
    acme = Authority(tmp_path, "acme")
    locked = tmp_path / "locked"
    signature.make_keys(locked, "secret")
    with pytest.raises(UsageError, match="has a passphrase"):
        signature.sign(bundle, locked, lambda: "secret", acme.certificate)


OFFLINE = """
import socket
def refuse(*_arguments, **_options):
    raise OSError("Network is unreachable")
socket.getaddrinfo = socket.socket.connect = refuse
from pathlib import Path
from pipeline.bundling import signature
from engines.errors import NotAvailableError
import sys
try:
    signature.sign_with_identity(Path(sys.argv[1]))
except NotAvailableError as error:
    print(error.message, error.hint)
"""


@pytest.mark.slow(5)
def test_sigstore_without_a_network_is_an_error_and_writes_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, bundle],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=120,
    )
    assert f"Sigstore could not sign {bundle}" in done.stdout
    assert "assay sign --key" in done.stdout
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_without_the_libraries_the_hint_installs_them(
    bundle: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(NotAvailableError) as raised:
        signature.verify(bundle, public(key))
    assert "pip install model-signing pyOpenSSL" in raised.value.hint


def test_checking_without_a_signer_needs_none_of_the_libraries() -> None:
    code = "import pipeline.bundling.checking, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"model_signing", "cryptography", "OpenSSL", "oras", "sigstore"})
