"""The printed report of LoadGen's runs."""

from typing import Any

from pipeline.report import loadgen

SHORT: dict[str, Any] = {"valid": False, "reasons": ["Early stopping satisfied: no"]}
LATE: dict[str, Any] = {
    "valid": False,
    "reasons": ["Performance constraints satisfied: no", "Early stopping satisfied: no"],
}
VALID: dict[str, Any] = {"valid": True, "reasons": []}


def test_the_remedy_for_a_late_run_is_a_lower_rate_and_for_a_short_one_more_time() -> None:
    late, short = loadgen.remedy([LATE, VALID]), loadgen.remedy([SHORT, VALID])
    assert "lower --rate" in late
    assert "--min-duration" not in late
    assert "longer --min-duration" in short
    assert "--rate" not in short
    assert loadgen.remedy([LATE, SHORT]) == f"{late}; {short}"
