"""Names of teachers behind HTTP servers: `openai:MODEL`, OpenAI's own bare names, `http(s)://host:port/v1#model`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import ParamsError, TeacherError

KEY, BASE_URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"  # environment variables
OPENAI_URL = "https://api.openai.com/v1"
PREFIX = "openai:"
# OpenAI's own models: gpt-3.5-turbo, gpt-4o, chatgpt-4o-latest; o1, o4-mini; code-davinci-002, text-davinci-003. Not
# gpt2, gpt-neo-1.3B or gpt-oss-20b, which are weights
OPENAI_NAME = re.compile(r"((gpt-\d|chatgpt-|(code|text)-davinci-)[\w.:-]*|o\d+(-[\w.:-]*)?)")
# those of them that think before they answer take no temperature
REASONING_NAME = re.compile(r"(o\d|gpt-[5-9](?!.*chat))[\w.:-]*")


@dataclass(frozen=True)
class Endpoint:
    """A model on a server.

    Attributes:
        model: The model's name there.
        url: Base URL of the server, without credentials; None is OpenAI's.
    """

    model: str
    url: str | None = None


def parse_endpoint(name: str, *, setting: str = "teacher_model") -> Endpoint | None:
    """Return the server and model that the name in a setting spells out; None for a folder, a Hub or a bare name.

    Raises:
        TeacherError: A URL with credentials or a query (it is not repeated), or one without a host or a model.
    """
    if name.startswith(PREFIX):
        model = name[len(PREFIX) :].strip()
        if not model:
            raise TeacherError(f"{setting} 'openai:' names no model; write for example openai:gpt-4o-mini.")
        return Endpoint(model)
    if not re.match(r"https?://", name, re.IGNORECASE):
        return None
    address, _, model = name.partition("#")
    if "@" in address or "?" in address:
        raise TeacherError(
            f"{setting} is a URL with credentials or a query, which would be written to logs and files; leave them "
            f"out, and {_key_advice(setting)}."
        )
    if not model.strip():
        raise TeacherError(f"{setting} {name!r} names no model; add it after a '#': {address}#MODEL.")
    return Endpoint(model.strip(), base_url(address, setting=setting))


def is_openai_name(name: str) -> bool:
    """Whether a bare name is one of OpenAI's models; a local folder of this name goes first."""
    return OPENAI_NAME.fullmatch(name) is not None


def takes_temperature(model: str) -> bool:
    """Whether a model of this name accepts a temperature; OpenAI's reasoning models reject it."""
    return REASONING_NAME.fullmatch(model) is None


def base_url(address: str, *, setting: str) -> str:
    """Return a base URL in one spelling: scheme and host in lower case, no slash at the end.

    Raises:
        TeacherError: It has credentials or a query (it is not repeated), or no host.
    """
    if "@" in address or "?" in address:
        raise TeacherError(
            f"{setting} is a URL with credentials or a query; leave them out, and {_key_advice(setting)}."
        )
    try:
        parts = urlsplit(address)
        there = bool(parts.hostname) and parts.port != 0
    except ValueError:
        there = False
    if not there or parts.scheme.lower() not in ("http", "https"):
        raise TeacherError(f"{setting} {address!r} is not the URL of a server; write http://host:port/v1.")
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def endpoint_of(name: str, *, setting: str = "teacher_model") -> Endpoint | None:
    """Return the server that the name in a setting means; None for a folder or a model of the Hub.

    A bare name is a local folder if there is one, else an OpenAI model if it looks like one.

    Raises:
        TeacherError: See `parse_endpoint`.
    """
    endpoint = parse_endpoint(name, setting=setting)
    if endpoint is None and is_openai_name(name) and not Path(name).is_dir():
        return Endpoint(name)
    return endpoint


def judge_endpoint(name: str) -> Endpoint:
    """Return the server of a judge.

    Raises:
        ParamsError: The name is that of no server.
        TeacherError: See `parse_endpoint`.
    """
    endpoint = endpoint_of(name, setting="judge")
    if endpoint is None:
        raise ParamsError(
            f"judge {name!r} is not a model on a server; write openai:MODEL or http://host:port/v1#MODEL."
        )
    return endpoint


def same_server(url: str, other: str) -> bool:
    """Whether two base URLs are of one server: scheme, host and port are the same."""
    return _origin(url) == _origin(other)


def is_unprotected(url: str) -> bool:
    """Whether what is sent to a base URL can be read on its way: over http, to another machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
        here = address.is_loopback or address.is_unspecified
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    return parts.scheme == "http" and not here


def _key_advice(setting: str) -> str:
    if setting == BASE_URL:
        return f"set the environment variable {KEY}"
    flag = "--judge-key-env" if setting == "judge" else "--teacher-key-env"
    return f"name the environment variable with the key by {flag}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
