"""The command line, with click: parse, call, print. One file per command; none imports torch before it runs."""

from __future__ import annotations

import click

from .evaluate_command import evaluate
from .export_command import export
from .llm_command import llm
from .teach_command import teach

__all__ = ["main"]

EPILOG = "Exit codes: 0 done, 1 failed while running, 2 invalid command or settings, 130 interrupted."


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trl-distill", message="trl-distill %(version)s")
def main() -> None:
    """Prompt distillation and knowledge distillation for language models, on TRL."""


main.add_command(llm)
main.add_command(teach)
main.add_command(evaluate)
main.add_command(export)
