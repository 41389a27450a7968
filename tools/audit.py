"""Known vulnerabilities of the packages in constraints.txt, by pip-audit; says so if its service cannot be reached.

pip-audit reports a package that its service does not know as skipped, and ends as if nothing were wrong.

    python tools/audit.py [constraints.txt]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMAND = ("-m", "pip_audit", "--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off")
DEFAULT = Path(__file__).parents[1] / "constraints.txt"


def report(answer: str, errors: str) -> tuple[list[str], int]:
    """Return what to print for pip-audit's output, and the exit code: 1 for a vulnerability."""
    try:
        packages = json.loads(answer)["dependencies"]
    except (ValueError, KeyError):
        last = (errors.strip().splitlines() or ["no output"])[-1]
        return [f"Nothing was audited: pip-audit gave no answer ({last})."], 0
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return ["Nothing was audited: the service of pip-audit cannot be reached, or knows none of the packages."], 0
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    state = f"Packages audited: {len(packages) - len(skipped)}; known vulnerabilities: {len(lines)}"
    unknown = f"; not known to the service: {', '.join(skipped)}" if skipped else ""
    return [*lines, f"{state}{unknown}."], int(bool(lines))


def main(path: str = str(DEFAULT)) -> int:
    """Audit a file of pinned packages and return the exit code."""
    command = [sys.executable, *COMMAND, "--requirement", path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except subprocess.TimeoutExpired:
        print("Nothing was audited: the service of pip-audit did not answer within ten minutes.")
        return 0
    lines, code = report(done.stdout, done.stderr)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
