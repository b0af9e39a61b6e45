"""Gives odd names to every command that takes one: `python -m tests.attacks.names --count 100000`.

A command may succeed or fail, but prints no traceback, no control character, and no line that the
name forges. Equal seeds give equal names.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import random
import sys
import tempfile
import time
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from engines.errors import DeployError
from pipeline.cli.main import main as assay
from pipeline.data import imagefolder

SECONDS = 5  # a command that takes longer hangs
FORGED = "error: forged by a name"
PARTS = (
    *("a", "Z", "0", ".", "..", "-", "--", "-h", " ", "  ", "~", "$HOME", "`id`", "$(id)", ";"),
    *('"', "'", "\\", "\\n", "%", "%s", "%(a)s", "{", "}", "{0}", "{a!r}", "[", "[/]", "[red]"),
    *("*", "?", "#", "&", "<", ">", ":", "::", "=", ",", "@", "/", "//", "../", "/etc/passwd"),
    *(f"\n{FORGED}", "\r", "\t", "\x1b[2J", "\x1b]0;title\x07", "\x7f", "\x80", "\x9b31m", "\x08"),
    *("\u202e", "\u2066", "\u200f", "\u061c", "\u200b", "\u2028", "\u2029", "\ufeff", "\u00ad"),
    *("\u00e9", "e\u0301", "\u00df", "\u0130", "\u6f22", "\U0001f600", "\ufdfd", "\u0300" * 40),
    *("\U0001f469\u200d\U0001f469", "\U000e0041", "\udcff", "\udc80", "\ud800", "con", "nul"),
    *("x" * 300, "y" * 5000, ".py", ".onnx", ".png", "None", "nan", "inf", "1e999", "true"),
    *("__init__", "__main__", "fashion-mnist", "lenet"),
)


def odd_name(generator: random.Random) -> str:
    """Returns a name of one to five parts, never empty and without NUL."""
    return "".join(generator.choices(PARTS, k=generator.randint(1, 5)))


def _in_arguments(words: Callable[[str], list[str]]) -> Callable[[str], None]:
    def use(name: str) -> None:
        # Arguments are bytes. Python decodes those that are not UTF-8 to surrogate characters.
        encoded = name.encode("utf-8", "surrogatepass")
        with contextlib.suppress(UnicodeEncodeError):
            encoded = os.fsencode(name)
        run(words(os.fsdecode(encoded)))

    return use


def run(words: list[str]) -> None:
    """Runs a command in this process; raises AssertionError if it prints what it must not."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = assay(words)
    text = out.getvalue() + err.getvalue()
    assert code in (0, 1, 2, 3, 4), (code, text)
    assert "Traceback" not in text, text
    assert "this is a bug" not in text, text
    assert not any(line.startswith(FORGED) for line in text.splitlines()), text
    odd = {
        c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl")
    }
    assert not odd, (odd, text)


def _fits(name: str) -> bool:
    return "/" not in name and name not in (".", "..") and len(os.fsencode(name)) <= 200


def _in_file_names(name: str) -> None:
    """Inspects and checks a file with the name, and takes it as a model and as inputs."""
    with contextlib.suppress(UnicodeEncodeError):
        name = os.fsdecode(os.fsencode(name))
        if _fits(name):
            path = Path("files") / name
            path.write_bytes(b"no file of ours")
            for words in (["inspect"], ["check"], ["export", "edge", "--inputs"]):
                run([*words, str(path)])
            path.unlink()


def _in_image_folder(name: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        name = os.fsdecode(os.fsencode(name))
        if _fits(name):
            folder = Path("images") / name
            folder.mkdir(parents=True)
            for number in range(2):
                path = folder / f"{name}{number}.png"
                path.write_bytes(PIXEL)
            with contextlib.suppress(DeployError):
                imagefolder.decode(imagefolder.scan(Path("images")), 8, skip_bad=False)
                imagefolder.digest(Path("images"))
            path.write_bytes(b"no image")
            run(["data", "--data", "images"])
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def _in_npz(name: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        with zipfile.ZipFile("inputs.npz", "w") as archive:
            file = io.BytesIO()
            np.save(file, np.zeros(2))
            archive.writestr(f"{name}.npy", file.getvalue())
        run(["export", "edge", "--inputs", "inputs.npz"])


def _in_graph(name: str) -> None:
    with contextlib.suppress(UnicodeEncodeError, ValueError):
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [name, 2])
        node = onnx.helper.make_node("Relu", [name], [f"{name}2"], name=name)
        after = onnx.helper.make_tensor_value_info(f"{name}2", onnx.TensorProto.FLOAT, [None, 2])
        graph = onnx.helper.make_graph([node], name, [value], [after], doc_string=name)
        model = onnx.helper.make_model(graph, producer_name=name)
        onnx.helper.set_model_props(model, {name: name})
        Path("named.onnx").write_bytes(model.SerializeToString())
        run(["inspect", "--nodes", "named.onnx"])


def _pixel() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue()


PIXEL = _pixel()
USES: dict[str, Callable[[str], None]] = {
    "inspect": _in_arguments(lambda name: ["inspect", name]),
    "check": _in_arguments(lambda name: ["check", name]),
    "a model": _in_arguments(lambda name: ["summary", name]),
    "a file of models": _in_arguments(lambda name: ["export", f"{name}.py:make"]),
    "a factory": _in_arguments(lambda name: ["export", f"models.py:{name}"]),
    "--root": _in_arguments(lambda name: ["report", "lenet", "--root", f"missing/{name}"]),
    "--dist": _in_arguments(lambda name: ["report", "lenet", "--dist", f"missing/{name}"]),
    "--engine": _in_arguments(lambda name: ["verify", "lenet", "--engine", name]),
    "--weights": _in_arguments(lambda name: ["train", "edge", "--weights", name]),
    "a run": _in_arguments(lambda name: ["runs", "lenet", "--use", name]),
    "a command": _in_arguments(lambda name: [name]),
    "file names": _in_file_names,
    "an image folder": _in_image_folder,
    "an .npz": _in_npz,
    "a graph": _in_graph,
}


def attack(count: int, seed: int, folder: Path) -> Iterator[str]:
    """Uses `count` names in an empty folder; yields a report of each that fails."""
    importlib.import_module("torch")  # takes seconds, which would count for a name
    for name in ("files", "images"):
        (folder / name).mkdir()
    (folder / "models.py").write_text("def make(): return None\n")
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            name = odd_name(random.Random(f"{seed} {number}"))  # noqa: S311
            use = list(USES)[number % len(USES)]
            start = time.monotonic()
            try:
                USES[use](name)
            except (Exception, SystemExit) as error:
                yield f"name {number}, {name[:80]!a}, as {use}: {type(error).__name__}: {error!a}"
            if time.monotonic() - start > SECONDS:
                yield f"name {number}, {name[:80]!a}, as {use}: {time.monotonic() - start:.0f} s"


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for failure in attack(words.count, words.seed, Path(folder)):
            failures += 1
            print(failure[:600], flush=True)
    print(f"{words.count} names with seed {words.seed}, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
