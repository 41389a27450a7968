"""Write the table of chat templates into docs/chat_templates.md: `python docs/chat_templates.py`."""

from __future__ import annotations

import html
import logging
import sys
import warnings
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
sys.path.append(str(PAGE.parent.parent / "tests"))
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def cell(tokenizer: object, form: str) -> str:
    """Return what is learned of a form of conversation, beside what SFTTrainer learns of it."""
    from every_template import ours, row_of, trls

    mine = ours(tokenizer, form)
    if mine.refused:
        return "refused"
    left_out = mine.opening.pop("left_out", None)
    theirs = trls(tokenizer, form, mine.opening, row_of(form))
    notes = [f"`{name}={str(value).lower()}`" for name, value in mine.opening.items()]
    notes += [f"prompt without `{left_out!r}`"] if left_out is not None else []
    if theirs.refused:
        return "each turn as rendered (SFTTrainer refuses)"
    added = tokenizer.decode(mine.ids[len(theirs.ids) :])  # type: ignore[attr-defined]
    if (mine.prompt, mine.ids) == (theirs.prompt, theirs.ids):
        return ", ".join(["equal", *notes])
    if (mine.prompt, mine.ids[: len(theirs.ids)]) == (theirs.prompt, theirs.ids):
        return ", ".join([f"equal, and {_code(added)} behind it", *notes])
    return ", ".join(["one thinking block", *notes])


def _code(text: str) -> str:
    """Return a text as code that may have a bar, which would end a cell of the table."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def main() -> None:
    """Measure every template and write the table."""
    import datasets
    from every_template import FORMS, NAMES, tokenizer_of
    from trl import __version__

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    rows = [f"TRL {__version__}.\n", f"| template | {' | '.join(FORMS)} |", "|---" * (len(FORMS) + 1) + "|"]
    for name in NAMES:
        tokenizer = tokenizer_of(name)
        rows.append(f"| {name} | {' | '.join(cell(tokenizer, form) for form in FORMS)} |")
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(head + BEGIN + "\n".join(rows) + "\n" + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
