"""Ranges of sizes that a plan is also optimised for, besides its whole range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engines.errors import UsageError

# The least, the usual and the largest size of an axis.
Range = tuple[int, int, int]
# By the name of an axis, or INPUT.AXIS as in image.2.
Profile = Mapping[str, Range]
# What the first axis is called, whatever its name in a graph.
BATCH = "batch"
# The usual and the largest batch, unless the user says otherwise.
BATCH_OPT, BATCH_MAX = 8, 256

_HINT = (
    "write AXIS=LEAST:USUAL:LARGEST, with / between the axes of a profile and commas between"
    " profiles, as in batch=1,batch=2:8:32/width=64:128:256"
)


def parse(words: Sequence[str]) -> tuple[Profile, ...]:
    """Returns the profiles that are written as in `batch=2:8:32/width=64:128:256`.

    Raises:
        UsageError: One is written in another way, names an axis twice or has sizes that do not
            rise from 1.
    """
    return tuple(_profile(word) for word in words)


def _profile(word: str) -> Profile:
    profile: dict[str, Range] = {}
    for part in word.split("/"):
        axis, _, sizes = part.rpartition("=")
        numbers = sizes.split(":")
        if not axis or len(numbers) not in (1, 3) or not all(map(str.isdecimal, numbers)):
            raise UsageError(f"the profile {word!r} cannot be read", _HINT)
        if axis in profile:
            raise UsageError(f"the profile {word!r} names {axis} twice", _HINT)
        least, usual, largest = map(int, numbers * (3 // len(numbers)))
        if not 1 <= least <= usual <= largest:
            raise UsageError(f"the sizes of {part!r} do not rise from 1", _HINT)
        profile[axis] = least, usual, largest
    return profile


def check_names(profiles: Sequence[Profile], axes: Mapping[tuple[str, int], str]) -> None:
    """Raises UsageError if a profile names an axis that is not dynamic.

    Args:
        axes: By input and number of a dynamic axis, its name; "" if it has none.
    """
    known = dict.fromkeys(
        n for (name, axis), word in axes.items() for n in _names(name, axis, word)
    )
    for profile in profiles:
        for name in profile:
            if name not in known:
                raise UsageError(
                    f"a profile names the axis {name!r}, and the dynamic axes are"
                    f" {', '.join(known) or 'none'}",
                    _HINT,
                )


def range_of(profile: Profile, name: str, axis: int, word: str, whole: Range) -> Range:
    """Returns the sizes of an axis in a profile; all of them if it does not name the axis.

    Args:
        name: The input.
        axis: The number of its axis.
        word: The axis' name, or "".
        whole: All sizes of the axis.

    Raises:
        UsageError: The profile's sizes are not among them.
    """
    for key in _names(name, axis, word):
        if key in profile:
            least, _, largest = profile[key]
            if least < whole[0] or largest > whole[2]:
                raise UsageError(
                    f"a profile has {key} from {least} to {largest}, and the engine's is from"
                    f" {whole[0]} to {whole[2]}",
                    "give sizes in that range, or a larger --batch-max"
                    if axis == 0
                    else "give sizes in that range",
                )
            return profile[key]
    return whole


def _names(name: str, axis: int, word: str) -> Iterator[str]:
    """Yields what an axis may be called."""
    if axis == 0:
        yield BATCH
    if word and (axis, word) != (0, BATCH):
        yield word
    yield f"{name}.{axis}"
