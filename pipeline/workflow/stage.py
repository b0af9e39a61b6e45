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
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from engines.errors import UsageError
from pipeline.workflow.artifacts import Artifact, Paths

if TYPE_CHECKING:
    from pipeline.workflow.records import Record

P = TypeVar("P")
Names = Callable[[], list[str]]
# Runs of one stage: the paths of each run's outputs, and its parameters.
StageRuns: TypeAlias = Sequence[tuple[Paths, P]]


@dataclass(frozen=True, kw_only=True)
class OptionRole:
    """How the command line and the chain treat an option, apart from passing it to the stage.

    Attributes:
        expand_all: Returns the values that "all" stands for, given the other parameters and the
            root. An option that has it takes a list; the stage runs once for each value, or once
            with all of them if the field is a tuple.
        each: The command takes a list, and does everything once for each value.
        skip_unavailable: The stage may skip values that are not available on this machine.
        default_from_training: Defaults to the value in the checkpoint's training record.
        takes_image_folder: Also accepts a folder of images, in place of a data set's name.
        image_folder: Receives the folder given to the option with `takes_image_folder`.
        action: Function in `pipeline.cli.stage_runs` to run instead of the stage; it records
            nothing.
        after: Function in `pipeline.cli.main` to call with the outcome of the stage and the value;
            what it returns is added to the command's document.
        again: The stage runs even if nothing has changed.
        quantized: It is for quantized precisions; of several, the others do without.
        requires: Names of options, at least one of which must be given with this one.
        requires_hint: The hint of the error if none of them is given.
        in_run: `assay run` has the option, too.
        shown_by_run: If several stages declare the option, `assay run` shows this declaration.
    """

    expand_all: Callable[[Mapping[str, Any], Path], list[str]] | None = None
    each: bool = False
    skip_unavailable: bool = False
    default_from_training: bool = False
    takes_image_folder: bool = False
    image_folder: bool = False
    action: str = ""
    after: str = ""
    again: bool = False
    quantized: bool = False
    requires: tuple[str, ...] = ()
    requires_hint: str = ""
    in_run: bool = True
    shown_by_run: bool = False


def option(
    default: Any = dataclasses.MISSING,
    *,
    text: str,
    factory: Any = dataclasses.MISSING,
    names: Names | None = None,
    validate: Callable[[Any], None] | None = None,
    key: bool = True,
    low: int = 1,
    high: int = 2**31 - 1,
    role: OptionRole = OptionRole(),
) -> Any:
    """Declares a field of a stage's parameters that becomes a command-line option.

    Args:
        default: The option's default.
        text: What the option does, with its unit.
        factory: Returns the default on this machine.
        names: Returns the values the option accepts; the error for another suggests the nearest.
        validate: Raises UsageError for a value that the option does not accept.
        key: Whether the value is part of the cache key: a change makes the stage run again.
        low: The smallest integer accepted; a float must be above 0, or at least 0 if this is 0.
        high: The largest number accepted.
        role: How the command line and the chain treat the option.
    """
    metadata = {
        "text": text,
        "names": names,
        "validator": validate,
        "key": key,
        "low": low,
        "high": high,
        "role": role,
    }
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One field of a stage's parameters; see `option`.

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
    validator: Callable[[Any], None] | None
    key: bool
    low: int
    high: int
    role: OptionRole

    @property
    def flag(self) -> str:
        """The option's spelling on the command line, such as `--batch-size`."""
        return f"--{self.name.replace('_', '-')}"

    def validate(self, value: Any) -> None:
        """Raises UsageError for a word or a number that the option does not accept."""
        for item in value if self.many else (value,):
            if self.validator is not None and item is not None:
                self.validator(item)
            if self.type not in (int, float) or item is None:
                continue
            above = self.type is float and self.low > 0
            if not (item > 0 if above else self.low <= item) or item > self.high:
                range_ = "above 0 and up to" if above else f"from {self.low} to"
                raise UsageError(
                    f"{self.flag} {item} is out of range",
                    f"give a number {range_} {self.high}",
                )


def validate_params(params: Any) -> None:
    """Raises UsageError if the option of one of the parameters does not accept its value."""
    for item in options(type(params)):
        item.validate(getattr(params, item.name))


def options(params: type) -> tuple[Option, ...]:
    """Returns the options that a parameter class declares, in the order of its fields."""
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


@dataclass(frozen=True)
class Difference:
    """Something that a stage's outputs depend on and that has changed since they were made.

    Attributes:
        part: "params", "inputs", "tools", "facts", "revision", "outputs", "record" or "force".
        name: Its name in that part of the record.
        text: What has changed, for a message.
    """

    part: str
    name: str
    text: str


def _unchanged(params: Any, *_context: Any) -> Any:
    return params


def _unprotected(*_context: Any) -> bool:
    return False


def _nothing(*_context: Any) -> None:
    pass


def _no_prerequisite(_params: Mapping[str, Any], _root: Path) -> str:
    return ""


def _never_again(_outputs: Paths, _params: Any) -> str:
    return ""


def _all_used(_explicit: frozenset[str], _runs: Sequence[Any]) -> None:
    pass


def _no_artifacts(_params: Any) -> tuple[Artifact, ...]:
    return ()


def _no_facts(_params: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[P]):
    """A pure step from files to files.

    Attributes:
        params: A frozen dataclass whose fields were made with `option`.
        inputs: Returns the artifacts the stage reads.
        conditions: Returns the artifacts that allow the stage to run, such as verdicts. It reads
            them, but its outputs do not depend on their content.
        outputs: Returns the artifacts the stage makes; all have the same record.
        run: Does the work: reads from the first paths, writes to the second.
        revision: Part of the cache key. Increase it when the stage starts to make different
            outputs from the same inputs.
        tools: Distributions whose versions are part of the cache key.
        facts: Returns the rest of the cache key: source digests, a backend's fingerprint.
        resolve: Checks parameters and fills in the defaults that depend on other parameters.
        command_options: A dataclass of options that only the command has, made with `option` as
            well; none of them changes the outputs.
        check_options: Checks the names of the options that the user gave against the parameters of
            all runs; raises UsageError for one that no run uses.
        prerequisite: Returns the name of the stage that the command runs first, or "", given the
            options and the root. That stage gets the options that it shares.
        opens_engines: It builds or opens engines in a child process, whose limits are options.
        inherit: Completes parameters by those of the last record, given the names of the options
            that the user gave. Without a record at this precision, it is one at another.
        protect: Whether to keep outputs that would be made again, given the parameters, the
            names of the options that the user gave, the record, None if it is damaged, and the
            differences from it. Raises UsageError if the user has to decide.
        replacing: Called before the outputs replace earlier ones.
        published: Called once the outputs are in place.
        run_again: Returns why complete outputs, though nothing has changed, are to be made again,
            or "".
        show: Prints the results of one or more runs, including skipped ones. Raises DeployError
            if a result is a failure, such as a verdict that is not a pass.
    """

    name: str
    help: str
    params: type[P]
    inputs: Callable[[P], tuple[Artifact, ...]]
    outputs: Callable[[P], tuple[Artifact, ...]]
    conditions: Callable[[P], tuple[Artifact, ...]] = _no_artifacts
    run: Callable[[Paths, Paths, P], None]
    revision: int = 1
    tools: tuple[str, ...] = ()
    facts: Callable[[P], Mapping[str, str]] = _no_facts
    resolve: Callable[[P], P] = _unchanged
    command_options: type | None = None
    check_options: Callable[[frozenset[str], Sequence[P]], None] = _all_used
    prerequisite: Callable[[Mapping[str, Any], Path], str] = _no_prerequisite
    opens_engines: bool = False
    inherit: Callable[[P, frozenset[str], Record], P] = _unchanged
    protect: Callable[[P, frozenset[str], Record | None, Sequence[Difference]], bool] = _unprotected
    replacing: Callable[[Paths], None] = _nothing
    published: Callable[[Paths, P], None] = _nothing
    run_again: Callable[[Paths, P], str] = _never_again
    show: Callable[[StageRuns[P]], None]
