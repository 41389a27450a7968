"""The command line, with click: parse, call, print. One file per command; none imports torch before it runs."""

from __future__ import annotations

from typing import Any

import click

from ..runs.stop_signals import handling_signals
from ..trainer.standard_streams import unbreakable_streams
from .data_command import data
from .error_messages import exit_on_error
from .evaluate_command import evaluate
from .export_command import export
from .llm_command import llm
from .queries_command import queries
from .teach_command import teach
from .tune_command import tune

__all__ = ["main"]

EPILOG = (
    "Exit codes: 0 done, 1 failed while running, 2 invalid command or settings, 130 interrupted (Ctrl-C), 143 ended by "
    "SIGTERM, 129 by SIGHUP."
)


class Main(click.Group):
    """The command, which owns its process: signals, standard streams and exit codes are its own."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run it, and exit."""
        with unbreakable_streams(), handling_signals():
            return super().main(*args, **more)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Parse the arguments; click would end a signal with a code of its own."""
        with exit_on_error(debug=False):
            try:
                return super().make_context(*args, **more)
            except click.NoSuchOption as error:
                if any(error.option_name in param.opts for param in llm.params):
                    where = f"It is one of a command: aitraining llm {error.option_name} ..."
                    raise click.UsageError(f"{error.format_message()} {where}", error.ctx) from None
                raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        with exit_on_error(debug=False):
            return super().invoke(ctx)


@click.group(cls=Main, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trl-distill", message="trl-distill %(version)s")
def main() -> None:
    """Prompt distillation and knowledge distillation for language models, on TRL."""


main.add_command(llm)
main.add_command(data)
main.add_command(queries)
main.add_command(teach)
main.add_command(evaluate)
main.add_command(export)
main.add_command(tune)
