"""`assay watch` on servers that change."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from pipeline.golden import file as goldens
from pipeline.serving.watching import attestation
from pipeline.serving.watching import watch as watching
from pipeline.workflow.runner import Store
from tests.bundles import bundle_of
from tests.conftest import Process, Result
from tests.pipeline.serving.test_client import Behaviour, serving, tensor
from tests.pipeline.serving.watching.test_attestation import keys
from tests.timed import timed

pytest.importorskip("tritonclient")
Assay = Callable[..., Result]
QUICK = ("--rate", "400", "--window", "10", "--wait", "2", "--timeout", "2")


@pytest.fixture
def golden(built: Store) -> goldens.Golden:
    return goldens.load(built.root / "lenet/fp32/golden.npz")


@pytest.fixture
def watch(built: Store, assay: Assay, golden: goldens.Golden) -> Callable[..., Result]:
    """Watches a fake server."""

    def run(behaviour: Behaviour, *words: object) -> Result:
        with serving(behaviour, golden) as url:
            return assay("watch", url, bundle_of(built), *QUICK, *words)

    return run


def test_a_server_as_proved_gives_no_alarm(watch: Callable[..., Result]) -> None:
    behaviour = Behaviour()
    result = watch(behaviour, "--duration", "1", "--tolerance", "900")
    assert result.code == 0, result.err
    assert "no alarm at the end" in result.out
    assert behaviour.inferences > 50


def test_a_last_window_that_is_not_complete_is_judged_too(watch: Callable[..., Result]) -> None:
    wrong = Behaviour(reply=lambda outputs: tensor(-outputs))
    words = ("--rate", "20", "--window", "1000", "--duration", "1")
    assert watch(wrong, *words).code == 3
    result = watch(Behaviour(), *words)
    assert result.code == 0, result.err
    assert "judged 1 time, no alarm" in result.out


def test_too_few_replies_are_no_success(watch: Callable[..., Result], tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    words = ("--attest", tmp_path / "days", "--key", private, "--rate", "3", "--duration", "1")
    result = watch(Behaviour(), *words)
    assert result.code == 1
    assert "too few to judge" in result.err
    (statement,) = attestation.verify(tmp_path / "days", public)
    assert statement["predicate"]["error_floors"] is None


def test_no_more_rows_are_sent_than_the_rate(watch: Callable[..., Result]) -> None:
    behaviour = Behaviour()
    assert watch(behaviour, "--duration", "1", "--rate", "20").code == 0
    assert 15 <= behaviour.inferences <= 21


@pytest.mark.parametrize("planted", ["weights", "preprocessing"])
@timed
def test_a_changed_model_is_found_within_a_window(
    watch: Callable[..., Result], golden: goldens.Golden, planted: str
) -> None:
    other = golden.native["logits"][:1]

    def wrong(outputs: np.ndarray) -> list[dict[str, Any]]:
        return tensor(outputs + np.float32(0.01) if planted == "weights" else 0 * outputs + other)

    def change(behaviour: Behaviour) -> None:
        behaviour.reply = wrong

    behaviour = Behaviour(changes={45: change})
    result = watch(behaviour, "--stop", "--duration", "30", "--json")
    assert result.code == 3, result.err
    # Within the window of the change; a request is on its way when that ends.
    assert 45 < behaviour.inferences <= 45 + 2 * 10
    document = json.loads(result.out)
    assert document["alarms"] == {"mismatch": 1}
    assert document["days"][0]["events"][-1]["kind"] == "mismatch"


@pytest.mark.slow(8)
@timed
def test_a_server_that_slows_by_a_fifth_is_found_in_time(watch: Callable[..., Result]) -> None:
    # Long enough that the fake server's own time does not vary by as much.
    def change(behaviour: Behaviour) -> None:
        behaviour.seconds *= 1.23  # a fifth of the whole, with the time around it

    behaviour = Behaviour(seconds=0.05, changes={80: change})
    words = ("--stop", "--duration", "60", "--window", "5", "--baseline", "10", "--json")
    result = watch(behaviour, *words, "--false-alarms", "0.01", "--tolerance", "5")
    assert result.code == 5, result.err
    # Two windows in a row, and the one of the change.
    assert behaviour.inferences <= 80 + 3 * 5 + 1
    assert "took longer than every one of the first 10" in result.err


def test_a_server_that_does_not_answer_is_told(watch: Callable[..., Result]) -> None:
    def change(behaviour: Behaviour) -> None:
        behaviour.infer = 500

    behaviour = Behaviour(changes={30: change})
    result = watch(behaviour, "--stop", "--duration", "30", "--json")
    assert result.code == 1
    assert "3 requests in a row failed" in result.err
    assert "the GPU fell off" in result.err


def test_a_new_version_is_named(watch: Callable[..., Result]) -> None:
    def change(behaviour: Behaviour) -> None:
        behaviour.versions = ("2",)
        behaviour.reply = lambda outputs: tensor(-outputs)

    behaviour = Behaviour(changes={45: change})
    result = watch(behaviour, "--stop", "--duration", "30")
    assert result.code == 3
    assert "changed: versions of the model was 1, is 2" in result.out


def test_a_day_is_attested_by_a_signed_line(
    watch: Callable[..., Result],
    built: Store,
    assay: Assay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public = keys(tmp_path)
    begin, start = datetime(2026, 1, 1, 23, 59, 59, 500_000, UTC), time.monotonic()
    monkeypatch.setattr(
        watching, "_now", lambda: begin + timedelta(seconds=time.monotonic() - start)
    )
    path = tmp_path / "days.jsonl"
    words = ("--attest", path, "--key", private, "--duration", "1", "--tolerance", "900")
    assert watch(Behaviour(), *words).code == 0
    result = assay("attestations", path, "--public-key", public, "--json")
    assert result.code == 0, result.err
    days = [entry["predicate"] for entry in json.loads(result.out)]
    assert [day["from"][:10] for day in days] == ["2026-01-01", "2026-01-02"]
    assert all(day["replies"] > 20 and day["windows"] and day["events"] == [] for day in days)
    assert 0 < days[0]["error_floors"] < 6
    table = assay("attestations", path, "--public-key", public)
    assert "2 lines, every signature and their order hold" in table.out
    assert max(map(len, table.out.splitlines()[:-1])) <= 100  # the last has a path
    assert "2026-01-01 23:59" in table.out
    words = ("attestations", path, "--public-key", public)
    url, bundle = days[0]["url"], bundle_of(built)
    assert assay(*words, "--url", url, "--bundle", bundle).code == 0
    result = assay(*words, "--url", "http://other:8000")
    assert result.code == 1
    assert f"line 1 is about '{url}', not http://other:8000" in result.err
    other = tmp_path / "other.tar.zst"
    other.write_bytes(bundle.read_bytes() + b" ")
    result = assay(*words, "--bundle", other)
    assert result.code == 1
    assert f"line 1 is about another bundle: '{bundle.name}'" in result.err
    assert assay(*words, "--bundle", tmp_path / "missing").code == 1
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    assert assay("attestations", path, "--public-key", public).code == 1


def test_a_file_without_lines_attests_nothing(assay: Assay, tmp_path: Path) -> None:
    _, public = keys(tmp_path)
    (tmp_path / "days").write_bytes(b"")
    result = assay("attestations", tmp_path / "days", "--public-key", public)
    assert result.code == 1
    assert "days attests nothing" in result.err


def test_what_happened_is_printed_with_the_attestations(
    watch: Callable[..., Result], assay: Assay, tmp_path: Path
) -> None:
    private, public = keys(tmp_path)
    path = tmp_path / "days.jsonl"
    behaviour = Behaviour(reply=lambda outputs: tensor(-outputs))
    words = ("--attest", path, "--key", private, "--stop", "--duration", "30")
    assert watch(behaviour, *words).code == 3
    result = assay("attestations", path, "--public-key", public)
    assert result.code == 0, result.err
    assert " mismatch: logits: " in result.err


def test_the_times_of_a_day_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_KEPT_TIMES", 200)
    day = watching.Day(datetime.now(UTC))
    for number in range(10_000):
        day.reply(number / 10_000)
    assert len(day.times) == 200
    document = day.document(datetime.now(UTC))
    assert document["replies"] == 10_000
    # 200 at random know the median within 0.2, save once in a hundred million.
    assert document["latency"]["p50"]["value"] == pytest.approx(0.5, abs=0.2)


def test_a_file_of_attestations_that_ends_early_is_found_before_anything_is_sent(
    watch: Callable[..., Result], tmp_path: Path
) -> None:
    private, _ = keys(tmp_path)
    behaviour = Behaviour()
    for content, words in (
        ("{", "does not end with a complete line"),
        ("# A text\n", "line 1 is not an attestation"),
    ):
        (tmp_path / "days.jsonl").write_text(content)
        attest = ("--attest", tmp_path / "days.jsonl", "--key", private, "--duration", "1")
        result = watch(behaviour, *attest)
        assert (result.code, behaviour.inferences) == (1, 0)
        assert words in result.err
        assert (tmp_path / "days.jsonl").read_text() == content
    attest = ("--attest", tmp_path / "nothing" / "days.jsonl", "--key", private)
    assert (watch(behaviour, *attest).code, behaviour.inferences) == (1, 0)


def test_one_watch_at_a_time_adds_to_a_file(watch: Callable[..., Result], tmp_path: Path) -> None:
    private, _ = keys(tmp_path)
    other, _ = keys(tmp_path, "other")
    path = tmp_path / "days.jsonl"
    log = attestation.Log(path, attestation.Key(private, str))
    log.add("a", "0" * 64, {})
    behaviour = Behaviour()
    words = ("--attest", path, "--key", private, "--duration", "1")
    result = watch(behaviour, *words)
    assert (result.code, behaviour.inferences) == (1, 0)
    assert "another process adds to" in result.err
    log.close()
    result = watch(behaviour, "--attest", path, "--key", other, "--duration", "1")
    assert (result.code, behaviour.inferences) == (1, 0)
    assert "signed with another key than this key" in result.err


def test_prometheus_can_ask(built: Store, golden: goldens.Golden, assay: Assay) -> None:
    pytest.importorskip("prometheus_client")
    texts: list[str] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ask() -> None:
        texts.append(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode())

    timer = threading.Timer(1.0, ask)
    timer.start()
    with serving(Behaviour(reply=lambda outputs: tensor(-outputs)), golden) as url:
        words = (*QUICK, "--metrics", port, "--duration", "2")
        assert assay("watch", url, bundle_of(built), *words).code == 3
    timer.join()
    (text,) = texts
    assert 'assay_watch_alarm{kind="mismatch"} 1.0' in text
    assert 'assay_watch_alarm{kind="slower"} 0.0' in text
    assert "assay_watch_latency_seconds_bucket" in text
    with socket.socket() as taken, serving(Behaviour(), golden) as url:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = assay("watch", url, bundle_of(built), *QUICK, "--metrics", port)
        assert result.code == 1
        assert f"port {port} cannot be opened" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rate", "0"), "0"),
        (("--window", "1"), "1"),
        (("--attest", "x"), "--attest and --key belong together"),
        (("--key", "x"), "--attest and --key belong together"),
        (("--precision", "int8"), "no precision 'int8'"),
        (("--false-alarms", "1"), "1"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(
    built: Store, assay: Assay, words: tuple[str, ...], message: str
) -> None:
    result = assay("watch", "http://127.0.0.1:9", bundle_of(built), *words)
    assert result.code == 2
    assert message in result.err


def test_another_model_is_named_before_anything_is_sent(
    built: Store, golden: goldens.Golden, assay: Assay
) -> None:
    wide = {"name": "image", "datatype": "UINT8", "shape": [-1, 3, 224, 224]}
    behaviour = Behaviour(inputs=[wide])
    with serving(behaviour, golden) as url:
        result = assay("watch", url, bundle_of(built), *QUICK)
    assert result.code == 2
    assert "is another one: inputs are" in result.err
    assert behaviour.inferences == 0


@pytest.mark.slow(4)
@pytest.mark.parametrize(
    ("behaviour", "words", "code", "message"),
    [
        (
            Behaviour(reply=lambda outputs: tensor(-outputs)),
            (),
            3,
            "differed from the model's",
        ),
        (Behaviour(), ("--rate", "2"), 1, "too few to judge"),
    ],
)
def test_an_interrupted_watch_ends_with_what_it_saw(
    built: Store,
    golden: goldens.Golden,
    process: Callable[..., Process],
    behaviour: Behaviour,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    with serving(behaviour, golden) as url:
        running = process("watch", url, bundle_of(built), *QUICK, *words).start()
        assert running.stderr is not None
        assert running.stdout is not None
        for line in running.stderr:
            if "golden rows a second" in line:
                break
        for line in running.stdout if code == 3 else ():
            if "mismatch" in line:
                break
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == code, err
    assert message in err


@pytest.mark.slow(4)
def test_an_interrupted_watch_attests_what_it_saw(
    built: Store, golden: goldens.Golden, tmp_path: Path, process: Callable[..., Process]
) -> None:
    private, public = keys(tmp_path)
    path = tmp_path / "days.jsonl"
    with serving(Behaviour(), golden) as url:
        words = ("watch", url, bundle_of(built), *QUICK, "--attest", path, "--key", private)
        running = process(*words, "--json").start()
        assert running.stderr is not None
        for line in running.stderr:
            if "golden rows a second" in line:
                break
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert json.loads(out)["days"][0]["replies"] > 10
    (statement,) = attestation.verify(path, public)
    assert statement["predicate"]["replies"] > 10
