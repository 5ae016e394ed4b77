"""One report and one written page for all tests of this folder, because drawing is slow."""

import copy
from pathlib import Path

import pytest

import toy_report
from unmask.experiments.report.page import write_report


@pytest.fixture
def report() -> dict:
    return copy.deepcopy(toy_report.small())


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(toy_report.small(), tmp_path_factory.mktemp("report"))
