"""Mutates real files for every reader: `python -m tests.attacks.fuzz --seconds 600`.

A read may succeed or end in a DeployError. Anything else is reported, with the mutated file: any
other exception, more than 20 seconds, too much memory, or the end of the process. The reads run in
child processes, so that one that hangs or crashes does not end the others. Equal seeds give equal
mutations.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from engines.errors import DeployError
from pipeline.cli import stage_runs
from pipeline.data import registry
from pipeline.workflow.runner import Store
from tests.attacks import mutations
from tests.bundles import bundle_of
from tests.subset import SUBSET, install_trained, python_path

READ_SECONDS = 20
GROWTH_BYTES = 512 << 20
_SUSPECT = "suspect"  # the file that is being read


def _read_bundle(path: Path) -> None:
    from pipeline.bundling import checking

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        checking.unpack(path, Path(folder))


def _read_weights(path: Path) -> None:
    from torch import nn

    from pipeline import models
    from pipeline.training import weights

    network: nn.Module = models.get("lenet").build(None).network
    weights.load(network, path, "lenet")


def _read_graph(path: Path) -> None:
    from pipeline.report import graph

    graph.read(path)


def _read_program(path: Path) -> None:
    import torch

    from engines.backends.pytorch import load_program

    load_program(torch, path)


def _read_images(path: Path) -> None:
    from pipeline.data import folder_layout, imagefolder

    listing = folder_layout.scan(path)
    imagefolder.digest(path)
    imagefolder.decode(listing, 16, skip_bad=False)


def _read_golden(path: Path) -> None:
    from pipeline.golden import file

    file.load(path)


def _read_inputs(path: Path) -> None:
    from pipeline.golden import rows

    rows.read(path)


def _read_signature(folder: Path, bundle: Path) -> tuple[Path, Callable[[Path], None]]:
    """Returns the signature of a copy of a bundle, and what verifies a changed one."""
    from pipeline.bundling import signature
    from pipeline.workflow.digests import parse_json

    copy, key = folder / bundle.name, folder / "key"
    shutil.copy(bundle, copy)
    signature.make_keys(key)
    signature.sign(copy, key, lambda: "")
    good = folder / "good.sig"
    shutil.move(f"{copy}.sig", good)

    def read(path: Path) -> None:
        shutil.copy(path, f"{copy}.sig")
        signature.verify(copy, signature.Trusted(public_key=Path(f"{key}.pub")))
        if parse_json(path.read_bytes()) != parse_json(good.read_bytes()):
            raise AssertionError("a changed signature was accepted")

    return good, read


def targets(
    store: Store, folder: Path
) -> dict[str, tuple[mutations.Mutate, Callable[[Path], None]]]:
    """Returns, by name, what mutates a file of a built chain, and what reads it."""
    import torch
    from safetensors.torch import load_file

    chain = store.root / "lenet"
    pickled = folder / "weights.pt"
    torch.save(load_file(chain / "checkpoint.safetensors"), pickled)
    bundle, golden = bundle_of(store), chain / "fp32" / "golden.npz"
    program, graph = chain / "fp32" / "pytorch" / "engine.pt2", chain / "fp32" / "model.onnx"
    signature, read_signature = _read_signature(folder, bundle)
    return {
        "archive": (mutations.mutate_tar(bundle), _read_bundle),
        "manifest and records": (mutations.mutate_bundle(bundle), _read_bundle),
        "golden": (mutations.mutate_zip(golden), _read_golden),
        "inputs": (mutations.mutate_zip(golden), _read_inputs),
        "graph": (mutations.mutate_copy(graph), _read_graph),
        "safetensors": (mutations.mutate_copy(chain / "checkpoint.safetensors"), _read_weights),
        "torch": (mutations.mutate_zip(pickled), _read_weights),
        "program": (mutations.mutate_zip(program), _read_program),
        "signature": (mutations.mutate_copy(signature), read_signature),
        "image folder": (mutations.mutate_images(folder / "images"), _read_images),
    }


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Returns the most memory that this process had since `_forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _child(store: Store, seed: int, start: int, count: int, names: list[str]) -> None:
    """Makes and reads mutations `start` to `count`; prints a line of JSON for each."""
    folder = Path(tempfile.mkdtemp())
    known = targets(store, folder)
    chosen = names or list(known)
    warnings.simplefilter("ignore")
    for number in range(start, count):
        name = chosen[number % len(chosen)]
        mutate, read = known[name]
        suspect = Path(_SUSPECT)
        shutil.rmtree(suspect, ignore_errors=True)
        suspect.unlink(missing_ok=True)
        mutate(random.Random(f"{seed} {number}"), suspect)  # noqa: S311
        print(json.dumps({"number": number, "target": name}), flush=True)
        _forget_peak()
        before, clock, failure = _peak(), time.monotonic(), ""
        try:
            read(suspect)
        except DeployError:
            pass
        except BaseException:
            failure = traceback.format_exc()
        if _peak() - before > GROWTH_BYTES:
            failure += f"took {(_peak() - before) >> 20} MiB"
        if time.monotonic() - clock > READ_SECONDS:
            failure += f"took {time.monotonic() - clock:.0f} s"
        print(json.dumps({"done": number, "failure": failure}), flush=True)
    shutil.rmtree(folder)


def run(
    store: Store,
    work: Path,
    *,
    seed: int = 0,
    count: int = 1 << 40,
    seconds: float = 1e9,
    names: Iterable[str] = (),
) -> tuple[int, list[str]]:
    """Reads mutations in child processes.

    Args:
        work: Folder for the children, and for the files whose reading fails.

    Returns:
        The number of reads, and a report of each that failed.
    """
    end, number, failures = time.monotonic() + seconds, 0, []
    while number < count and time.monotonic() < end:
        first = number
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.attacks.fuzz", "--child", str(first)),
                *("--seed", str(seed), "--count", str(min(count, first + 2000))),
                *("--root", str(store.root.resolve()), "--dist", str(store.dist.resolve())),
                *(word for name in names for word in ("--target", name)),
            ],
            cwd=work,
            env={"PYTHONPATH": python_path(), "PATH": "/usr/bin:/bin", "TMPDIR": str(work)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        target, failure = "start", ""
        with process, process.stdout:
            while time.monotonic() < end:
                # A signal ends a read that does not return; none of ours takes as long.
                signal.setitimer(signal.ITIMER_REAL, 4 * READ_SECONDS)
                try:
                    line = process.stdout.readline()
                except TimeoutError:
                    failure = f"no end within {4 * READ_SECONDS} s"
                    break
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                if not line:
                    code = process.wait()
                    failure = f"the process ended with {code}" if code else ""
                    break
                message = json.loads(line)
                target = message.get("target", target)
                if "done" in message:
                    number = message["done"] + 1
                    if message["failure"]:
                        failures.append(_report(work, number - 1, target, message["failure"]))
            process.kill()
        if failure:
            failures.append(_report(work, number, target, failure))
            if target == "start":
                break
            number += 1
    return number, failures


def _report(work: Path, number: int, target: str, failure: str) -> str:
    kept = work / f"failure-{number}"
    source = work / _SUSPECT
    # The child may be past it by now: the seed and number make it again.
    if source.is_file():
        shutil.copy(source, kept)
    return f"mutation {number} of {target}: {failure}"


def _on_alarm(_number: int, _frame: object) -> None:
    raise TimeoutError


def build_chain(folder: Path) -> Store:
    """Returns a whole chain of LeNet on the small data set."""
    registry.DATASETS["fashion-mnist"] = SUBSET
    store = Store(folder / "artifacts", folder / "dist")
    stage_runs.run_stage("data", {}, store)
    install_trained(store)
    stage_runs.run_all({"model": "lenet", "batch": (1,), "budget": 0.1}, store)
    return store


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1 << 40, help="how many mutations [no limit]")
    parser.add_argument("--target", action="append", default=[], help="only this reader [all]")
    parser.add_argument("--root", type=Path, help="artifacts of a LeNet [built first]")
    parser.add_argument("--dist", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child is not None:
        _child(Store(words.root, words.dist), words.seed, words.child, words.count, words.target)
        return 0
    signal.signal(signal.SIGALRM, _on_alarm)
    work = Path(tempfile.mkdtemp(prefix="assay-fuzz-"))
    store = Store(words.root, words.dist) if words.root else build_chain(work / "chain")
    count, failures = run(
        store,
        work,
        seed=words.seed,
        count=words.count,
        seconds=words.seconds,
        names=words.target,
    )
    for failure in failures:
        print(failure)
    print(f"{count} mutations with seed {words.seed}, {len(failures)} failures; files in {work}")
    if not failures:
        shutil.rmtree(work)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
