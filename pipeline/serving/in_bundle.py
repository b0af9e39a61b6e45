"""Triton's model repository inside a bundle: a folder for each machine that built engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.errors import DeployError
from pipeline.bundling import archive, repositories
from pipeline.bundling.checking import Unpacked
from pipeline.serving import config, config_checks, config_text
from pipeline.serving.repository import Source, write
from pipeline.workflow.digests import read_json

FOLDER = "triton"  # the repository of the machine that wrote the bundle
_LEVELS = 4  # the most folders between a model and the bundle: targets/MACHINE/triton


def members(sources: Sequence[Source], target: Path) -> dict[str, Path]:
    """Writes a repository into a temporary folder; returns its files by their path in the bundle.

    Raises:
        NotAvailableError: The client library with Triton's messages is not installed.
    """
    write(target, sources, link=True)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return {f"{FOLDER}/{path.relative_to(target)}": path for path in files}


def check(unpacked: Unpacked, root: Path) -> list[str]:
    """Compares the configurations in an unpacked bundle with the golden files.

    Returns:
        A line for each repository.

    Raises:
        DeployError: A configuration contradicts its model.
        NotAvailableError: The client library with Triton's messages is not installed.
    """
    golden = list(dict.fromkeys(model.golden for model in unpacked.models.values()))
    lines = []
    for folder in repositories.folders(unpacked.manifest["members"]):
        config.messages()
        findings = config_checks.check(root / folder, golden)
        if findings.problems:
            raise DeployError(
                f"the model repository {folder} of the bundle: {'; '.join(findings.problems[:5])}",
                "make the bundle again",
            )
        lines.append(f"{folder}: {findings.models} Triton models, no mistake found")
    return lines


def golden_files(repository: Path) -> list[Path]:
    """Returns the golden files of the unpacked bundle around a repository or model, if any."""
    try:
        parents = repository.resolve().parents[:_LEVELS]
    except (OSError, RuntimeError):  # a link to itself
        return []
    for folder in parents:
        try:
            models = read_json(folder / archive.MANIFEST)["models"].values()
            names = [str(model["golden"]) for model in models]
            paths = [folder / name for name in dict.fromkeys(names) if config_text.within(name)]
            return [path for path in paths if path.is_file()]
        except (OSError, ValueError, DeployError, AttributeError, KeyError, TypeError):
            continue  # not the manifest of a bundle
    return []
