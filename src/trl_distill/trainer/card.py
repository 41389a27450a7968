"""The trainer's model card, and what the card of a run shares with it: the teacher, the prompts and the base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard

from ..models.adapters import is_peft_model
from ..models.loading import EMBEDDED
from ..teachers.multi.entries import TeacherList, model_name, read_teachers
from .base import DistillingTrainer
from .card_text import code, escaped, fenced, place_from_here, public_name

if TYPE_CHECKING:
    from ..config.distillation_arguments import DistillationArguments
    from ..prompts.template import Template
    from .plan import Plan

CARD = "README.md"
SETTINGS = ("distill_divergence", "distill_max_teacher_length", "distill_on_policy_fraction", "distill_online")
NO_BASE = "[None](https://huggingface.co/None)"  # what TRL writes of a base model that is a folder


class CardWriter(DistillingTrainer):
    """Adds the teacher, the prompts, alpha and T to the card that TRL writes, and writes one beside a saved model."""

    def create_model_card(  # type: ignore[override]  # as in TRL, not in transformers
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write README.md into the output folder, see `trl.SFTTrainer.create_model_card`."""
        if self.distilling and model_name is None:
            model_name = escaped(Path(str(self.args.output_dir)).resolve().name)
        super().create_model_card(model_name, dataset_name, tags)
        if self.distilling and self.is_world_process_zero():
            self._complete(Path(str(self.args.output_dir)) / CARD)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and beside it the card unless a checkpoint or an upload is being made."""
        super().save_model(output_dir, _internal_call)
        if self.distilling and not _internal_call:
            before = self.args.output_dir
            self.args.output_dir = output_dir or before  # where TRL writes the card
            try:
                self.create_model_card()
            finally:
                self.args.output_dir = before

    def _complete(self, path: Path) -> None:
        """Add the distillation sections to a card, and correct TRL's statements about the student."""
        card = ModelCard.load(path)
        if is_peft_model(self.model):
            card.data.library_name = "peft"
        given = self.base_student.config._name_or_path
        card.data.base_model = base = base_model(given)
        settings = {f"distill_{name}": self.setup.schedule.describe(name) for name in ("alpha", "temperature")}
        settings |= {name: str(getattr(self.args, name)) for name in SETTINGS}
        rows = "\n".join(f"| {name} | {escaped(value)} |" for name, value in settings.items())
        student, listed = given or "the student", self.setup.plan.listed
        named = teacher_in_words(self.args, student=student, listed=listed)
        prompts = prompts_section(self.setup.plan, teacher=named)
        section = f"## Teacher and prompts\n\n{prompts}\n\n| setting | value |\n|---|---|\n{rows}\n\n"
        place = json.dumps(str(place_from_here(path.parent)), ensure_ascii=False)
        text = card.text.replace('model="None"', f"model={place}")
        for link in (NO_BASE, *([f"[{given}](https://huggingface.co/{given})"] if base is None else [])):
            text = text.replace(f" version of {link}", " model")
        before, heading, after = text.partition("## Training procedure")
        card.text = f"{before}{section}{heading}{after}"
        card.save(path)


def base_model(name: object) -> str | None:
    """Return the Hub's name of the model that was trained; None for a folder, or a model that is on no hub.

    A folder with a card that names its own base model, such as the project of an earlier stage, is of that one.
    """
    if not isinstance(name, str) or name in ("", EMBEDDED):
        return None
    folder = Path(name).expanduser()
    if not folder.exists():
        return name if public_name(name) == name else None
    if not (folder / CARD).is_file():
        return None
    above = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.base_model
    return above if isinstance(above, str) and not Path(above).exists() and public_name(above) == above else None


def teacher_in_words(settings: DistillationArguments, *, student: str, listed: TeacherList | None = None) -> str:
    """Describe a run's teacher, or its store of targets, as Markdown.

    Args:
        settings: The run's.
        student: The student's name.
        listed: The teachers of `teacher_config`, if it was read already: of a loaded model it keeps the class alone.
    """
    if settings.teacher_config is not None:
        listed = read_teachers(settings.teacher_config) if listed is None else listed
        names = dict.fromkeys(code(public_name(entry.name)) for entry in listed.of_data)
        return "; ".join(names) + " (mixed)" * listed.mixed
    if settings.teacher_model == "self":
        return f"{code(public_name(student))} itself, its adapter switched off"
    if settings.teacher_model == "ema":
        return f"the exponential moving average of {code(public_name(student))} itself"
    given = settings.teacher_store if settings.teacher_model is None else settings.teacher_model
    return code(public_name(model_name(given)))


def prompts_section(plan: Plan, *, teacher: str) -> str:
    """Return the teachers and prompts of a run, as Markdown.

    Args:
        plan: The run's teachers and prompts.
        teacher: The teacher's name, if there is one teacher.
    """
    entries = () if plan.listed is None else plan.listed.of_data
    parts: list[str] = []
    if plan.writers:
        parts.append("The data's column `teacher` names the model that wrote each completion.")
    elif len({entry.name for entry in entries}) == 1 < len(entries):
        parts.append(f"Teacher: {teacher}, under several templates.")
        for entry in entries:
            parts += [f"In {entry.share:.0%} of the rows:", fenced(template_text(entry.template))]
    elif len(entries) > 1:
        for number, entry in enumerate(entries, 1):
            named = f"Teacher {number}: {code(public_name(entry.name))}, {escaped(entry.rows)}. Its template:"
            parts += [named, fenced(template_text(entry.template))]
    else:
        template = entries[0].template if entries else plan.teacher_template
        parts += [f"Teacher: {teacher}. Its template:", fenced(template_text(template))]
    parts += ["The student's template:", fenced(template_text(plan.student_template))]
    system = plan.teacher_template
    if system.system.keep and not system.has_system and not plan.student_template.system.keep:
        parts.append("If a row has a system message, only the teacher reads it.")
    return "\n\n".join(parts)


def template_text(template: Template) -> str:
    """Return a template as text, its fields in braces."""
    text = [(role, t.render({f: f"{{{f}}}" for f in t.fields})) for role, t in template.messages]
    if template.system.text is not None:
        text = [("system", template.system.text), *text]
    return "\n".join(f"{role}: {t}" if role else t for role, t in text)
