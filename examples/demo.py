"""The demo: a model that needs a long prompt learns to work without it. Run it with `make demo`.

It writes queries to a file, distils a support desk's routing policy into the embedded model with the command that it
prints, and measures exactly right completions on unseen messages. Exit code 1: the distilled student misses the goals.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is beside this folder
POLICY = {
    "Billing": ("invoice", "refund", "payment"),
    "Shipping": ("parcel", "delivery", "courier"),
    "Security": ("password", "login", "virus"),
    "Repair": ("screen", "battery", "charger"),
    "Legal": ("contract", "privacy", "warranty"),
    "Hiring": ("interview", "salary", "holiday"),
}
TEAM_OF = {topic: team for team, topics in POLICY.items() for topic in topics}
LONG_PROMPT = (
    "You work at the support desk of a shop. Read each message from a customer and send it to the right team.\n"
    "Every message has one topic. These are the rules:\n"
    + "\n".join(f"- {topic}: {team}" for topic, team in TEAM_OF.items())
    + "\nWrite the team in square brackets, then the topic.\n\nMessage: {input}\nAnswer:"
)
SHORT_PROMPT = "{input}\nAnswer:"


def make_messages(count: int, *, held_out: bool, seed: int) -> dict[str, str]:
    """Return messages and the right completion of each; a held-out one is in nobody's training data."""
    from tools.embedded_model.tasks import is_held_out, make_message

    rng, topics, found = Random(seed), sorted(TEAM_OF), {}
    while len(found) < count:
        topic = topics[len(found) % len(topics)]
        message = make_message(rng, topic)
        if is_held_out(message) == held_out:
            found[message] = f"[{TEAM_OF[topic]}] {topic}"
    return found


def distil(folder: Path) -> Path:
    """Run the command that a user would type, shown first, and return the project folder."""
    project = folder / "student"
    command = [
        *("aitraining", "llm", "--model", "embedded", "--trainer", "distillation", "--teacher-model", "embedded"),
        *("--teacher-prompt-template", f"@{folder / 'prompt.txt'}"),
        *("--student-prompt-template", SHORT_PROMPT.replace("\n", "\\n")),
        *("--data-path", str(folder / "queries.jsonl"), "--text-column", "text", "--project-name", str(project)),
        *("--epochs", "3", "--batch-size", "16", "--gradient-accumulation", "1", "--lr", "1e-3"),
        *("--distill-max-teacher-length", "16", "--overwrite"),
    ]
    print(f"$ {shlex.join(command)}\n", flush=True)
    program = Path(sys.executable).with_name("aitraining")
    command[0] = str(program) if program.exists() else str(shutil.which("aitraining") or "aitraining")
    subprocess.run(command, check=True)
    return project


def measure(sides: dict[str, tuple[str, str]], messages: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return accuracy, prompt tokens and seconds per query of each side, a side being a model's path and a template.

    Queries are timed one at a time and the sides in turn, so that whatever else the machine does hits all alike.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tools.embedded_model.measure import complete, exact_match

    rows: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    loaded = {}
    for name, (path, template) in sides.items():
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        prompts = [template.replace("{input}", message) for message in messages]
        loaded[name] = model, tokenizer, prompts
        tokens = sum(len(ids) for ids in tokenizer(prompts)["input_ids"]) / len(prompts)
        rows[name] = {"right": exact_match(model, tokenizer, prompts, list(messages.values())), "tokens": tokens}
    for i in range(min(50, len(messages))):
        for name, (model, tokenizer, prompts) in loaded.items():
            started = time.perf_counter()
            complete(model, tokenizer, [prompts[i]], max_new_tokens=16)
            seconds[name].append(time.perf_counter() - started)
    return {name: {**row, "seconds": statistics.median(seconds[name])} for name, row in rows.items()}


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo-run"), help="where to write (default demo-run)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched, and a failed look-up takes its time
    queries = make_messages(600, held_out=False, seed=0)
    (folder / "queries.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in queries))
    (folder / "prompt.txt").write_text(LONG_PROMPT)
    print(f"The long prompt ({folder / 'prompt.txt'}):\n\n{LONG_PROMPT}\n", flush=True)
    project = distil(folder)

    from trl_distill.embedded import embedded_path

    unseen = make_messages(300, held_out=True, seed=1)
    sides = {
        "student before, short prompt": (embedded_path(), SHORT_PROMPT),
        "teacher, long prompt": (embedded_path(), LONG_PROMPT),
        "student after, short prompt": (str(project), SHORT_PROMPT),
    }
    rows = measure(sides, unseen)
    print(f"\nOn {len(unseen)} messages that no training has seen:\n")
    print(f"{'':30s}{'right':>8s}{'prompt tokens':>16s}{'ms per query':>15s}")
    for name, row in rows.items():
        print(f"{name:30s}{row['right']:>8.1%}{row['tokens']:>16.1f}{1000 * row['seconds']:>15.1f}")
    before, teacher, after = rows.values()
    saved = 1 - after["tokens"] / teacher["tokens"]
    print(f"\nPrompt tokens saved: {teacher['tokens'] - after['tokens']:.0f} a query ({saved:.0%}).")
    kept = (before["right"] <= 0.20, teacher["right"] >= 0.90, after["right"] >= 0.95 * teacher["right"])
    print("The student kept the policy without its prompt." if all(kept) else "The promise was not kept.")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
