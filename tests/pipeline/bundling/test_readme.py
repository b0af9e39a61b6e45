"""The README inside a bundle."""

import json

from pipeline.bundling import readme
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members


def test_a_verdict_with_a_looser_limit_says_so(built: Store) -> None:
    facts = json.loads(members(bundle_of(built))[f"{FOLDER}/manifest.json"])
    engine = facts["models"]["fp32"]["engines"]["onnxruntime"]
    assert "if accuracy may fall" not in readme.text(facts, [], {}, [])
    engine["max_drop"] = 0.1
    (line,) = (
        line
        for line in readme.text(facts, [], {}, []).splitlines()
        if line.startswith("| `onnxruntime` ")
    )
    assert "| pass, if accuracy may fall by 10 points |" in line
