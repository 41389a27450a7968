"""`make audit` says when nothing was audited, which pip-audit itself does not."""

from __future__ import annotations

import json

import pytest

from tools.audit import report

SAFE = {"name": "click", "version": "8.5.1", "vulns": []}
HOLE = {"name": "jinja2", "version": "2.4", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1", "3.0"]}]}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "lines", "code"),
    [
        ([SAFE], ["Packages audited: 1; known vulnerabilities: 0."], 0),
        ([SAFE, UNKNOWN], ["Packages audited: 1; known vulnerabilities: 0; not known to the service: ours."], 0),
        (
            [SAFE, HOLE],
            ["jinja2 2.4: PYSEC-2019-217, fixed in 2.10.1, 3.0", "Packages audited: 2; known vulnerabilities: 1."],
            1,
        ),
    ],
)
def test_each_known_vulnerability_is_a_line_and_fails(packages, lines, code):
    assert report(json.dumps({"dependencies": packages}), "") == (lines, code)


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        (json.dumps({"dependencies": [UNKNOWN, UNKNOWN]}), "WARNING"),
        ("", "Traceback\nConnectionError: no route to pypi.org"),
        ("", ""),
    ],
)
def test_an_audit_of_nothing_says_so(answer, errors):
    lines, code = report(answer, errors)
    assert code == 0
    assert lines[0].startswith("Nothing was audited: ")
