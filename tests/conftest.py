"""Two settings of hypothesis: `ci`, the same few examples every time, and `long`, a hunt.

HYPOTHESIS_PROFILE=long python -m pytest -m hypothesis -x --hypothesis-show-statistics

With REQUIRE_ALL=1, as CI sets it, a test that skips itself fails, unless it needs a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

slow_is_fine = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=10, derandomize=True, **slow_is_fine)
settings.register_profile("long", max_examples=500, print_blob=True, **slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)


def fail_if_skipped(report: pytest.CollectReport | pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("REQUIRE_ALL"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and REQUIRE_ALL is set: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if not item.get_closest_marker("gpu"):
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    fail_if_skipped(report)
    return report
