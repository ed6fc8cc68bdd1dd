"""Rules for every suite: on CI a skip must say what the machine cannot do, else it counts as a failure; Ctrl-C reaches
what the tests start, also when the tests themselves were started in the background; files with slow tests come first,
so that no worker is left alone with one at the end."""

import os
import signal
from collections import Counter

import pytest

CANNOT = "this machine cannot: "


def pytest_configure() -> None:
    # a shell starts its background jobs with SIGINT ignored, and whatever they start inherits that
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    unexplained = [report for report in terminalreporter.stats.get("skipped", []) if CANNOT not in str(report.longrepr)]
    if os.environ.get("CI") and unexplained:
        terminalreporter.section("skips that this machine could have run")
        for report in unexplained:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and session.exitstatus == 0:
        skipped = reporter.stats.get("skipped", [])
        if any(CANNOT not in str(report.longrepr) for report in skipped):
            session.exitstatus = 1
