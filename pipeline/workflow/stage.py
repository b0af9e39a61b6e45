"""A stage: a pure step from files to files, declared once.

The fields of its parameters are the command's options, part of the cache key, and part of the
provenance record.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from engines.errors import UsageError
from pipeline.workflow.artifacts import Artifact, Paths

P = TypeVar("P")
Names = Callable[[], list[str]]
# Runs of one stage: where the outputs of each lie, and its parameters.
StageRuns: TypeAlias = Sequence[tuple[Paths, P]]


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What an option means beyond the one run of the stage whose parameter it is.

    Attributes:
        every: What "all" stands for, by the other parameters and the root. Such an option takes a
            list; the stage runs once for each value, unless the field is a tuple.
        lenient: Of "all" values, those that are not available here are left out.
        as_trained: Left out, it is what the model was trained with, by the checkpoint's record.
        images: It takes a folder of images, too, which stands for the data set made of it.
        images_folder: It is given the folder that another option took for its `images`.
        instead: The function of the command line that runs instead of the stage, which then
            records nothing.
        needs: Other options of which one has to be given with it.
        advice: What to do where none of them is.
        in_run: `assay run` has it, too.
        leads: Of the declarations that stages share, the one that `assay run` shows.
    """

    every: Callable[[Mapping[str, Any], Path], list[str]] | None = None
    lenient: bool = False
    as_trained: bool = False
    images: bool = False
    images_folder: bool = False
    instead: str = ""
    needs: tuple[str, ...] = ()
    advice: str = ""
    in_run: bool = True
    leads: bool = False


def option(
    default: Any = dataclasses.MISSING,
    *,
    text: str,
    factory: Any = dataclasses.MISSING,
    names: Names | None = None,
    check: Callable[[str], None] | None = None,
    key: bool = True,
    low: int = 1,
    high: int = 2**31 - 1,
    meaning: Meaning = Meaning(),
) -> Any:
    """Declares a field of a stage's parameters that becomes a command-line option.

    Args:
        default: The option's default.
        text: What the option does, with its unit.
        factory: A function that gives the default on this machine.
        names: The values the option accepts; an unknown one gets the nearest suggested.
        check: Raises UsageError for a word that the option does not accept.
        key: Whether another value means other outputs, so that the stage has to run again.
        low: The smallest whole number accepted; a float has to be above 0.
        high: The largest number accepted.
        meaning: What it means to the other stages and to the command line.
    """
    metadata = {
        "text": text,
        "names": names,
        "valid": check,
        "key": key,
        "low": low,
        "high": high,
        "meaning": meaning,
    }
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One field of a stage's parameters, as the command line needs it.

    Attributes:
        type: The element type: str, int, float, bool or Path.
        many: The field is a tuple, given as a comma-separated list.
    """

    name: str
    type: type
    many: bool
    required: bool
    default: Any
    text: str
    names: Names | None
    valid: Callable[[str], None] | None
    key: bool
    low: int
    high: int
    meaning: Meaning

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: Any) -> None:
        """Raises UsageError for a word or a number that the option does not accept."""
        for item in value if self.many else (value,):
            if self.valid is not None and item is not None:
                self.valid(item)
            if self.type not in (int, float) or item is None:
                continue
            fits = 0 < item <= self.high if self.type is float else self.low <= item <= self.high
            if not fits:
                range_ = "above 0 and up to" if self.type is float else f"from {self.low} to"
                raise UsageError(
                    f"{self.flag} {item} is out of range",
                    f"give a number {range_} {self.high}",
                )


def check(params: Any) -> None:
    """Raises UsageError if one of a stage's parameters is not what its option accepts."""
    for item in options(type(params)):
        item.check(getattr(params, item.name))


def options(params: type) -> tuple[Option, ...]:
    """Returns the options that a parameter class declares, in its order."""
    hints = typing.get_type_hints(params)
    return tuple(_option(field, hints[field.name]) for field in dataclasses.fields(params))


def _option(field: dataclasses.Field[Any], hint: Any) -> Option:
    many = typing.get_origin(hint) is tuple
    if many or typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = typing.get_args(hint)[0]
    default = None
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return Option(
        name=field.name, type=hint, many=many, required=required, default=default, **field.metadata
    )


def _same(params: Any) -> Any:
    return params


def _no_stage(_params: Mapping[str, Any], _root: Path) -> str:
    return ""


def _no_facts(_params: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[P]):
    """A pure step from files to files.

    Attributes:
        params: A frozen dataclass whose fields were made with `option`.
        inputs: The artifacts it reads, for given parameters.
        outputs: The artifacts it makes; all lie under one record.
        run: Does the work: reads from the first paths, writes to the second.
        revision: Raised when the stage makes something else of the same inputs, so that what
            an older version made is made again.
        tools: Distributions whose versions are part of the key.
        facts: More that the outputs depend on: source digests, a backend's fingerprint.
        resolve: Fills in the defaults that depend on other parameters.
        command: A dataclass of options of the command alone, made with `option` as well; none of
            them changes what the stage makes.
        first: The stage that has to run before it, by the options given and the root; "" if none
            has to. It gets those of the options that it has, too.
        show: Prints what one or more runs gave, whether they ran or were skipped, and raises
            DeployError if that says that something is wrong.
    """

    name: str
    help: str
    params: type[P]
    inputs: Callable[[P], tuple[Artifact, ...]]
    outputs: Callable[[P], tuple[Artifact, ...]]
    run: Callable[[Paths, Paths, P], None]
    revision: int = 1
    tools: tuple[str, ...] = ()
    facts: Callable[[P], Mapping[str, str]] = _no_facts
    resolve: Callable[[P], P] = _same
    command: type | None = None
    first: Callable[[Mapping[str, Any], Path], str] = _no_stage
    show: Callable[[StageRuns[P]], None]
