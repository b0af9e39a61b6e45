"""The section of the page on load, from a real run."""

import itertools
import json

import pytest

from pipeline.cli import stage_runs
from pipeline.report import load as report
from pipeline.report.page import results, sections
from pipeline.report.page.content import Section
from pipeline.workflow.runner import Store
from tests.pipeline.report.page.pages import parse, rewrite
from tests.timed import timed


def load_section(store: Store) -> Section | None:
    every = sections.page(results.collect("lenet", (), store), store.place).sections
    return next((section for section in every if section.name == "load"), None)


def test_without_a_run_there_is_no_section(store: Store) -> None:
    assert load_section(store) is None


SEEDS = itertools.count()


@pytest.mark.slow(3)
@timed
def test_the_page_shows_what_was_served(store: Store) -> None:
    arguments = {"model": "lenet", "engine": ["onnxruntime"], "concurrency": (1, 2)}
    stage_runs.run_stage("load", {**arguments, "duration": 0.2, "seed": next(SEEDS)}, store)
    section = load_section(store)
    assert section is not None
    served = json.loads((store.root / "lenet/fp32/served.json").read_text())
    texts = {cell.text for table in section.tables for row in table.rows for cell in row}
    for _, _, rows in (report.closed_table(served), report.arrivals_table(served)):
        assert {cell for row in rows for cell in row if cell} <= texts
    assert section.remarks[0].startswith("onnxruntime bears ")
    assert len(section.figures) == 2
    first, second = section.figures
    assert first.text.startswith("onnxruntime serves ")
    assert second.text == section.remarks[0]
    for figure in section.figures:
        assert parse(figure.svg).all("title")[0].text == figure.title


@pytest.mark.slow(3)
def test_an_engine_that_served_nothing_is_a_row_without_numbers(store: Store) -> None:
    arguments = {"model": "lenet", "engine": ["onnxruntime", "openvino"], "concurrency": (1,)}
    stage_runs.run_stage("load", {**arguments, "duration": 0.1}, store)

    def failed(content: dict) -> dict:
        nothing = {"closed": [], "arrivals": [], "saturation": None, "failure": "no memory"}
        content["engines"][0] |= nothing
        return content

    rewrite(store, "lenet/fp32/served.json", "lenet/fp32/load.json", failed)
    section = load_section(store)
    assert section is not None
    (row,) = [row for row in section.tables[0].rows if row[-1].text == "no memory"]
    assert row[0].text == "onnxruntime"
