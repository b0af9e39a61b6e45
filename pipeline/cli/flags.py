"""The options that commands share: folders, locks, and how to print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.workflow import console
from pipeline.workflow.artifacts import DIST, ROOT
from pipeline.workflow.runner import Store


def printing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json` and `--quiet`."""
    command = click.option("--quiet", is_flag=True, help="Print results and errors only.")(command)
    return click.option("--json", "json_", is_flag=True, help="Print one JSON document on stdout.")(
        command
    )


def storing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--root`, `--dist`, `--force` and `--wait`, and the options of `printing`."""
    folder = click.Path(file_okay=False, path_type=Path)
    for decorate in (
        click.option(
            "--wait",
            default=3600.0,
            show_default=True,
            help="Seconds to wait for another process that runs the same stage.",
        ),
        click.option("--force", is_flag=True, help="Run even if nothing has changed."),
        click.option(
            "--dist",
            type=folder,
            default=DIST,
            show_default=True,
            help="Folder of the bundles.",
        ),
        click.option(
            "--root",
            type=folder,
            default=ROOT,
            show_default=True,
            help="Folder of the artifacts.",
        ),
    ):
        command = decorate(command)
    return printing(command)


def print_as(values: dict[str, Any]) -> None:
    """Removes the options of `printing` from `values` and applies them."""
    console.settings.json = values.pop("json_")
    console.settings.quiet = values.pop("quiet")


def make_store(values: dict[str, Any]) -> Store:
    """Removes the options of `storing` from `values`; returns the store they describe."""
    print_as(values)
    wait, force = values.pop("wait"), values.pop("force")
    return Store(values.pop("root"), values.pop("dist"), force, wait)
