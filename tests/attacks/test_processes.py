"""Attacks on real commands: bounded in time and memory, no traceback, nothing written elsewhere."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.workflow.runner import Store
from tests.attacks.tars import FOLDER, header, listed, manifest, member, pack, pax, pax_record
from tests.bundles import bundle_of
from tests.subset import python_path

pytestmark = pytest.mark.long

SECONDS = 30
MEMORY = 2 << 30


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: bytes
    err: bytes


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Ended]:
    """Runs a command in an empty folder that it must leave empty, with bounds on all it takes."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    def run(*words: object, shell: str = "", kept: bool = False, **environment: str) -> Ended:
        for folder in (work, temporary):
            folder.mkdir(exist_ok=True)
        base = [sys.executable, "-m", "pipeline.cli", *map(os.fsencode, map(str, words))]
        if shell:
            base = ["sh", "-c", f'exec "$@" {shell}', "sh", *base]
        ended = subprocess.run(
            base,
            cwd=work,
            env={
                **os.environ,
                "PYTHONPATH": python_path(),
                "TMPDIR": str(temporary),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * SECONDS,
            preexec_fn=bounded,
            check=False,
        )
        assert b"Traceback" not in ended.stderr
        assert b"this is a bug" not in ended.stderr
        if not kept:
            assert not list(work.iterdir())
        assert not list(temporary.iterdir())
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


HEAD = manifest(listed({"a": b"1"}))
BUNDLES: dict[str, tuple[bytes, ...]] = {
    "a long name of 3 GB": (header("././@LongLink", 3 << 30, b"L"), bytes(100 << 20)),
    "a PAX header of 3 GB": (header("././@PaxHeader", 3 << 30, b"x"), bytes(100 << 20)),
    "a PAX body of 60,000 digits": (pax(b"1" * 60_000),),
    "a sparse file": (pax(pax_record("GNU.sparse.realsize", "1" * 30)),),
    "500 headers": (pax(pax_record("path", "x")) * 500,),
    "a member outside": (HEAD, member("../../evil", b"1")),
    "a link": (HEAD, header(f"{FOLDER}/a", 0, b"2", linkname=b"/etc/passwd")),
    "a manifest that asks for 10^18 bytes": (
        manifest({"a": {"sha256": "0" * 64, "bytes": 10**18}}),
    ),
    "200 MB in a member of 1 byte": (HEAD, header(f"{FOLDER}/a", 200 << 20), bytes(200 << 20)),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_a_hostile_bundle_ends_the_command(
    tmp_path: Path, command: Callable[..., Ended], case: str
) -> None:
    path = pack(tmp_path / "bad.tar.zst", *BUNDLES[case])
    ended = command("check", "--trust", path)
    assert ended.code == 1
    assert ended.err.startswith(b"error: ")
    assert b"assay-check-" not in ended.err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "bad.tar.zst",
        "temporary",
        "work",
    ]


@pytest.mark.parametrize("name", ["fifo", "folder", "/dev/zero", "/dev/tty", "missing"])
@pytest.mark.parametrize(
    "words",
    [("check",), ("inspect",), ("export", "edge", "--inputs"), ("train", "edge", "--weights")],
    ids=lambda words: words[0],
)
def test_a_path_that_is_not_a_file_ends_the_command(
    tmp_path: Path, command: Callable[..., Ended], words: tuple[str, ...], name: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    ended = command(*words, tmp_path / name, kept=len(words) > 1)
    assert ended.code == 1
    assert b"does not exist" in ended.err or b"is not a file" in ended.err


@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        (">&-", 1, b"cannot print: the standard output is closed"),
        (">/dev/full", 1, b"cannot print"),
        ("2>&-", 0, b""),
        ("<&-", 0, b""),
        ("<&- 2>&-", 0, b""),
        (">&- 2>&-", 1, b""),
    ],
)
def test_a_closed_stream_ends_the_command(
    built: Store, command: Callable[..., Ended], shell: str, code: int, words: bytes
) -> None:
    ended = command("report", "lenet", "--root", built.root, "--dist", built.dist, shell=shell)
    assert ended.code == code
    assert words in ended.err


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
    ],
    ids=str,
)
def test_any_encoding_of_the_output_will_do(
    built: Store, command: Callable[..., Ended], environment: dict[str, str]
) -> None:
    words = ("report", "lenet", "--root", built.root, "--dist", built.dist)
    ended = command(*words, **environment)
    assert ended.code == 0
    assert b"batch 1" in ended.out


def test_an_argument_that_is_not_utf8_is_a_wrong_usage(command: Callable[..., Ended]) -> None:
    ended = command("inspect", os.fsdecode(b"\xff.onnx"))
    assert ended.code == 2
    assert rb"b'\xff.onnx' is not valid UTF-8" in ended.err


def test_a_folder_for_temporary_files_that_is_gone_is_named(
    built: Store,
) -> None:
    # Nor may it write to the usual folders instead, all of which this test takes away.
    code = (
        "import sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/nowhere'];"
        " from pipeline.cli.main import main; sys.exit(main(['check', sys.argv[1]]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, bundle_of(built)],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert b"cannot read or write" in ended.stderr
    assert b"Traceback" not in ended.stderr


def _on_small_disk(tmp_path: Path, limit: int, *words: object) -> Ended:
    """Runs a command with a limit on the size of files, as if the disk filled up meanwhile."""
    code = (
        "import resource, signal, sys; from pipeline.data import registry;"
        " from tests.subset import SUBSET; from pipeline.cli.main import main;"
        " registry.DATASETS['fashion-mnist'] = SUBSET;"
        " signal.signal(signal.SIGXFSZ, signal.SIG_IGN); limit = int(sys.argv[1]);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); sys.exit(main(sys.argv[2:]))"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", code, str(limit), *map(str, words)],
        env={**os.environ, "PYTHONPATH": python_path(), "TMPDIR": str(temporary)},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr
    assert b"damaged" not in ended.stderr
    assert not list(temporary.iterdir())
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_a_full_disk_while_unpacking_is_named(built: Store, tmp_path: Path) -> None:
    ended = _on_small_disk(tmp_path, 1000, "check", bundle_of(built))
    assert b"cannot be written below" in ended.err


@pytest.mark.parametrize(
    ("limit", "words", "message"),
    [
        (100_000, ("train", "lenet", "--retrain", "--epochs", "1", "--limit", "50"), b".resume"),
        (20_000, ("build", "lenet", "--engine", "pytorch", "--force"), b"cannot write or read"),
        (20_000, ("build", "lenet", "--engine", "onnxruntime", "--force"), b"Runtime cannot write"),
        (20_000, ("build", "lenet", "--engine", "openvino", "--force"), b"OpenVINO cannot write"),
        (20_000, ("bundle", "lenet", "--force"), b"cannot write or read"),
    ],
    ids=str,
)
def test_a_full_disk_while_a_stage_writes_is_named(
    store: Store, tmp_path: Path, limit: int, words: tuple[str, ...], message: bytes
) -> None:
    place = ("--root", store.root, "--dist", store.dist)
    assert message in _on_small_disk(tmp_path, limit, *words, *place).err
