"""The options that commands share: folders, locks, and how to print."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engines.cache import require_new
from engines.errors import UsageError
from pipeline.workflow import console, leftovers, worker
from pipeline.workflow.artifacts import BUNDLE_SUFFIX, DIST, ROOT
from pipeline.workflow.digests import require_parent
from pipeline.workflow.runner import Store


class Number(click.FloatRange):
    """A number in a range. Click's own type also takes "nan", with which no comparison holds."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Returns the number; fails for what is not one."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def printing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`, `--quiet` and `--explain`, and keeps what libraries print off the terminal."""

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        _require_current_folder()
        with console.own_lines_only():
            return command(**values)

    run = click.option(
        "--explain", is_flag=True, help="Print below each table what its terms mean."
    )(run)
    run = click.option("--quiet", is_flag=True, help="Print results and errors only.")(run)
    return click.option("--json", "json_", is_flag=True, help="Print one JSON document on stdout.")(
        run
    )


def _require_current_folder() -> None:
    """Raises UsageError if the current folder is gone; importing torch would end the process."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError(
            "the current folder has been removed", "run the command in another folder"
        ) from error


def forcing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--force`, for commands that run stages."""
    return click.option("--force", is_flag=True, help="Run even if nothing has changed.")(command)


def storing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--root`, `--dist` and `--wait`, and the options of `printing`."""
    folder = click.Path(file_okay=False, path_type=Path)
    for decorate in (
        click.option(
            "--wait",
            default=3600.0,
            show_default=True,
            help="Seconds to wait for another process that runs the same stage.",
        ),
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


def sized(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns what adds `--max-size`, in GiB; the command gets it as `max_bytes`.

    Args:
        text: What the size is of.
    """
    return click.option(
        "--max-size",
        "max_bytes",
        type=Number(min=0, min_open=True, max=2**30),
        default=64.0,
        show_default=True,
        callback=lambda _context, _option, gib: int(gib * 2**30),
        help=f"GiB that {text}.",
    )


def limiting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--time-limit` and `--memory-limit`, for the process that engines run in."""
    positive = Number(min=0, min_open=True)
    command = click.option(
        "--memory-limit",
        type=positive,
        help="GiB of memory that building or proving an engine may take [nearly all].",
    )(command)
    return click.option(
        "--time-limit",
        type=positive,
        default=worker.Settings.seconds,
        show_default=True,
        help="Seconds that building or proving an engine may take.",
    )(command)


def limit(values: dict[str, Any]) -> None:
    """Removes and applies the options of `limiting`, which not every command has."""
    worker.settings.seconds = values.pop("time_limit", worker.Settings.seconds)
    gib = values.pop("memory_limit", None)
    worker.settings.memory = None if gib is None else int(gib * 2**30)


def require_new_bundle(out: Path) -> None:
    """Raises UsageError unless a bundle can be written to a path, and replaces nothing there."""
    if not out.name.endswith(BUNDLE_SUFFIX):
        raise UsageError(
            f"--out {out} is not the name of a bundle", f"give a name that ends in {BUNDLE_SUFFIX}"
        )
    require_parent(out)
    require_new(out)


def print_as(values: dict[str, Any]) -> None:
    """Removes the options of `printing` from `values` and applies them."""
    console.settings.json = values.pop("json_")
    console.settings.quiet = values.pop("quiet")
    console.settings.explain = values.pop("explain")


def make_store(values: dict[str, Any]) -> Store:
    """Removes the options of `storing` and `forcing`; returns the store they describe."""
    print_as(values)
    limit(values)
    wait, force = values.pop("wait"), values.pop("force", False)
    root, dist = values.pop("root"), values.pop("dist")
    leftovers.sweep(root, dist)
    return Store(root, dist, force, wait)
