"""Errors that a user can fix, each with its exit code."""

from __future__ import annotations

from typing import Any


class DeployError(Exception):
    """A problem with the user's input, the files or the machine; never a bug of ours.

    Attributes:
        message: What failed, with the offending value.
        hint: What to do about it; may be empty.
        report: The full output of another tool; may be empty.
        details: Results for programs to read, as plain JSON values.
        exit_code: The process exit code this error leads to.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", report: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.report = report
        self.details: dict[str, Any] = {}

    def document(self) -> dict[str, Any]:
        """Returns the JSON form, without the details."""
        return {"message": self.message, "hint": self.hint, "exit_code": self.exit_code}


class UsageError(DeployError):
    """A name, option or value that the command does not accept."""

    exit_code = 2


class ParityError(DeployError):
    """An engine or graph whose outputs differ from those of the PyTorch model."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.details = details or {}


class NotAvailableError(DeployError):
    """A backend, device or library that this machine does not have."""

    exit_code = 4


class NotMetError(DeployError):
    """A bound that measurements do not meet, such as a latency."""

    exit_code = 5

    def __init__(self, message: str, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.details = details or {}


class CrashedError(DeployError):
    """A vendor library that ended its process, or was stopped at a limit of time or memory."""


class FailedError(DeployError):
    """A graph or engine that its library cannot open or run, so that it was not judged."""


class RefusedError(DeployError):
    """A graph or program that a backend cannot build; another one may."""


def suggestion(word: str, known: list[str]) -> str:
    """Returns "did you mean …? available: …" for a word that is not one of `known`."""
    import difflib

    if set(word.split(",")) <= set(known):  # a list where one is wanted
        return "give one at a time, and run it once for each"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    nearest = f"did you mean {close[0]!r}? " if close else ""
    return f"{nearest}available: {', '.join(known)}"
