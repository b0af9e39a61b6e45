"""Interrupts every stage: `python -m tests.attacks.interruptions --moments 60 --levels 20`.

Signals at random moments, full disks at many fill levels, and folders that are not what they should
be, as this user and, if that is root, as an ordinary one. Whatever happened, a rerun has to give
the artifacts of an uninterrupted run, and the next command, whichever it is, has to remove what an
interrupted one left behind. Equal seeds give equal moments.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.attacks import full_disks, odd_places
from tests.attacks.places import (
    COUNTING,
    READING,
    STEPS,
    Attack,
    AttackError,
    Ended,
    NotApplicableError,
    Place,
    Step,
    is_fresh,
)
from tests.attacks.references import Reference, references

SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}


def check_ended(ended: Ended, number: int, step: Step) -> None:
    """Raises AttackError if a command did not end as one that got a signal."""
    if step.distributed:
        return  # torchrun prints its own traceback and has its own exit codes
    if "Traceback" in ended.err:
        # Python itself prints one for a SIGINT that arrives before it runs the first module.
        if not ("KeyboardInterrupt" in ended.err and "pipeline" not in ended.err):
            raise AttackError(f"a traceback:\n{ended.err}")
    elif ended.code not in (0, SIGNALS[signal.Signals(number)], -number):
        raise AttackError(f"exit code {ended.code}:\n{ended.err}")


def interrupt(
    reference: Reference, step: Step, seconds: float, number: int, turn: int, path: Path
) -> None:
    """Sends a signal to a step, then runs a command that reads, and the step again."""
    place = reference.place(step, path)
    running = place.start(step.words, step.module, fresh=is_fresh(turn))
    time.sleep(seconds)
    running.send_signal(number)
    check_ended(place.end(running), number, step)
    require_rerun(reference, step, place, turn)


def kill_at(reference: Reference, step: Step, operation: int, path: Path) -> None:
    """Kills a step just before an operation on its files; see `killed_at/sitecustomize.py`."""
    place = reference.place(step, path)
    ended = place.run(step.words, step.module, **COUNTING, ASSAY_TEST_KILL_AT=str(operation))
    if ended.code != -signal.SIGKILL:
        raise AttackError(f"not killed, but exit code {ended.code}:\n{ended.err}")
    require_rerun(reference, step, place, operation)


def require_rerun(reference: Reference, step: Step, place: Place, turn: int) -> None:
    """Raises AttackError unless the place of an interrupted step is as good as before it."""
    place.wait_until_idle()
    place.artifacts()
    # Either any other command, or the step itself, removes what is left.
    if turn % 4:
        words = READING[turn // len(SIGNALS) % len(READING)]  # each after each signal
        read = place.run(words)
        if read.code not in (0, 1) or "Traceback" in read.err:
            raise AttackError(f"{words} ended with {read.code}: {read.err}")
        if left := place.leftovers():
            raise AttackError(f"left behind: {left}")
    place.done(step, turn // 4)
    place.wait_until_idle()
    reference.compare(place, step)
    if left := place.leftovers():
        raise AttackError(f"left behind after a rerun: {left}")


def signals(known: list[Reference], moments: int, seed: int) -> Iterator[Attack]:
    """Yields each step at `moments` moments, users and signals in turn."""
    source = random.Random(seed)  # noqa: S311 - moments, not secrets
    for turn in range(moments):
        for step in STEPS:
            if step.heavy and not is_fresh(turn):
                continue
            reference = known[turn // len(SIGNALS) % len(known)]
            number = list(SIGNALS)[turn % len(SIGNALS)]
            fresh = step.distributed or is_fresh(turn)
            seconds = source.uniform(0, reference.seconds[step.name, fresh])
            yield Attack(
                ("signal", step.name, signal.Signals(number).name, reference.user.name),
                f"after {seconds:.3f} s",
                partial(interrupt, reference, step, seconds, number, turn),
            )


def operations(known: list[Reference], moments: int) -> Iterator[Attack]:
    """Yields kills before up to `moments` operations of each step, the last ones: they publish."""
    for back in range(moments):
        for step in STEPS:
            reference = known[back // 2 % len(known)]
            number = reference.operations[step.name] - back
            if number > 0 and not step.distributed and not step.heavy:
                yield Attack(
                    ("operation", step.name, "SIGKILL", reference.user.name),
                    f"before operation {number}",
                    partial(kill_at, reference, step, number),
                )


def attacks(known: list[Reference], moments: int, levels: int, seed: int) -> Iterator[Attack]:
    """Yields all attacks."""
    yield from signals(known, moments, seed)
    yield from operations(known, moments)
    yield from full_disks.attacks(known, levels)
    yield from odd_places.attacks(known, seed)


def attempt(attack: Attack, work: Path) -> tuple[str | None, float]:
    """Returns how an attack failed, "", or None if it does not apply; and the seconds it took."""
    clock = time.monotonic()
    path = Path(tempfile.mkdtemp(prefix="attack-", dir=work))
    path.chmod(0o755)
    problem: str | None = ""
    try:
        attack.run(path / "place")
    except NotApplicableError:
        problem = None
    except AttackError as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc()
    if not problem:
        shutil.rmtree(path, onerror=_unlock)
    else:
        problem = f"{' / '.join(attack.group)} {attack.name}: {problem}\n  in {path}"
    return problem, time.monotonic() - clock


def _unlock(function: Callable[[str], object], path: str, _error: object) -> None:
    Path(path).parent.chmod(0o700)
    function(path)


def table(
    counts: Counter[tuple[str, ...]],
    failed: Counter[tuple[str, ...]],
    seconds: dict[tuple[str, ...], float],
) -> str:
    """Returns the numbers of attacks and failures and the time they took, one line a group."""
    lines = [
        f"{' '.join(f'{word:<22}' for word in group)} {count:>5} {failed[group]:>5} failed"
        f" {seconds[group]:>7.1f} s"
        for group, count in sorted(counts.items())
        if count
    ]
    return "\n".join(lines)


def run(
    work: Path,
    *,
    moments: int,
    levels: int,
    seed: int = 0,
    jobs: int = 1,
    pattern: str = "",
) -> tuple[Counter[tuple[str, ...]], list[str]]:
    """Makes the reference runs, then all attacks whose group matches a pattern.

    Returns:
        The number of attacks in each group, and the reports of those that failed.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    failed: Counter[tuple[str, ...]] = Counter()
    seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
    failures = []
    executor = ThreadPoolExecutor(jobs)
    servers = ExitStack()
    try:
        known = servers.enter_context(references(work, executor))
        chosen = [
            attack
            for attack in attacks(known, moments, levels, seed)
            if re.search(pattern, " ".join(attack.group))
        ]
        reports = executor.map(lambda attack: attempt(attack, work), chosen)
        for number, (attack, (report, spent)) in enumerate(zip(chosen, reports, strict=True), 1):
            counts[attack.group] += report is not None
            seconds[attack.group] += spent
            if report:
                failed[attack.group] += 1
                failures.append(report)
                print(f"FAILED {report}", flush=True)
            if number % 20 == 0:
                print(f"{number} of {len(chosen)} attacks, {len(failures)} failed", flush=True)
    except KeyboardInterrupt:
        print("stopped, once the attacks that run have ended", flush=True)
    finally:
        executor.shutdown(cancel_futures=True)
        servers.close()
        print(table(counts, failed, seconds), flush=True)
    return counts, failures


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=60, help="signals for each stage")
    parser.add_argument("--levels", type=int, default=20, help="fill levels of each disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="attacks at the same time")
    parser.add_argument("--only", default="", help="only groups that match this expression")
    parser.add_argument("--work", type=Path, help="an empty folder for all files [a temporary one]")
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell ignores it in jobs in the background, and so would the commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = words.work or Path(tempfile.mkdtemp(prefix="assay-interruptions-"))
    work.chmod(0o755)
    counts, failures = run(
        work.resolve(),
        moments=words.moments,
        levels=words.levels,
        seed=words.seed,
        jobs=words.jobs,
        pattern=words.only,
    )
    print(f"{counts.total()} attacks with seed {words.seed}, {len(failures)} failures in {work}")
    if not failures:
        shutil.rmtree(work)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
