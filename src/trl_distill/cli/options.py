r"""Flags made from the fields of a dataclass, and help that shows them under headings.

A value stays the text that was typed; the field converts and checks it. Only `\n` and `\t` are replaced here, in the
fields that allow it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..config.setting_names import flag_of
from ..prompts.template import is_file_name, messages_in

# width of a help line's first column; a longer flag has its description on the next line
FIRST_COLUMN = 33
HELP_ALL = "help_all"
_ESCAPE = re.compile(r"\\(\\|n|t)")


class Setting(click.Option):
    """A flag with its heading and its first column in `--help`.

    Args:
        decls: The flags, the one that `--help` shows first.
        heading: Heading in `--help`.
        shown: The flag with its value, as `--help` shows it.
        choices: Values that a shell completes; the field checks the value.
        **more: See `click.Option`.
    """

    def __init__(
        self, decls: Sequence[str], *, heading: str, shown: str, choices: Sequence[str] = (), **more: Any
    ) -> None:
        super().__init__(decls, **more)
        self.heading, self.shown, self.choices = heading, shown, choices

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the two columns of the help line."""
        return None if self.hidden else (self.shown, self.help or "")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the choices that begin with what was typed; without choices the shell completes files."""
        if not self.choices:
            return complete_files(ctx, self, incomplete)
        return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]


class GroupedCommand(click.Command):
    """A command whose help lists its flags under headings, those of the first heading first.

    Args:
        *args: See `click.Command`.
        short: Parameters that `--help` shows; the others are shown by `--help-all`. Empty: `--help` shows all.
        **more: See `click.Command`.
    """

    def __init__(self, *args: Any, short: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.short = (*short, HELP_ALL) if short else ()
        if short:
            self.params.append(_help_all())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags; the first column is as wide under every heading."""
        headings: dict[str, list[tuple[str, str]]] = {"Basic": []}
        wanted = () if ctx.meta.get(HELP_ALL) else self.short
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and (not wanted or param.name in wanted):
                headings.setdefault(getattr(param, "heading", "Basic"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                for shown, text in records:
                    _write_option(formatter, shown, text)


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete the name of a file or folder."""
    return [CompletionItem(incomplete, type="file")]


def _help_all() -> Setting:
    """Return the flag that shows the help with all flags."""

    def show(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
        if asked and not ctx.resilient_parsing:
            ctx.meta[HELP_ALL] = True
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()

    return Setting(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        heading="Basic",
        shown="--help-all",
        help="Show all flags.",
    )


def _write_option(formatter: click.HelpFormatter, shown: str, text: str) -> None:
    """Write one help line; click would break flags in the text at their dashes."""
    indent = " " * formatter.current_indent
    column = " " * (len(indent) + FIRST_COLUMN)
    lines = textwrap.wrap(text, max(formatter.width - len(column), 20), break_on_hyphens=False)
    if len(shown) + 2 <= FIRST_COLUMN and lines:
        formatter.write(f"{indent}{shown:{FIRST_COLUMN}}{lines.pop(0)}\n")
    else:
        formatter.write(f"{indent}{shown}\n")
    for line in lines:
        formatter.write(f"{column}{line}\n")


def options_of(specs: Iterable[Field[Any]], aliases: Mapping[str, str]) -> list[click.Parameter]:
    """Return one flag for each field.

    Args:
        specs: Fields made by `fields.option`.
        aliases: Other names of fields; each is a flag too.
    """
    return [_option(spec, [other for other, name in aliases.items() if name == spec.name]) for spec in specs]


def dashed(token: str) -> str:
    """Return a flag with dashes for underscores, which AutoTrain and TRL write."""
    return token.replace("_", "-")


def unescaped(text: str) -> str:
    r"""Return a text with `\n` and `\t` as newline and tab, and two backslashes as one, as typed in a shell.

    The name of a file is left as it is, and so are chat messages as JSON, which has escapes of its own.
    """
    if text.startswith("@") or messages_in(text) is not None or is_file_name(text):
        return text
    return _ESCAPE.sub(lambda match: {"n": "\n", "t": "\t"}.get(match[1], "\\"), text)


def _option(spec: Field[Any], others: Sequence[str]) -> Setting:
    flags = [flag_of(name) for name in (spec.name, *others)]
    help, heading = _help(spec, flags[1:]), spec.metadata["help"].group
    if "bool" not in str(spec.type):
        shown = f"{flags[0]} {_metavar(spec)}"
        several = "list" in str(spec.type)
        choices = spec.metadata.get("choices") or ()
        return Setting(
            [spec.name, *flags], type=str, multiple=several, help=help, heading=heading, shown=shown, choices=choices
        )
    shown = flags[0]
    if not spec.default:  # no flag turns off a switch that is on by default
        shown = f"--[no-]{flags[0][2:]}"
        flags = [f"{flag}/--no-{flag[2:]}" for flag in flags]
    return Setting([spec.name, *flags], is_flag=True, default=None, help=help, heading=heading, shown=shown)


def _help(spec: Field[Any], others: Sequence[str]) -> str:
    """Return the help text with choices, default and other flags in brackets."""
    more = []
    if spec.metadata.get("choices"):
        more.append("one of " + ", ".join(spec.metadata["choices"]))
    if spec.default is not None and not isinstance(spec.default, bool):
        more.append(f"default: {spec.default:g}" if isinstance(spec.default, float) else f"default: {spec.default}")
    if others:
        more.append("also " + ", ".join(others))
    return str(spec.metadata["help"]) + (f"  [{'; '.join(more)}]" if more else "")


def _metavar(spec: Field[Any]) -> str:
    return next((word for kind, word in (("int", "INT"), ("float", "NUMBER")) if kind in str(spec.type)), "TEXT")
