"""Prints what the benchmarks measured, after they ran."""

import pytest

LINES = []


@pytest.fixture
def report():
    """Call it with a line for the table at the end of the run."""
    return LINES.append


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("medians of alternated rounds; in brackets: their time / ours")
    for line in LINES:
        terminalreporter.write_line(line)
