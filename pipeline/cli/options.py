"""The click parameters of a command, made from the declared options of its stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from engines.errors import UsageError, suggestion
from pipeline import models
from pipeline.workflow.stage import Option

ALL = "all"


class SectionedCommand(click.Command):
    """A command whose help lists its options by section.

    Attributes:
        sections: The names of the options in each section, by its heading. Options in none of
            them come last.
    """

    sections: Mapping[str, Sequence[str]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections, each with its options in the order they are declared."""
        parameters = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in parameters}
        named = {name for names in self.sections.values() for name in names}
        others = [name for name in records if name not in named]
        for heading, names in {**self.sections, "All commands": others}.items():
            if lines := [record for name in names if (record := records.get(name)) is not None]:
                with formatter.section(heading):
                    formatter.write_dl(lines)


def click_parameter(
    option: Option, *, with_default: bool = True, stages: Sequence[str] = ()
) -> click.Parameter:
    """Returns the click parameter of one option; required ones are positional arguments.

    Args:
        with_default: Show the default in the help.
        stages: The stages that the option is for, if the help is to name them.
    """

    def check(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if isinstance(value, tuple):  # a list may come in parts: --batch 1,8 --batch 64
            value = ",".join(value) if value else None
        return None if value is None else _check(option, value)

    if option.required:
        return click.Argument(
            [option.name],
            callback=check,
            metavar=option.name.upper(),
            shell_complete=_completing(option),
        )
    flag = option.flag
    listed = _takes_list(option)
    help_text = option.text
    if option.names is not None:
        help_text += f" Known: {', '.join(option.names())}."
    if with_default and option.default not in (None, (), False):
        default = option.default
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        help_text += f" [default: {text}]"
    if stages:
        help_text += f" For {', '.join(stages)}."
    if option.type is bool and option.role.action:  # needs no --no-FLAG
        return click.Option([flag], is_flag=True, default=None, help=help_text)
    if option.type is bool:
        return click.Option(
            [f"{flag}/--no-{flag[2:]}"], default=None, help=help_text, callback=check
        )
    kind: Any = str if listed else option.type
    if option.type is Path:
        kind = click.Path(path_type=Path)
    metavar = "LIST" if listed else None
    # click itself completes paths.
    complete = None if option.type is Path else _completing(option)
    return click.Option(
        [flag],
        type=kind,
        help=help_text,
        callback=check,
        metavar=metavar,
        multiple=listed,
        shell_complete=complete,
    )


def _completing(option: Option) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Returns what completes a word, or the last word of a list, in a shell."""

    def complete(_context: click.Context, _parameter: click.Parameter, word: str) -> list[str]:
        known = models.names() if option.name == "model" else []
        if option.names is not None:
            known = [*option.names(), *([ALL] if option.role.expand_all is not None else [])]
        first, comma, last = word.rpartition(",") if _takes_list(option) else ("", "", word)
        taken = first.split(",")
        return [
            f"{first}{comma}{name}" for name in known if name.startswith(last) and name not in taken
        ]

    return complete


def is_list(option: Option) -> bool:
    """Whether a stage runs with several values of an option."""
    return option.many or option.role.expand_all is not None


def _takes_list(option: Option) -> bool:
    """Whether an option of a command takes several values."""
    return is_list(option) or option.role.each


def check_words(option: Option, words: Sequence[Any], label: str) -> None:
    """Checks the values of an option against its names; a None is not checked.

    Args:
        label: The option's name in the message about an empty list.

    Raises:
        UsageError: There are no words, or one is unknown; the hint suggests the nearest.
    """
    if not words:
        raise UsageError(f"{label} is empty", "give at least one")
    if option.names is None:
        return
    known = option.names() + ([ALL] if option.role.expand_all is not None else [])
    for word in words:
        if word is not None and word not in known:
            raise UsageError(f"unknown {option.name} {word!r}", suggestion(str(word), known))


def _check(option: Option, value: Any) -> Any:
    """Returns an option's value in the type of its field; raises UsageError if it is not valid."""
    listed, flag, every = _takes_list(option), option.flag, option.role.expand_all is not None
    values = [part.strip() for part in value.split(",") if part.strip()] if listed else [value]
    check_words(option, values, flag)
    if every and ALL in values and len(set(values)) > 1:
        raise UsageError(f"{flag} {value} mixes {ALL} and names", f"give {ALL} or names")
    if not listed:
        option.validate(value)
        return models.relative(value) if option.name == "model" else value
    try:
        converted = [option.type(word) for word in values]
    except ValueError as error:
        raise UsageError(
            f"{flag} {value!r} is not a list of {option.type.__name__}",
            "separate the values by commas",
        ) from error
    if option.many:
        option.validate(converted)
    return tuple(converted) if option.many and not every else converted
