"""The HTML page of a model, read with an HTML parser."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import html, markdown, results, sections
from pipeline.report.page.results import Results
from pipeline.report.units import duration
from pipeline.workflow.records import SCHEMA
from pipeline.workflow.runner import Store
from tests.conftest import Result
from tests.pipeline.report.page.pages import Element, cells, parse, rewrite

Assay = Callable[..., Result]
SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"scaled\" by 'two' & <b>shifted</b>"


def page_of(known: Results, store: Store) -> str:
    return html.text(sections.page(known, store.place), known, store.root)


def with_confusion(known: Results) -> Results:
    """Adds the confusion matrix, of which the weights of the tests have no record."""
    confusion = [[100 + 10 * row + column for column in range(10)] for row in range(10)]
    classes = [f"class {number}" for number in range(10)]
    training = {**(known.training or {}), "classes": classes, "confusion": confusion}
    return dataclasses.replace(known, training=training)


def with_all_fields(known: Results) -> Results:
    """Adds the fields of measurements on a GPU and of long ones."""
    (part,) = known.precisions
    if part.measurements is None:
        return known
    fields = {"bound": "launches", "enqueue_seconds": 123e-6, "size": "image 1x320"}
    names = ("p50", "p90", "p95", "p99", "p99.9")
    interval = {"value": 123e-6, "low": 12.3e-6, "high": 12.3e-3}
    entries = [
        {**entry, **fields, "percentiles": dict.fromkeys(names, interval)}
        for entry in part.measurements["results"]
    ]
    measurements = {**part.measurements, "results": entries}
    part = dataclasses.replace(part, measurements=measurements)
    return dataclasses.replace(known, precisions=(part,))


def with_hostile_texts(known: Results) -> Results:
    """Puts markup wherever a user chooses a text."""
    training, (part,) = known.training, known.precisions
    assert training is not None
    assert part.graph is not None
    classes = [SCRIPT, *training["classes"][1:]]
    metadata = {**part.graph["metadata"], "assay.preprocessing": QUOTES}
    metadata["assay.labels"] = json.dumps(classes)
    graph = {**part.graph, "metadata": metadata, "inputs": [f"{SCRIPT}: uint8[batch]"]}
    graph["nodes"] = [{**node, "name": f"{SCRIPT}{QUOTES}"} for node in part.graph["nodes"]]
    outputs = tuple(
        dataclasses.replace(output, name=f"$x^2$ {SCRIPT}")
        for output in part.verdicts["graph"].outputs
    )
    verdict = dataclasses.replace(part.verdicts["graph"], outputs=outputs * 2, reason=SCRIPT)
    verdicts = {**part.verdicts, "graph": verdict}
    return dataclasses.replace(
        known,
        model=f"{QUOTES}.py:{SCRIPT}",
        training={**training, "classes": classes},
        precisions=(dataclasses.replace(part, graph=graph, verdicts=verdicts),),
    )


@pytest.fixture(scope="module")
def known(built: Store) -> Results:
    return with_confusion(results.collect("lenet", (), built))


@pytest.fixture(scope="module")
def root(built: Store, known: Results) -> Element:
    return parse(page_of(known, built))


@pytest.fixture(scope="module")
def texts(root: Element) -> set[str]:
    return {*cells(root)}


def place(store: Store) -> tuple[object, ...]:
    return "--root", store.root, "--dist", store.dist


def gaps(store: Store, *, drawn: bool = False) -> str:
    """Returns what a report says of what is missing, and what to do.

    Args:
        drawn: With what is noticed only once the sections are made.
    """
    known = results.collect("lenet", (), store)
    every = sections.page(known, store.place).gaps if drawn else known.gaps
    return "\n".join(f"{gap.problem}: {gap.hint}" for gap in every)


def test_a_complete_model_has_all_sections(root: Element) -> None:
    names = [element.attributes["id"] for element in root.all("section")]
    assert names == [
        *("deploy", "verdicts", "latency", "frontier", "noise", "training", "layers", "sizes"),
        *("environment", "provenance"),
    ]


def test_every_reference_inside_the_page_has_one_target(root: Element) -> None:
    elements = [*root.walk()]
    identifiers = [e.attributes["id"] for e in elements if "id" in e.attributes]
    assert len(identifiers) == len({*identifiers})
    wanted = [name for e in elements for name in e.attributes.get("aria-labelledby", "").split()]
    wanted += [
        e.attributes["href"][1:] for e in elements if e.attributes.get("href", "").startswith("#")
    ]
    wanted += re.findall(r"url\(#([^)]+)\)", json.dumps([e.attributes for e in elements]))
    assert wanted
    assert {*wanted} <= {*identifiers}


def test_the_page_asks_for_nothing_else(root: Element) -> None:
    for element in root.walk():
        assert element.tag not in ("script", "img", "iframe", "object", "embed", "base")
        assert not {"src", "srcset", "data", "onload"} & element.attributes.keys()
        assert element.attributes.get("href", "#").startswith(("#", "data:,"))
    (style,) = root.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    (policy,) = [e for e in root.all("meta") if "http-equiv" in e.attributes]
    assert policy.attributes["content"].startswith("default-src 'none';")


def test_every_plot_has_a_text_and_takes_the_colours_of_the_page(root: Element) -> None:
    drawn = root.all("svg")
    assert len(drawn) == len(root.all("figure")) == 5
    for plot in drawn:
        assert plot.attributes["role"] == "img"
        title, text = plot.all("title", "desc")
        assert plot.attributes["aria-labelledby"].split() == [
            title.attributes["id"],
            text.attributes["id"],
        ]
        assert len(text.text) > len(title.text) > 0
        styles = " ".join(e.attributes.get("style", "") for e in plot.walk())
        assert "var(--ink)" in styles
        assert not re.search(r"#[0-9a-f]{6}", styles)


def test_every_table_has_headings(root: Element) -> None:
    tables = root.all("table")
    assert tables
    for table in tables:
        (head,) = table.all("thead")
        titles = [element.attributes["scope"] for element in head.all("th")]
        assert {*titles} == {"col"}
        for row in table.all("tbody")[0].all("tr"):
            assert len(row.all("th", "td")) == len(titles)
            assert row.all("th")[0].attributes["scope"] == "row"


def numbers(value: Any) -> Iterator[Any]:
    """Yields the numbers within a JSON value."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_every_measured_number_is_in_a_table(known: Results, texts: set[str]) -> None:
    measurements = known.precisions[0].measurements
    assert measurements is not None
    for entry in measurements["results"]:
        assert {*map(duration, entry["seconds"].values())} <= texts
        for interval in entry["percentiles"].values():
            low, value, high = (duration(interval[name]) for name in ("low", "value", "high"))
            assert f"{value} ({low} to {high})" in texts
        assert f"{entry['waiting']:.3f}" in texts
        assert {f"{entry[name]:,}" for name in ("batch", "rounds", "iterations")} <= texts
        if entry["name"] != entry["baseline"]:
            assert "{value:.3f} ({low:.3f}-{high:.3f})".format(**entry["ratio"]) in texts
    machine = {f"{value:,.6g}" for value in numbers(measurements["machine"]) if value % 1}
    assert machine <= texts


def test_every_verdict_is_in_a_table(known: Results, texts: set[str]) -> None:
    (part,) = known.precisions
    assert {"graph", "pytorch", "onnxruntime"} <= part.verdicts.keys()
    for verdict in part.verdicts.values():
        for output in verdict.outputs:
            assert {f"{output.rms:.2e}", f"{output.max:.2e}", output.worst} <= texts
            assert {f"{output.rms_ratio:.2f}", f"{output.max_ratio:.2f}"} <= texts


def test_the_training_and_all_confusions_are_in_tables(known: Results, texts: set[str]) -> None:
    assert known.training is not None
    for entry in known.training["curve"]:
        assert {f"{entry['loss']:.4f}", f"{entry['accuracy']:.2%}"} <= texts
    assert {f"{count}" for row in known.training["confusion"] for count in row} <= texts


def test_every_digest_of_the_chain_is_in_a_table(known: Results, texts: set[str]) -> None:
    stages = {record.stage for record in known.records.values()}
    assert stages == {"data", "train", "export", "verify", "build", "bench", "bundle"}
    for record in known.records.values():
        assert {entry["sha256"] for entry in record.outputs.values()} <= texts
        assert record.key in texts


def test_texts_of_users_are_escaped(built: Store, known: Results) -> None:
    text = page_of(with_hostile_texts(known), built)
    root = parse(text)
    assert "<script" not in text
    assert not root.all("script", "b")
    assert f"{QUOTES}.py:{SCRIPT}" in root.all("h1")[0].text
    shown = cells(root)
    assert f"0 {SCRIPT}" in shown
    assert QUOTES in shown
    assert f"{SCRIPT}{QUOTES}" in shown
    # As a label of a plot, too, where $ has no meaning.
    assert any(f"graph, $x^2$ {SCRIPT}" in e.text for e in root.all("text"))


def test_measurements_of_later_versions_have_tables_of_their_own(
    built: Store, known: Results
) -> None:
    (part,) = known.precisions
    assert part.measurements is not None
    entries = [{**entry, "concurrency": 37} for entry in part.measurements["results"]]
    curve = [{"engine": "pytorch", "offered_rate": 1234.5, "p99": 0.25, "kept": True}]
    measurements = {**part.measurements, "results": entries, "load_curve": curve}
    later = dataclasses.replace(
        known, precisions=(dataclasses.replace(part, measurements=measurements),)
    )
    root = parse(page_of(later, built))
    assert {"37", "1,234.5", "0.25", "offered rate", "concurrency"} <= {*cells(root)}
    assert "Load curve in fp32" in [element.text for element in root.all("h3")]


def test_many_classes_are_shown_by_their_confusions(built: Store, known: Results) -> None:
    count = 1000
    confusion = [[0] * count for _ in range(count)]
    confusion[17][400] = 12
    names = [f"class {number}" for number in range(count)]
    training = {**(known.training or {}), "classes": names, "confusion": confusion}
    text = page_of(dataclasses.replace(known, training=training), built)
    shown = cells(parse(text))
    place = shown.index("class 400")
    assert shown[place - 1 : place + 2] == ["class 17", "class 400", "12"]
    assert len(text) < 1 << 20


VERDICTS = ("lenet/fp32/verdict.json", "lenet/fp32/verify.json")
ENGINES = ("lenet/fp32/*/*",)
BENCH = ("lenet/fp32/bench.json", "lenet/fp32/measurements.json")


@pytest.mark.parametrize(
    ("removed", "command"),
    [
        (("lenet/fp32/*/*", "lenet/fp32/*"), "assay export lenet"),
        (VERDICTS, "assay verify lenet"),
        (ENGINES, "assay build lenet"),
        (("lenet/fp32/pytorch/ver*",), "assay verify lenet --engine pytorch"),
        (BENCH, "assay bench lenet"),
        (("lenet/fp32/bundle.json",), "assay bundle lenet"),
        (("lenet/train.json",), "assay train lenet --retrain"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_is_named_with_its_command(
    store: Store, removed: tuple[str, ...], command: str
) -> None:
    for pattern in removed:
        for file in filter(Path.is_file, store.root.glob(pattern)):
            file.unlink()
    known = results.collect("lenet", (), store)
    assert known.gaps
    assert all(f"`{command} --root {store.root}" in gap.hint for gap in known.gaps[:1])


def test_a_trained_model_is_reported(store: Store, assay: Assay, tmp_path: Path) -> None:
    shutil.rmtree(store.root / "lenet/fp32")
    shutil.rmtree(store.dist)
    file = tmp_path / "page.html"
    assert assay("report", "lenet", *place(store), "--html", file).code == 0
    names = [e.attributes["id"] for e in parse(file.read_text()).all("section")]
    assert names == ["missing", "training", "sizes", "environment", "provenance"]


def test_nothing_made_is_said(assay: Assay, tmp_path: Path) -> None:
    result = assay("report", "lenet", "--root", tmp_path, "--html", tmp_path / "page.html")
    assert result.code == 1
    assert f"{tmp_path} has no results of lenet yet" in result.err
    assert f"run `assay run lenet --root {tmp_path}`" in result.err
    assert not (tmp_path / "page.html").exists()


def test_a_failed_stage_is_named(store: Store) -> None:
    report = store.root / "lenet/fp32/tensorrt/build-failure.txt"
    report.parent.mkdir()
    report.write_text("what the library printed")
    text = gaps(store)
    assert f"build failed; what it printed is in {report}" in text
    assert "assay build lenet --engine tensorrt" in text


def test_out_of_date_results_are_left_out(store: Store, assay: Assay) -> None:
    words = ("--retrain", "--epochs", 1, "--seed", 5, "--limit", 64)
    assert assay("train", "lenet", *place(store), *words).code == 0
    text = gaps(store)
    assert "lenet/fp32/graph.json is out of date" in text
    assert "assay export lenet" in text


def test_a_record_of_another_schema_is_named(store: Store) -> None:
    record = store.root / "lenet/fp32/bench.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "schema": SCHEMA + 1}))
    text = gaps(store)
    assert f"bench.json is not a record of schema {SCHEMA}" in text
    assert "assay bench lenet" in text


@pytest.mark.parametrize("content", [{}, [], {"results": 5, "machine": {}, "devices": {}}])
def test_measurements_of_another_form_are_named(store: Store, content: object) -> None:
    files = ("lenet/fp32/measurements.json", "lenet/fp32/bench.json")
    rewrite(store, *files, lambda _: content)
    text = gaps(store, drawn=True)
    assert "not the form that this version of assay writes" in text


@pytest.mark.parametrize(
    ("name", "change", "section"),
    [
        ("graph", {"inputs": [{"a": 1}]}, "environment"),
        ("graph", {"multiply_adds": "many"}, "layers"),
        ("measurements", {"results": [{"name": "pytorch"}]}, "latency"),
        ("measurements", {"machine": [5], "devices": 10**400}, "what to deploy"),
    ],
)
def test_values_of_another_type_cost_their_sections_only(
    built: Store, known: Results, name: str, change: dict[str, object], section: str
) -> None:
    (part,) = known.precisions
    content = {**vars(part)[name], **change}
    part = dataclasses.replace(part, **{name: content})
    changed = dataclasses.replace(known, precisions=(part,))
    page = sections.page(changed, built.place)
    assert f"the section on {section} is left out" in "; ".join(gap.problem for gap in page.gaps)
    names = {entry.name for entry in page.sections}
    assert {"verdicts", "noise", "training", "sizes", "provenance"} <= names
    assert parse(html.text(page, changed, built.root)).all("h1")
    assert "assay run lenet --force" in markdown.text(changed, built.place) or name == "graph"


def test_a_verdict_of_another_form_is_named(store: Store) -> None:
    files = ("lenet/fp32/pytorch/verdict.json", "lenet/fp32/pytorch/verify.json")
    rewrite(store, *files, lambda content: {**content, "later": 1})
    text = gaps(store)
    assert "pytorch/verdict.json has not the form that this version of assay writes" in text
    assert "assay verify lenet --engine pytorch" in text


@pytest.mark.slow(4)
def test_the_same_records_give_the_same_bytes(
    built: Store, assay: Assay, process: Callable[..., Any], tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("first.html", "second.html")]
    assert assay("report", "lenet", *place(built), "--html", files[0]).code == 0
    result = process("report", "lenet", *place(built), "--html", files[1]).run(
        machine={"PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo", "MPLBACKEND": "pdf"}
    )
    assert result.code == 0, result.err
    assert files[0].read_bytes() == files[1].read_bytes()
