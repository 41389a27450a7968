"""Prints how the package is built: entries, layers, files, lines, and the way of one setting through a run.

    python tools/structure.py [--json]

The run distils the embedded model into itself for one step, under a profiler. A module counts as passed by
`distill_temperature` if the value is an argument, a local or a return value of one of its functions, or if one of them
reads it from an object's field. An object with many settings that is handed on whole does not count, whether it is a
dataclass or a dict: nobody who follows the value has to look there. `to_dict` makes such a dict for config.yaml and the
model card. Modules that write the value down, from such a dict or once the step is trained (cards, page), are listed
apart. A check is a function named `check_...` that is handed the value; each place that calls one counts once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pkgutil
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "trl_distill"
SETTING, VALUE = "temperature", 3.25  # in binary exact, and no other value of a run
SET_UP = (
    *("plan_setup", "build_setup", "teacher_of", "recipe_of", "date_of", "supported_loss", "teachers_of_run"),
    *("find_targets", "has_targets", "parse_template", "resolve", "config", "load_tokenizer", "load_model"),
    *("adapter", "is_prepared", "validate_combinations", "check_arguments", "check_teacher_supports", "check_apart"),
    *("check_value", "temperatures_of"),
)


class Watch:
    """What the package's functions do with the value, as `sys.setprofile` shows it."""

    def __init__(self) -> None:
        self.passed: dict[str, None] = {}
        self.recorded: dict[str, None] = {}  # by what writes about the run
        self.is_trained = False
        self.checks: dict[tuple[str, str], None] = {}
        self.calls: Counter[str] = Counter()
        self.known: dict[CodeType, str] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Look at a call or a return of one of the package's functions."""
        if event not in ("call", "return"):
            return
        module = self.module_of(frame.f_code)
        if not module:
            return
        there = [*frame.f_locals.values(), *([argument] if event == "return" else [])]
        held = any(has_value(value) for value in there)
        self.is_trained = self.is_trained or frame.f_code.co_name == "add_metrics"  # the step's log line
        if held:
            self.note(module)
        if any(type(value) is dict and any(map(is_value, value.values())) for value in there):
            self.recorded.setdefault(module)
        name = frame.f_code.co_name
        if event == "call" and not self.is_trained:
            self.calls[f"{module}.{name}"] += 1
            if held and name.startswith("check_") and frame.f_back is not None:
                self.checks.setdefault((name, self.module_of(frame.f_back.f_code) or "outside"))

    def note(self, module: str) -> None:
        """Note that a module has the value."""
        (self.recorded if self.is_trained else self.passed).setdefault(module)

    def module_of(self, code: CodeType) -> str:
        """Return the dotted module of a function of the package, else an empty text."""
        if code not in self.known:
            path = Path(code.co_filename)
            inside = path.is_absolute() and path.is_relative_to(PACKAGE)
            self.known[code] = ".".join(path.relative_to(PACKAGE).with_suffix("").parts) if inside else ""
        return self.known[code]

    def watch_fields(self) -> None:
        """Have every class that has the setting as a field say who reads it."""
        for cls in classes_with_field():
            plain = cls.__getattribute__

            def reading(owner: Any, name: str, plain: Any = plain) -> Any:
                found = plain(owner, name)
                if SETTING in name and is_value(found):
                    code = sys._getframe(1).f_code
                    module = self.module_of(code)
                    if module and code.co_name != "to_dict":
                        self.note(module)
                return found

            cls.__getattribute__ = reading


def is_value(found: Any) -> bool:
    """Whether something is the traced value, as a number or as the text of a flag."""
    return (type(found) is float and found == VALUE) or (type(found) is str and found == str(VALUE))


def has_value(found: Any) -> bool:
    """Whether something is the value, or a list with it."""
    if type(found) in (list, tuple):
        return len(found) < 200 and any(is_value(value) for value in found)
    return is_value(found)


def classes_with_field() -> list[type[Any]]:
    """Return the package's dataclasses that have the setting under any name."""
    import trl_distill

    found: dict[type[Any], None] = {}
    for info in pkgutil.walk_packages(trl_distill.__path__, "trl_distill."):
        if info.name.endswith("__main__") or "triton" in info.name:
            continue
        with contextlib.suppress(ImportError):
            for thing in vars(importlib.import_module(info.name)).values():
                if isinstance(thing, type) and dataclasses.is_dataclass(thing) and "trl_distill" in thing.__module__:
                    found.setdefault(thing)
    return [cls for cls in found if any(SETTING in field.name for field in dataclasses.fields(cls))]


def traced_run() -> dict[str, Any]:
    """Run the command for one step and return what the setting passed, its checks and the calls of set-up functions."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path.insert(0, str(PACKAGE.parent))
    from trl_distill.cli import main

    watch = Watch()
    watch.watch_fields()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text("".join(json.dumps({"text": f"apple pear {word}"}) + "\n" for word in ("plum", "tea", "salt")))
        arguments = ["llm", "--model", "embedded", "--teacher-model", "embedded", "--trainer", "distillation"]
        arguments += ["--teacher-prompt-template", "Write the words in reverse order.\n{input}\n"]
        arguments += ["--distill-temperature", str(VALUE), "--max-steps", "1", "--batch-size", "2"]
        arguments += ["--data-path", str(data), "--project-name", str(Path(folder) / "run")]
        out = io.StringIO()
        threading.setprofile(watch)
        sys.setprofile(watch)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                main(arguments, standalone_mode=False)
        except SystemExit as end:
            raise SystemExit(f"the run failed:\n{out.getvalue()}") from end
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    calls = {name: count for name, count in watch.calls.items() if name.rpartition(".")[2] in SET_UP}
    checks = [f"{check} from {caller}" for check, caller in watch.checks]
    recorded = sorted(watch.recorded.keys() - watch.passed.keys())
    return {"modules passed": sorted(watch.passed), "written down by": recorded, "checks": checks, "calls": calls}


def measured() -> dict[str, int]:
    """Return what can be counted without running anything."""
    files = sorted(PACKAGE.rglob("*.py"))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    hidden = {"__init__.py"}
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    texts = [file.read_text(encoding="utf-8").splitlines() for file in files]
    return {
        "entries at the top": len({file.relative_to(PACKAGE).parts[0] for file in files} - hidden),
        "layers": len(contract[0]["layers"]),
        "files": len(files),
        "lines": sum(map(len, texts)),
        "lines of the longest file": max(map(len, texts)),
        "uses of Any": sum(isinstance(n, ast.Name) and n.id == "Any" for tree in trees for n in ast.walk(tree)),
    }


def main() -> None:
    """Measure, run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    found: dict[str, Any] = {**measured(), **traced_run()}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, int):
            print(f"{name:46}{value:>8,}")
    print(f"\ndistill_temperature passes {len(found['modules passed'])} modules:")
    print("  " + "\n  ".join(found["modules passed"]))
    print("\nis written down by:")
    print("  " + "\n  ".join(found["written down by"]))
    print(f"\nand is checked at {len(found['checks'])} places:")
    print("  " + "\n  ".join(found["checks"]))
    print("\ncalls of set-up functions:")
    for name, count in sorted(found["calls"].items(), key=lambda item: (-item[1], item[0])):
        print(f"  {name:44}{count:>8,}")


if __name__ == "__main__":
    main()
