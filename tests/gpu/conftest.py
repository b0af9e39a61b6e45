"""A LeNet that is exported and not built: each test builds what it needs."""

import pytest

from pipeline.cli import stage_runs
from pipeline.workflow.runner import Store
from tests.subset import install_trained


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("exported")
    store = Store(folder / "artifacts", folder / "dist")
    stage_runs.run_stage("data", {}, store)
    install_trained(store)
    stage_runs.run_stage("export", {"model": "lenet"}, store)
    return store
