"""Runs the scripts of this folder in their long form and prints what each counted; `make faults`.

    python tests/faults/run_all.py [NAME ...] [--folder DIR]

A script here takes `--folder`, where it writes, and `--long`. Its last line is a JSON object of what it counted, and it
ends with exit code 0 if every promise held. The tests of this folder (`test_...`) run the short forms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import platform, python_version

FOLDER = Path(__file__).parent
LONGEST = 3600  # seconds of a script


def scripts() -> list[Path]:
    """Return the scripts of this folder, without this one, tests, and modules that scripts share (`_...`)."""
    return sorted(
        p for p in FOLDER.glob("*.py") if p.name != Path(__file__).name and not p.name.startswith(("test_", "_"))
    )


def counted(script: Path, folder: Path) -> str:
    """Run a script in its long form and return what it counted as text.

    Raises:
        RuntimeError: It failed; with the end of what it printed.
    """
    command = [sys.executable, str(script), "--long", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in found.items()
    )


def main() -> int:
    """Run and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="scripts to run (default: all)")
    parser.add_argument("--folder", type=Path, help="where they write (default: a temporary folder)")
    given = parser.parse_args()
    known = {path.stem: path for path in scripts()}
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"unknown script {unknown[0]}; expected one of {', '.join(known)}.")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform(terse=True)}, Python {python_version()}, {versions}", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.names or known:
            began = time.monotonic()
            try:
                text = counted(known[name], (given.folder or Path(temporary)) / name)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed.append(name)
                text = f"FAILED: {error}"
            print(f"{name:<12} {text} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
