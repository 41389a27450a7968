"""The demo: a model that needs a long prompt learns to work without it. Run it with `make demo`.

It writes messages to a file, distils a support desk's routing policy into the embedded model and evaluates it on unseen
messages, with the commands that it prints. They leave a page. Exit code 1: the distilled student misses the goals.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
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

    rng, topics, found = Random(seed), sorted(TEAM_OF), {}  # nosec B311  # no secret is drawn
    while len(found) < count:
        topic = topics[len(found) % len(topics)]
        message = make_message(rng, topic)
        if is_held_out(message) == held_out:
            found[message] = f"[{TEAM_OF[topic]}] {topic}"
    return found


def call(*arguments: str) -> None:
    """Run `aitraining` as a user would type it, the command line shown first."""
    print(f"$ {shlex.join(('aitraining', *arguments))}\n", flush=True)
    program = Path(sys.executable).with_name("aitraining")
    command = str(program) if program.exists() else str(shutil.which("aitraining"))
    subprocess.run([command, *arguments], check=True)  # nosec B603  # our own command, without a shell


def distil(folder: Path) -> Path:
    """Train the student on messages alone, and return the project folder."""
    project = folder / "student"
    call(
        *("llm", "--model", "embedded", "--trainer", "distillation", "--teacher-model", "embedded"),
        *("--teacher-prompt-template", f"@{folder / 'prompt.txt'}"),
        *("--student-prompt-template", SHORT_PROMPT.replace("\n", "\\n")),
        *("--data-path", str(folder / "queries.jsonl"), "--text-column", "text", "--project-name", str(project)),
        *("--epochs", "3", "--batch-size", "16", "--gradient-accumulation", "1", "--lr", "1e-3"),
        *("--distill-max-teacher-length", "16", "--overwrite"),
    )
    return project


def reached(report: dict) -> bool:
    """Whether the student needed the prompt before training, and is now about as good as the teacher with it."""
    evaluation = report["evaluation"]
    right = {side["name"]: side["summary"]["scores"][evaluation["metric"]] for side in evaluation["sides"]}
    goals = right["before"] <= 20, right["teacher"] >= 90, right["after"] >= 0.95 * right["teacher"]
    return all(goals) and evaluation["verdict"]["kind"] == "works"


def write_rows(path: Path, messages: dict[str, str], *, answers: bool) -> None:
    """Write messages as rows of data, with the right completions or without them."""
    rows = ({"text": text, **({"answer": answer} if answers else {})} for text, answer in messages.items())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo-run"), help="where to write (default demo-run)")
    parser.add_argument("--messages", type=int, default=600, help="messages to train on (default 600)")
    parser.add_argument("--unseen", type=int, default=300, help="messages to evaluate on (default 300)")
    given = parser.parse_args()
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched, and a failed look-up takes its time
    write_rows(folder / "queries.jsonl", make_messages(given.messages, held_out=False, seed=0), answers=False)
    write_rows(folder / "heldout.jsonl", make_messages(given.unseen, held_out=True, seed=1), answers=True)
    (folder / "prompt.txt").write_text(LONG_PROMPT)
    print(f"The long prompt ({folder / 'prompt.txt'}):\n\n{LONG_PROMPT}\n", flush=True)
    project = distil(folder)
    print("\nNow on messages that no training has seen, against the answers that the policy asks for:\n", flush=True)
    call("evaluate", str(project), "--data-path", str(folder / "heldout.jsonl"), "--reference-column", "answer")
    kept = reached(json.loads((project / "report.json").read_text(encoding="utf-8")))
    print("The student kept the policy without its prompt." if kept else "The promise was not kept.")
    print(f"Open {(project / 'report.html').resolve()} in a browser.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
