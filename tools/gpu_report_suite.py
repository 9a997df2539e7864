"""Runs pytest and says in one line what came of it: `python -m tools.gpu_report_suite FILE.xml PYTEST-ARGUMENTS...`.

Decides only how the outcome is counted; a run that is interrupted still writes FILE.xml. No test at all is a failure.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest


def figure(report: Path) -> str:
    if not report.exists():
        return "no report"
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return f"{passed} passed, {counts['failures'] + counts['errors']} failed, {counts['skipped']} skipped"


def main(file: str, *arguments: str) -> int:
    report = Path(file)
    report.unlink(missing_ok=True)
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}", *arguments])
    print(f"figure: {figure(report)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
