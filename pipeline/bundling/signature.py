"""Signatures of bundles, as OpenSSF Model Signing defines them, in a file beside the bundle.

A signature is of the archive as a file, so that nothing reads an archive before it is verified.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cache import write_atomic
from engines.checks import import_vendor
from engines.errors import DeployError, NotAvailableError, UsageError
from pipeline.bundling import archive
from pipeline.workflow.digests import open_file, parse_json, require_file

SUFFIX = ".sig"
PUBLIC_SUFFIX = ".pub"
_INSTALL = "pip install model-signing pyOpenSSL"
_MAX_BYTES = 1 << 20  # of a signature, a key or a file of certificates
_MAX_REASON = 200  # characters of a library's message
_HINT = (
    "get the bundle and its signature again from where they were made, or name the key of the one"
    " who signed it"
)


@dataclass(frozen=True)
class Trusted:
    """Whose signature a bundle must have; exactly one of the files is given.

    Attributes:
        public_key: PEM file with the signer's public key.
        certificate_chain: PEM file with the authorities whose code-signing certificates count.
    """

    public_key: Path | None = None
    certificate_chain: Path | None = None

    @classmethod
    def of(
        cls,
        public_key: str | os.PathLike[str] | None,
        certificate_chain: str | os.PathLike[str] | None,
    ) -> Trusted | None:
        """Returns what the two options ask for; None if neither is given.

        Raises:
            UsageError: Both are given.
        """
        if public_key is not None and certificate_chain is not None:
            raise UsageError(
                "a public key and a certificate chain are both given", "give one of them"
            )
        if public_key is None and certificate_chain is None:
            return None
        return cls(
            None if public_key is None else Path(public_key),
            None if certificate_chain is None else Path(certificate_chain),
        )


@dataclass(frozen=True)
class Signed:
    """What a valid signature says.

    Attributes:
        sha256: Digest of the archive that was signed.
        signer: Who signed it, in words, with a fingerprint.
    """

    sha256: str
    signer: str


def beside(bundle: Path) -> Path:
    """Returns the path of a bundle's signature."""
    return Path(f"{bundle}{SUFFIX}")


def make_keys(path: Path, passphrase: str = "") -> str:
    """Writes a new pair of EC P-256 keys: `path`, readable by its owner only, and `path`.pub.

    Args:
        passphrase: Encrypts the private key, unless it is empty.

    Returns:
        The fingerprint of the public key.

    Raises:
        DeployError: One of the files cannot be written; then neither is left.
        UsageError: One of the files exists; it stays as it is.
    """
    serialization = import_vendor("cryptography.hazmat.primitives.serialization", _INSTALL)
    curves = import_vendor("cryptography.hazmat.primitives.asymmetric.ec", _INSTALL)
    private = curves.generate_private_key(curves.SECP256R1())
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    contents = {
        path: private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption),
        Path(f"{path}{PUBLIC_SUFFIX}"): private.public_key().public_bytes(
            pem, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    }
    written: list[Path] = []
    try:
        for file, content in contents.items():
            mode = 0o600 if file == path else 0o644
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(file)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(content)
    except BaseException as error:
        for file in written:
            with suppress(OSError):
                file.unlink()
        if isinstance(error, FileExistsError):
            raise UsageError(
                f"{error.filename} exists, and a key is never replaced",
                "give the path of a new file",
            ) from error
        if isinstance(error, OSError):
            raise DeployError(
                f"the keys cannot be written to {path.parent}: {error.strerror or error}",
                "give a path in a folder that you can write",
            ) from error
        raise
    return fingerprint(private.public_key())


def fingerprint(public_key: Any) -> str:
    """Returns the SHA-256 of a public key's DER form, as `openssl pkey -pubin -outform DER`."""
    serialization = import_vendor("cryptography.hazmat.primitives.serialization", _INSTALL)
    content = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"SHA256:{hashlib.sha256(content).hexdigest()}"


def sign(
    bundle: Path,
    key: Path,
    passphrase: Callable[[], str],
    certificate: Path | None = None,
) -> str:
    """Signs a bundle with a private key, replacing the signature beside it.

    Args:
        key: PEM file with an EC private key.
        passphrase: Called for the passphrase if the key is encrypted.
        certificate: PEM file with the key's certificate and those between it and the authority.

    Returns:
        Who signed it, in words.

    Raises:
        DeployError: The file, the key or the certificate cannot be read, or they do not match.
        NotAvailableError: Libraries for signing are missing.
    """
    archive.require_start(bundle)
    signing = import_vendor("model_signing.signing", _INSTALL)
    private, secret = private_key(key, passphrase)
    config = signing.Config()
    try:
        if certificate is None:
            config.use_elliptic_key_signer(private_key=key, password=secret)
            signer = f"the key {fingerprint(private.public_key())}"
        elif secret is not None:  # the library takes none together with a certificate
            raise UsageError(
                f"{key} has a passphrase, which signing with a certificate cannot take",
                "give a key without one; `openssl pkey -in KEY -out PLAIN` writes it",
            )
        else:
            leaf = _loaded(read_small(certificate, "certificate"))
            _require_code_signing(leaf)
            config.use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=[certificate]
            )
            signer = _describe(leaf)
        with write_atomic(beside(bundle)) as part:
            config.sign(bundle.resolve(), part)
    except (ValueError, TypeError) as error:
        files = key if certificate is None else f"{key} and {certificate}"
        raise DeployError(
            f"{bundle} cannot be signed with {files}: {error}",
            "give an EC private key (P-256, P-384 or P-521) and its own certificate, as PEM",
        ) from error
    return signer


def sign_with_identity(bundle: Path) -> None:
    """Signs a bundle with an identity that Sigstore confirms; it needs the network.

    Raises:
        DeployError: Sigstore cannot be reached, or does not sign; nothing is written then.
    """
    archive.require_start(bundle)
    signing = import_vendor("model_signing.signing", _INSTALL)
    try:
        config = signing.Config().use_sigstore_signer(use_ambient_credentials=True)
        with write_atomic(beside(bundle)) as part:
            config.sign(bundle.resolve(), part)
    except Exception as error:  # many libraries, each with errors of its own
        reason = str(error) or type(error).__name__
        raise NotAvailableError(
            f"Sigstore could not sign {bundle}: {reason}",
            "Sigstore needs the network; `assay sign --key FILE` does not",
        ) from error


def private_key(path: Path, passphrase: Callable[[], str]) -> tuple[Any, bytes | None]:
    """Returns the private EC key in a PEM file, and its passphrase if it has one.

    Args:
        passphrase: Called for the passphrase if the key is encrypted.

    Raises:
        DeployError: The file cannot be read, holds another thing than a private EC key, or the
            passphrase is wrong.
        NotAvailableError: The library `cryptography` is missing.
    """
    serialization = import_vendor("cryptography.hazmat.primitives.serialization", _INSTALL)
    curves = import_vendor("cryptography.hazmat.primitives.asymmetric.ec", _INSTALL)
    content, hint = read_small(path, "private key"), "make one with `assay keygen FILE`"
    secret = None
    try:
        key = serialization.load_pem_private_key(content, None)
    except TypeError:  # it is encrypted
        secret = passphrase().encode()
        try:
            key = serialization.load_pem_private_key(content, secret)
        except ValueError as error:
            raise DeployError(f"the passphrase of {path} is wrong", "give the right one") from error
    except ValueError as error:
        raise DeployError(f"{path} is not a private key in PEM", hint) from error
    if not isinstance(key, curves.EllipticCurvePrivateKey):
        raise DeployError(f"{path} is not an EC key", hint)
    return key, secret


def read_small(path: Path, kind: str) -> bytes:
    """Returns the content of a small file.

    Raises:
        DeployError: It is missing, is not a file, or is too large.
    """
    require_file(path, f"give the path of the {kind}")
    try:
        with open_file(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DeployError(
            f"{path} cannot be read: {error.strerror or error}", "check its permissions"
        ) from error
    if len(content) > _MAX_BYTES:
        raise DeployError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: it is not a {kind}")
    return content


def verify(bundle: Path, trusted: Trusted) -> Signed:
    """Verifies the signature beside a bundle. Reads the archive as bytes only, to hash it.

    Raises:
        DeployError: The signature is missing, damaged, of another file or by somebody else.
        NotAvailableError: Libraries for signing are missing.
    """
    require_file(bundle, archive.NO_BUNDLE)
    path = beside(bundle)
    require_file(path, "`assay sign BUNDLE --key FILE` makes one, where the bundle was made")
    content = read_small(path, "signature")
    verifying = import_vendor("model_signing.verifying", _INSTALL)
    config = verifying.Config()
    named = trusted.public_key or trusted.certificate_chain
    if named is None:
        raise UsageError("nobody is trusted", "name a public key or a certificate chain")
    key = read_small(named, "public key" if trusted.public_key else "certificate chain")
    try:
        if trusted.public_key:
            config.use_elliptic_key_verifier(public_key=named)
        else:
            config.use_certificate_verifier(certificate_chain=[named])
    except Exception as error:
        raise DeployError(
            f"{named} cannot be used to verify: {error}",
            "give an EC public key (P-256, P-384 or P-521) or certificates, as PEM",
        ) from error
    try:
        signature = parse_json(content)
        _require_plain(signature, path)
        _require_kind(signature, certificate=trusted.public_key is None)
        config.verify(bundle.resolve(), path)
        statement = parse_json(base64.b64decode(signature["dsseEnvelope"]["payload"]))
        sha256 = _signed_digest(statement)
        if trusted.public_key:
            serialization = import_vendor("cryptography.hazmat.primitives.serialization", _INSTALL)
            signer = f"the key {fingerprint(serialization.load_pem_public_key(key))}"
        else:
            signer = _certified(signature)
    except Exception as error:  # a hostile file may raise anything in the libraries that read it
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        if type(error).__name__ == "InvalidSignature":
            reason = "it is not by this key"
        elif reason.startswith("Signature mismatch"):  # what follows has digests as Python prints
            reason = "it was made for another file, or the bundle has changed since"
        raise DeployError(
            f"{path} is not a valid signature of {bundle} by {named}: {reason}", _HINT
        ) from error
    return Signed(sha256, signer)


def _require_plain(signature: Any, path: Path) -> None:
    """Raises ValueError if a part of the signature would be ignored, such as an unknown field.

    So a changed bit is found even where it makes no difference to the library.
    """
    formats = import_vendor("model_signing._signing.sign_sigstore_pb", _INSTALL)
    understood = parse_json(formats.Signature.read(path).bundle.to_json().encode())
    if _without_empty(signature) != _without_empty(understood):
        raise ValueError("it has parts that no signature has")
    material = signature["verificationMaterial"]
    if "publicKey" in material and not material["publicKey"]["hint"]:
        raise ValueError("it does not name its key")
    if len(signature["dsseEnvelope"]["signatures"]) != 1:
        raise ValueError("it has more than one signature")


def _require_kind(signature: Any, *, certificate: bool) -> None:
    """Raises ValueError if a signature is by a key where a certificate is trusted, or otherwise."""
    if ("x509CertificateChain" in signature["verificationMaterial"]) != certificate:
        raise ValueError(
            "it is by a key alone; --public-key verifies it"
            if certificate
            else "it has a certificate; --certificate-chain verifies it"
        )


def _require_code_signing(certificate: Any) -> None:
    """Raises ValueError unless a certificate is for code signing.

    The library that verifies takes any that may sign, such as a web server's.
    """
    x509 = import_vendor("cryptography.x509", _INSTALL)

    def extension(kind: Any) -> Any:
        try:
            return certificate.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None

    if x509.oid.ExtendedKeyUsageOID.CODE_SIGNING not in (extension(x509.ExtendedKeyUsage) or ()):
        raise ValueError("the certificate is not for code signing (extended key usage)")
    use, basic = extension(x509.KeyUsage), extension(x509.BasicConstraints)
    if (use and not use.digital_signature) or (basic and basic.ca):
        raise ValueError("the certificate is not for signatures (key usage), or is an authority's")


def _without_empty(value: Any) -> Any:
    """Returns a JSON value without empty fields, which another writer may leave out."""
    if isinstance(value, dict):
        entries = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in entries.items() if item not in (None, "", [], {})}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def _signed_digest(statement: Any) -> str:
    """Returns the SHA-256 of the one file that was signed."""
    (resource,) = statement["predicate"]["resources"]
    if resource["algorithm"] != "sha256":
        raise ValueError(f"it lists a {resource['algorithm']} digest instead of sha256")
    return str(resource["digest"])


def _certified(signature: Any) -> str:
    """Returns who a certificate in a signature names."""
    x509 = import_vendor("cryptography.x509", _INSTALL)
    chain = signature["verificationMaterial"]["x509CertificateChain"]["certificates"]
    certificate = x509.load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"]))
    _require_code_signing(certificate)
    return _describe(certificate)


def _loaded(content: bytes) -> Any:
    """Returns the first certificate of a PEM file."""
    return import_vendor("cryptography.x509", _INSTALL).load_pem_x509_certificate(content)


def _describe(certificate: Any) -> str:
    hashes = import_vendor("cryptography.hazmat.primitives.hashes", _INSTALL)
    digest = certificate.fingerprint(hashes.SHA256()).hex()
    return f"{certificate.subject.rfc4514_string()}, certificate SHA256:{digest}"
