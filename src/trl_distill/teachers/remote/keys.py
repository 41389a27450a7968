"""The key that a server gets: OpenAI's for OpenAI alone, another server's only if a setting names it.

Keys are read from the environment when a request is made, and stored nowhere.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from ...config.endpoints import BASE_URL, KEY, OPENAI_URL, base_url, is_unprotected, same_server
from ...config.server_keys import check_key_variable, key_in
from ...config.setting_names import name_settings
from ...errors import TeacherError

logger = logging.getLogger(__name__)

ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
SHORTEST = 16  # characters of a key to look for in answers: a shorter one may be an ordinary word
_warned: set[str] = set()  # each line once in a process


def openai_url() -> str:
    """Return OpenAI's base URL, or the one that its environment variable names.

    Raises:
        TeacherError: That cannot be used.
    """
    return base_url(os.environ.get(BASE_URL) or OPENAI_URL, setting=BASE_URL)


@dataclass(frozen=True)
class Keys:
    """What identifies the user to one server.

    Args:
        url: Base URL of the server.
        named: The environment variable that a setting names; None is the default.
        role: "teacher" or "judge", which prefixes the setting.

    Raises:
        ParamsError: `named` cannot be the name of an environment variable.
    """

    url: str
    named: str | None
    role: str

    def __post_init__(self) -> None:
        if self.named is not None:
            check_key_variable(self.named, setting=self._setting)

    @property
    def is_openai(self) -> bool:
        """Whether the server is OpenAI, or the one that OPENAI_BASE_URL names."""
        try:
            named = openai_url()
        except TeacherError:  # of a variable that this server does not depend on
            named = OPENAI_URL
        return same_server(self.url, OPENAI_URL) or same_server(self.url, named)

    @property
    def variable(self) -> str | None:
        """The environment variable whose key is sent; None if none is."""
        return self.named or (KEY if self.is_openai else None)

    @property
    def key(self) -> str:
        """The key that is sent; empty if none is.

        Raises:
            TeacherError: See `key_in`.
        """
        if self.variable is None:
            return ""
        return key_in(self.variable, setting=None if self.named is None else self._setting)

    def headers(self) -> dict[str, str]:
        """Return the headers of requests, and warn once of what the user may not expect.

        Raises:
            TeacherError: See `key`.
        """
        key = self.key
        if key and is_unprotected(self.url):
            _warn_once(
                f"the key in {self.variable} is sent to {self.url} over http, where others can read it on its way; use "
                "https, or a tunnel to this machine."
            )
        if self.variable is None and os.environ.get(KEY, "").strip():
            _warn_once(
                f"{KEY} is not sent to {self.url}, which is not OpenAI; if that server needs a key, name its "
                f"environment variable with --{self.role}-key-env."
            )
        account = {name: os.environ.get(variable, "").strip() for name, variable in ACCOUNT.items()}
        sent = {"Authorization": f"Bearer {key}" if key else "", **(account if self.is_openai else {})}
        return {name: value for name, value in sent.items() if value}

    def hidden(self, text: str) -> str:
        """Return a text without the key, and without OpenAI's."""
        for key in {os.environ.get(variable, "").strip() for variable in (self.variable, KEY) if variable}:
            text = text.replace(key, "***") if key else text
        return text

    def repeated_in(self, *texts: str | None) -> bool:
        """Whether a text holds the key, as an answer might in order to have it published."""
        key = self.key
        return len(key) >= SHORTEST and any(key in text for text in texts if text)

    @property
    def advice(self) -> str:
        """What to do if the server does not accept the key."""
        if self.variable is not None:
            return f"set the environment variable {self.variable} to a key that it knows"
        return f"put its key in an environment variable, and name that with --{self.role}-key-env"

    @property
    def _setting(self) -> str:
        return f"{self.role}_key_env"


def _warn_once(line: str) -> None:
    if line not in _warned:
        _warned.add(line)
        logger.warning(name_settings(line))
