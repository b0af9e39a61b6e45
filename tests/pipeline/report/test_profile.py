"""The printed report of the profile stage, and its sections of the page."""

from typing import Any

import pytest

from engines.errors import CrashedError, FailedError
from pipeline.report import profile
from pipeline.report.page import costs
from pipeline.report.page.results import PrecisionResults, Results


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value * 0.9, "high": value * 1.1}


def load(batch: int, share: float | None, **more: Any) -> dict[str, Any]:
    roofline = {
        "intensity": 3.36,
        "attainable": 1e11,
        "reached": 1e11 * (share or 0),
        "bound": "computation",
        "share": interval(share or 0),
    }
    layer = {"name": "conv1", "kind": "Conv", "lost": None, "reached": None}
    pool = {**layer, "name": "pool", "kind": "MaxPool", "share": 0.25, "multiplies": False}
    return {
        "batch": batch,
        "first_seconds": 0.5,
        "seconds": interval(2e-3),
        "settled": True,
        "busy": False,
        "others": 0.0,
        "wall_seconds": 2e-3,
        "cpu_seconds": 3e-3,
        "joules": None,
        "no_energy": "no counter",
        "work": {"operations": {"fp32": 8e8}},
        "roofline": None if share is None else roofline,
        "no_roofline": "it is measured on CPUs only" if share is None else "",
        "layers": [{**layer, "share": 0.75, "multiplies": True}, pool],
        **more,
    }


def engine(name: str, *loads: dict[str, Any]) -> dict[str, Any]:
    memory = {"before": 30 << 20, "opened": 60 << 20, "peak": None, "steady": 61 << 20}
    memory |= {"gpu_before": "", "gpu_steady": ""}
    return {
        "engine": name,
        "device": "cpu",
        "file_bytes": 2048,
        "library_seconds": 0.25,
        "open_seconds": 0.01,
        "memory": memory,
        "loads": [*loads],
    }


def document(*entries: dict[str, Any]) -> dict[str, Any]:
    rates = {"a": 2e11, "b": 3e11}
    products = [
        {"engine": n, "precision": "fp32", "kind": "convolution", "operations_per_second": rate}
        for n, rate in rates.items()
    ]
    return {"products": products, "product_problems": ["c: no kernel"], "engines": [*entries]}


def rows(table: profile.Table) -> list[dict[str, str]]:
    _, columns, cells = table
    return [dict(zip(columns, row, strict=True)) for row in cells]


def test_the_tables_have_what_was_measured() -> None:
    known = document(engine("a", load(1, 0.5), load(8, 0.9, joules=0.25)))
    (start,) = rows(profile.cold_start(known))
    assert (start[">library"], start[">open"], start[">first run"]) == (
        "250 ms",
        "10.0 ms",
        "500 ms",
    )
    assert start[">GPU"] == ""
    known["engines"][0]["memory"].update(gpu_before="10", gpu_steady="522")
    assert rows(profile.cold_start(known))[0][">GPU"] == "512 MiB"
    assert (start[">file"], start[">opened"], start[">peak"]) == ("2.0 KiB", "60.0 MiB", "")
    one, eight = rows(profile.costs(known))
    assert (one[">steady"], one[">CPU time"], one[">CPUs"]) == ("2.00 ms", "3.00 ms", "1.5")
    assert (one[">energy"], eight[">energy"]) == ("", "0.25 J")
    one, _ = rows(profile.roofline(known))
    assert (one[">Gop"], one[">Gop/s"], one[">attainable"]) == ("0.8", "50", "100")
    assert one[">share"] == "50% (45-55)"
    assert "energy is not known here: no counter" in profile.cautions(known)


def test_the_layers_are_named_where_the_share_is_low() -> None:
    silent = [load(batch, 0.1, layers=[]) for batch in (1, 8)]
    known = document(engine("a", load(1, 0.5), load(8, 0.9)), engine("b", *silent))
    assert profile.losses(known) == [
        "a at batch 1: 50%; most time: 75% in conv1 (Conv), 25% in pool (MaxPool); 25% of the time"
        " multiplies nothing",
        "the time of layers is not known of b",
    ]


def test_what_a_layer_loses_is_said_where_it_is_known() -> None:
    known = document(engine("a", load(1, 0.5)))
    conv, pool = known["engines"][0]["loads"][0]["layers"]
    conv.update(lost=0.25, reached=2 / 3)
    pool.update(lost=0.25)
    (sentence,) = profile.losses(known)
    assert "lost: 25% in conv1 (Conv, 67% of its bound), 25% in pool (MaxPool);" in sentence


def test_parts_below_a_percent_are_not_told_apart() -> None:
    known = document(engine("a", load(1, 0.0005), load(8, 0.0099)))
    one, eight = rows(profile.roofline(known))
    assert (one[">share"], eight[">share"]) == ("<1%", "<1% (1-1)")
    conv, pool = known["engines"][0]["loads"][0]["layers"]
    conv.update(lost=0.99, reached=0.0005)
    pool.update(lost=0.005)
    assert profile.losses(known)[0].startswith(
        "a at batch 1: <1%; lost: 99% in conv1 (Conv, <1% of its bound); 25%"
    )


def test_the_peak_and_why_there_is_no_share_are_printed() -> None:
    known = document(engine("a", load(1, None)), engine("b", load(1, 1.2)))
    peak, too_low, reason, problem = profile.peaks(known)
    assert peak.startswith("peak in fp32: 300 Gop/s, by a convolution of b")
    assert too_low.startswith("b at batch 1 exceeds what was taken for attainable")
    assert reason == "no share for a: it is measured on CPUs only"
    assert problem == "c: no kernel"
    assert len(profile.peaks(document(engine("a", load(1, 0.5))))) == 1


def test_the_fastest_engine_of_each_batch_is_the_best() -> None:
    slow = load(1, 0.3, seconds=interval(5e-3))
    known = document(engine("a", slow, load(8, 0.9)), engine("b", load(1, 0.5)))
    one, eight = (
        dict(zip(profile.BEST, row, strict=True)) for row in profile.best("m", "fp32", known)
    )
    assert (one["engine"], one[">share"]) == ("b", "50% (45-55)")
    assert one["what loses it"] == "most time: 75% in conv1 (Conv), 25% in pool (MaxPool)"
    assert (eight["engine"], eight["what loses it"]) == ("a", "")


@pytest.mark.parametrize(("crashed", "kind"), [(True, CrashedError), (False, FailedError)])
def test_an_engine_without_a_profile_fails_the_command(
    crashed: bool, kind: type[Exception]
) -> None:
    known = document(engine("a", load(1, 0.5)))
    profile.require_profiles(known)
    known["engines"].append({"engine": "b", "error": "signal 11", "crashed": crashed})
    assert [row["engine"] for row in rows(profile.cold_start(known))] == ["a", "b"]
    with pytest.raises(kind, match="signal 11") as caught:
        profile.require_profiles(known)
    assert caught.value.details == {"costs": known}


def test_tables_fit_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    long = engine("torch_compile", load(64, 0.5))
    long["memory"].update(peak=1200 << 20, before=32 << 20, opened=712 << 20)
    profile.show(document(engine("onnxruntime", load(64, 0.5)), long))
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    lines = [line for line in printed.splitlines() if line.startswith("  ")]
    assert lines
    assert max(map(len, lines)) <= 80
    assert any("50% (45-55)" in line for line in lines)
    assert any("1,200.0 MiB" in line for line in lines)  # what a machine has to have
    assert any("50.0 ms" not in line and "500 ms" in line for line in lines)


def test_the_page_shows_what_was_profiled_and_nothing_without() -> None:
    def results(known: dict[str, Any] | None) -> Results:
        part = PrecisionResults(
            name="fp32",
            graph=None,
            verdicts={},
            layers={},
            measurements=None,
            comparison=None,
            costs=known,
            load=None,
            bundle=None,
        )
        return Results(
            model="m",
            training=None,
            precisions=(part,),
            sweep=None,
            files=(),
            records={},
            gaps=(),
        )

    for make in (costs.costs, costs.roofline):
        assert make(results(None)) is None
        section = make(results(document(engine("a", load(1, 0.5)))))
        assert section is not None
        assert any(cell.text == "a" for table in section.tables for cell in table.rows[0])
        assert section.remarks
