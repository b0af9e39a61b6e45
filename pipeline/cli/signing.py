"""The commands that make keys and sign bundles, and the options that name a trusted signer."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.errors import DeployError, UsageError
from pipeline.cli.flags import print_as, printing
from pipeline.workflow import console
from pipeline.workflow.artifacts import BUNDLE
from pipeline.workflow.digests import require_parent
from pipeline.workflow.runner import Outcome, Store

if TYPE_CHECKING:
    from pipeline.bundling import signature

PASSPHRASE = "ASSAY_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable
_path = click.Path(path_type=Path)


def verifying(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--public-key`, `--certificate-chain` and `--require-signature`; see `trusted`."""
    for decorate in (
        click.option(
            "--require-signature", is_flag=True, help="Fail unless a signer is named and signed it."
        ),
        click.option(
            "--certificate-chain",
            type=_path,
            help="Require a signature by a certificate of these authorities (PEM).",
        ),
        click.option("--public-key", type=_path, help="Require a signature by this key (PEM)."),
    ):
        command = decorate(command)
    return command


def trusted(values: dict[str, Any]) -> signature.Trusted | None:
    """Removes the options of `verifying`; returns who has to have signed, None if nobody is named.

    Raises:
        UsageError: A signature is required, but no signer is named; or two are.
    """
    from pipeline.bundling import signature

    signer = signature.Trusted.of(values.pop("public_key"), values.pop("certificate_chain"))
    if values.pop("require_signature") and signer is None:
        raise UsageError(
            "--require-signature does not say whose signature",
            "give --public-key FILE or --certificate-chain FILE",
        )
    return signer


def show_signer(bundle: Path, signer: str) -> None:
    """Prints who signed a bundle, or that its signature was not verified."""
    from pipeline.bundling import signature

    if signer:
        console.result(f"{bundle}: signed by {signer}")
    elif signature.beside(bundle).exists():
        console.say(f"{signature.beside(bundle)} was not verified; --public-key FILE verifies it")


def passphrase_of(key: Path) -> str:
    """Returns the passphrase of a key, from the environment or the terminal.

    Raises:
        UsageError: The command does not run in a terminal, and the variable is not set.
    """
    if secret := os.environ.get(PASSPHRASE):
        return secret
    if not console.can_ask():
        raise UsageError(f"{key} has a passphrase", f"set {PASSPHRASE}, or run it in a terminal")
    return getpass.getpass(f"Passphrase of {key}: ")


def sign_outcome(outcome: Outcome, _store: Store, key: Path) -> dict[str, str]:
    """Signs what the bundle stage wrote, or left as it was because nothing had changed."""
    return _sign(outcome.outputs[BUNDLE], key)


def _sign(bundle: Path, key: Path, certificate: Path | None = None) -> dict[str, str]:
    from pipeline.bundling import signature

    signer = signature.sign(bundle, key, lambda: passphrase_of(key), certificate)
    path = signature.beside(bundle)
    console.result(f"{path}: signed by {signer}")
    return {"signature": str(path), "signer": signer}


@click.command()
@click.argument("file", type=_path)
@click.option("--passphrase", is_flag=True, help=f"Ask for a passphrase [{PASSPHRASE}, or none].")
@printing
def keygen(file: Path, passphrase: bool, **values: Any) -> None:
    """Make a pair of keys to sign bundles with: FILE, to keep, and FILE.pub, to give away."""
    from pipeline.bundling import signature

    print_as(values)
    require_parent(file)
    secret = os.environ.get(PASSPHRASE, "")
    if passphrase and not secret:
        secret = _new_passphrase()
    digest = signature.make_keys(file, secret)
    public = f"{file}{signature.PUBLIC_SUFFIX}"
    console.result(
        f"{file}: private key{', encrypted' if secret else ''}\n{public}: public key {digest}"
    )
    console.document({"private": str(file), "public": public, "fingerprint": digest})


def _new_passphrase() -> str:
    if not console.can_ask():
        raise UsageError(
            "nobody can be asked for a passphrase without a terminal", f"set {PASSPHRASE}"
        )
    secret = getpass.getpass("New passphrase: ")
    if not secret or getpass.getpass("Again: ") != secret:
        raise DeployError("the passphrase is empty, or was not repeated", "try again")
    return secret


@click.command()
@click.argument("bundle", type=_path)
@click.option("--key", type=_path, help="Sign with this private key (PEM), of `assay keygen`.")
@click.option(
    "--certificate",
    type=_path,
    help="The certificate of --key and those between it and the authority (PEM).",
)
@click.option(
    "--sigstore", is_flag=True, help="Sign with an identity that Sigstore confirms, in a browser."
)
@printing
def sign(
    bundle: Path, key: Path | None, certificate: Path | None, sigstore: bool, **values: Any
) -> None:
    """Sign a bundle: write BUNDLE.sig, which `assay check --public-key` verifies."""
    from pipeline.bundling import archive, signature

    print_as(values)
    if sigstore == (key is not None) or (certificate is not None and key is None):
        raise UsageError(
            "sign needs one way to sign", "give --key, --key with --certificate, or --sigstore"
        )
    archive.describe(bundle)  # to its end: a signature would make a damaged one look right
    if key is not None:
        console.document(_sign(bundle, key, certificate))
        return
    console.say("Sigstore uses the identity of this job, or asks for yours in a browser")
    signature.sign_with_identity(bundle)
    path = signature.beside(bundle)
    console.result(f"{path}: signed by Sigstore; `model_signing verify` verifies it")
    console.document({"signature": str(path), "signer": "sigstore"})


COMMANDS = (keygen, sign)
