"""How a command ends when something is wrong: one sentence on stderr and an exit code."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..errors import DistillError

LONGEST = 600
# small letters and underscores alone are a name, such as hf_deepspeed_config
_TOKEN = re.compile(r"\b(hf_(?=[\w-]*[A-Z0-9])|sk-)[\w-]{10,}")


@contextmanager
def told_in_a_sentence(*, debug: bool) -> Iterator[None]:
    """End the command with a sentence and an exit code for whatever is raised inside; 1, 2 or 130.

    Args:
        debug: Show the traceback too.
    """
    try:
        yield
    except click.exceptions.Exit:
        raise
    except click.ClickException:
        raise  # click tells it, with the usage
    except DistillError as error:
        _end(str(error), error.exit_code, debug=debug)
    except KeyboardInterrupt as stop:
        _end(str(stop) or "interrupted.", 130, debug=debug)  # Python's own has no text
    except Exception as error:
        hint = "" if debug else " Run again with --debug for the traceback."
        text = _line(str(error))[:LONGEST].rstrip(".")
        _end(f"{type(error).__name__}{': ' + text if text else ''}.{hint}", 1, debug=debug)


def without_secrets(text: str) -> str:
    """Return a text in which anything that looks like an access token is cut to its first letters."""
    return _TOKEN.sub(lambda found: found[1] + "***", text)


def _end(sentence: str, code: int, *, debug: bool) -> None:
    """Print and leave."""
    if debug:
        click.echo(without_secrets(traceback.format_exc()), err=True, nl=False)
    click.echo(f"aitraining: error: {without_secrets(_line(sentence))}", err=True)
    raise click.exceptions.Exit(code) from None


def _line(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())
