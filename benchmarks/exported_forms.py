"""How many greedy completions of each exported form equal the student's: python benchmarks/exported_forms.py.

It trains the student on made-up messages, keeps rows aside, and exports it with each runtime that this Python has.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from trl_distill import DistillError, LLMTrainingParams, export, run

TEAMS = {
    "invoice": "Billing", "refund": "Billing", "parcel": "Shipping", "order": "Sales", "password": "Security",
    "login": "Security", "screen": "Repair", "keyboard": "Repair",
}  # fmt: skip
FRAMES = (
    "The {} is wrong.", "My {} does not work.", "I have a question about the {}.", "Where is my {}?", "{} please",
    "I lost the {}.", "Can you check my {}?", "There is a problem with the {}.", "Please look at the {}.",
    "The {} never came.", "We need the {}.", "No {} here.", "Is the {} ready?", "Send the {} again.", "Fix the {}.",
    "Who has my {}?", "Thanks for the {}.",
)  # fmt: skip
PROMPT = "Read each message and send it to the right team.\n" + "".join(f"- {t}: {m}\n" for t, m in TEAMS.items())
PROMPT += "Write the team in square brackets, then the topic.\n\nMessage: {input}\nAnswer:"
FORMS = (
    ("merged", {}), ("merged", {"dtype": "bfloat16"}), ("vllm", {}), ("vllm", {"merge": True}),
    ("vllm", {"dtype": "bfloat16"}), ("gguf", {}), ("gguf", {"gguf_type": "q8_0"}), ("mlx", {}),
)  # fmt: skip


def main() -> None:
    """Train, export and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="student and teacher")
    parser.add_argument("--rows", type=int, default=100, help="rows to verify on, 102 at most")
    parser.add_argument("--forms", default="merged,vllm,gguf,mlx", help="forms to export")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"text": frame.format(topic)} for frame in FRAMES for topic in TEAMS]
        params = LLMTrainingParams(
            model=given.model, teacher_model=given.model, teacher_prompt_template=PROMPT,
            student_prompt_template="{input}\nAnswer:", data_path=rows, holdout=0.75, max_steps=20, batch_size=8,
            gradient_accumulation=1, lr=1e-3, distill_max_teacher_length=12, peft=True, lora_r=4, eval_strategy="no",
            save_strategy="no", project_name=str(Path(folder) / "student"),
        )  # fmt: skip
        project = run(params).paths["project"]
        lines = ["| form | settings | precision | runtime | equal |", "|---|---|---|---|---|"]
        for form, settings in FORMS:
            if form in given.forms.split(","):
                named = ", ".join(f"{name}={value}" for name, value in settings.items())
                lines.append(f"| {form} | {named} | {figures(project, form, settings, given.rows)} |")
    print("\n".join(lines))


def figures(project: Path, form: str, settings: dict[str, object], rows: int) -> str:
    """Return the last cells of a line."""
    try:
        found = export(project, to=form, verify=rows, overwrite=True, **settings).verification
    except DistillError as error:
        return f"| | not exported: {error}"
    return "| | not verified" if found is None else f"{found.dtype} | {found.runtime} | {found.equal} of {found.rows}"


if __name__ == "__main__":
    main()
