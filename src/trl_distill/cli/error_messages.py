"""Command errors: one sentence on stderr and an exit code."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..data.folder_lock import is_main_rank
from ..errors import DistillError, RunInterrupted, printable, shortened, without_secrets
from ..runs.stop_signals import Stopped, exit_code_of

LONGEST = 380  # characters of an unexpected error's text


@contextmanager
def exit_on_error(*, debug: bool) -> Iterator[None]:
    """Turn an error raised inside into one sentence on stderr and its exit code: 1, 2, or a signal's.

    Args:
        debug: Show the traceback too.
    """
    try:
        yield
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        raise
    except click.UsageError as error:  # click prints it, with the usage
        said = without_secrets(printable(error.format_message()))
        raise click.UsageError(shortened(said), error.ctx) from None
    except click.ClickException:
        raise
    except RunInterrupted as stop:
        _exit(str(stop), stop.exit_code, debug=debug, says=is_main_rank())
    except DistillError as error:
        _exit(str(error), error.exit_code, debug=debug)
    except KeyboardInterrupt as stop:  # Python's own has neither text nor number
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        _exit(str(stop) or "interrupted.", exit_code_of(number), debug=debug, says=is_main_rank())
    except Exception as error:
        hint = "" if debug else " Run again with --debug for the traceback."
        text = _line(str(error))[:LONGEST].rstrip(".")
        _exit(f"{type(error).__name__}{': ' + text if text else ''}.{hint}", 1, debug=debug)


def _exit(sentence: str, code: int, *, debug: bool, says: bool = True) -> None:
    if not says:  # the first of several processes does
        raise click.exceptions.Exit(code) from None
    if debug:
        click.echo(printable(without_secrets(traceback.format_exc())), err=True, nl=False)
    click.echo(printable(f"aitraining: error: {without_secrets(_line(sentence))}"), err=True)
    raise click.exceptions.Exit(code) from None


def _line(text: str) -> str:
    return " ".join(text.split())
