"""Bundles of one model that were made on several machines, as one bundle.

The first bundle stays as it is. What the others add lies below a folder of its own for each, with
its records, since the paths in them are those of the machine that made them; equal content is in
the archive once.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engines import cache, temporary
from engines.errors import DeployError
from pipeline import __version__
from pipeline.bundling import archive, bom, checking, provenance, readme, signature
from pipeline.bundling import manifest as manifests
from pipeline.golden import file as goldens
from pipeline.workflow.artifacts import BUNDLE_SUFFIX, CHECKPOINT

# What bundles of one model have in common.
_COMMON = ("model", "dataset", "training", "labels", "preprocessing", "before")
_TARGETS = "targets"


def merge(
    bundles: Sequence[Path],
    target: Path,
    limit: int = archive.MAX_BYTES,
    *,
    trusted: Mapping[Path, signature.Trusted] | None = None,
    keep_equal: bool = False,
) -> tuple[dict[str, Any], dict[Path, str]]:
    """Writes a bundle with the engines of several; nothing in them is opened.

    Args:
        bundles: Two or more; what the first one has comes first.
        target: The archive to write.
        limit: Bytes that the members of each may take together.
        trusted: Whose signature a bundle must have, by its path.
        keep_equal: Name an engine of another bundle also if the first has one of the same bytes
            from another machine, which decides where it is opened.

    Returns:
        The manifest, and who signed each bundle; "" if that was not verified.

    Raises:
        DeployError: A bundle is damaged or its signature is not valid, or they are not of the same
            model.
        UsageError: The archive exists when it is to be put in its place.
    """
    with ExitStack() as stack:
        folders = [stack.enter_context(temporary.folder()).resolve() for _ in bundles]
        parts = [
            checking.unpack(path, folder, limit, (trusted or {}).get(path))
            for path, folder in zip(bundles, folders, strict=True)
        ]
        first = parts[0].manifest
        facts = {key: value for key, value in first.items() if key not in ("members", "schema")}
        facts["assay"] = __version__
        content: dict[str, Path | bytes] = {}
        digests: dict[str, str] = {}
        bills: dict[str, bytes] = {}
        for path, part, folder in zip(bundles, parts, folders, strict=True):
            prefix = manifests.ROOT
            if part is not parts[0]:
                _require_alike(bundles[0], (first, folders[0]), path, (part.manifest, folder))
                prefix = _add(facts, part.manifest, digests, path, keep_equal=keep_equal)
            bills[prefix] = (folder / bom.MEMBER).read_bytes()
            for name, entry in part.manifest["members"].items():
                if name != readme.MEMBER:
                    content[f"{prefix}{name}"] = folder / name
                    digests[f"{prefix}{name}"] = entry["sha256"]
        facts["models"] = manifests.in_order(facts["models"])
        facts["content"] = manifests.content_digest(facts, digests)
        golden = goldens.load(parts[0].model(None).golden)
        text = readme.text(facts, golden.input_specs, golden.feeds(1), content)
        content[readme.MEMBER] = text.encode()
        try:
            content[bom.MEMBER] = bom.merged(bills.pop(manifests.ROOT), bills)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DeployError(
                f"the bill of materials of a bundle has another form than ours: {error!r:.200}",
                "write the bundles again with this version of assay",
            ) from error
        hints = {target.absolute().parent: "free some space there, or give another --out FILE"}
        full, new = temporary.full_disk_named(hints), cache.write_atomic(target, replace=False)
        with full, new as partial:
            archive.write(partial, target.name.removesuffix(BUNDLE_SUFFIX), facts, content)
    signers = {path: part.signer for path, part in zip(bundles, parts, strict=True)}
    return facts, signers


_Part = tuple[Mapping[str, Any], Path]  # a manifest, and the folder of its members


def _require_alike(first: Path, one: _Part, path: Path, other: _Part) -> None:
    """Raises DeployError if two bundles are not of the same weights."""
    hint = "train and export once, and copy the artifacts to the machines that build engines"
    for field in _COMMON:
        if one[0][field] != other[0][field]:
            raise DeployError(
                f"{path} and {first} are not of the same model: {field} is"
                f" {other[0][field]!r:.80}, not {one[0][field]!r:.80}",
                hint,
            )
    if _weights(*one) != _weights(*other):
        raise DeployError(f"{path} and {first} have other weights", hint)


def _weights(manifest: Mapping[str, Any], folder: Path) -> set[str]:
    """Returns the digest of the checkpoint; the graph of an ONNX file has none."""
    records = provenance.read_records(folder, manifest["chains"][manifests.ROOT])
    digests = provenance.digests(records)
    return {digests[label] for label in digests if Path(label).name == CHECKPOINT.name}


def _add(
    facts: dict[str, Any],
    manifest: Mapping[str, Any],
    digests: Mapping[str, str],
    path: Path,
    *,
    keep_equal: bool,
) -> str:
    """Adds to a manifest what another has besides.

    Args:
        facts: The manifest to add to.
        digests: SHA-256 of the members that it has, by path.
        path: The bundle of the other one.
        keep_equal: See `merge`.

    Returns:
        The folder below which the other one's members go.

    Raises:
        DeployError: The graph or golden file at a precision is not the same.
    """
    entries = [e for model in manifest["models"].values() for e in model["engines"].values()]
    taken = {prefix.split("/")[1] for prefix in facts["chains"] if prefix}
    prefix = f"{_TARGETS}/{_free(_machine(entries), taken)}/"
    added = {name: entry["sha256"] for name, entry in manifest["members"].items()}
    for root, paths in manifest["chains"].items():
        facts["chains"][f"{prefix}{root}"] = [f"{prefix}{record}" for record in paths]
    for precision, model in manifest["models"].items():
        known = facts["models"].setdefault(precision, {**_prefixed(model, prefix), "engines": {}})
        for field in ("graph", "data", "golden"):
            both = field in model and field in known and not known[field].startswith(prefix)
            if both and digests[known[field]] != added[model[field]]:
                raise DeployError(
                    f"{path} has another {model[field]} in {precision}",
                    "export once, and copy the artifacts to the machines that build engines",
                )
        for name, entry in model["engines"].items():
            paths = {key: f"{prefix}{entry[key]}" for key in ("path", "builds") if key in entry}
            same = [
                one
                for other, one in known["engines"].items()
                if manifests.backend(other) == manifests.backend(name)
                and digests.get(one["path"]) == added[entry["path"]]
                and (not keep_equal or one["built_with"] == entry["built_with"])
            ]
            if same:
                if "builds" in paths:  # only the other one may have an acceptance region
                    same[0].setdefault("builds", paths["builds"])
                continue
            own = name
            if own in known["engines"]:
                own = _free(f"{manifests.backend(name)}@{_machine([entry])}", known["engines"])
            known["engines"][own] = {**entry, **paths}
    return prefix


def _prefixed(model: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    paths = {
        field: f"{prefix}{model[field]}" for field in ("graph", "data", "golden") if field in model
    }
    return {**model, **paths}


def _machine(entries: Sequence[Mapping[str, Any]]) -> str:
    """Returns a name for the machine that built engines: its GPU, or else its CPU."""
    names = [entry["built_with"].get("gpu_name", "none") for entry in entries]
    names += [entry["built_with"].get("cpu", "none") for entry in entries]
    return cache.slug(next((name for name in names if name != "none"), "other")).lower()


def _free(name: str, taken: Collection[str]) -> str:
    """Returns a name that is not taken: with a number at its end if it has to be another one."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(own for own in itertools.chain([name], numbered) if own not in taken)
