"""Read YAML files, with a one-sentence error if they cannot be read.

Values are those of YAML's JSON schema and the truth values of YAML 1.1: `1_000`, `0x10`, `010`, `1:30` and
`2026-01-31` are text, which the setting's own check then judges.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import ParamsError, quoted
from .user_files import read_small_text, user_path

if TYPE_CHECKING:
    from yaml import Node, SafeLoader

MOST_VALUES = 100_000  # with each alias counted as what it stands for
MERGE = "tag:yaml.org,2002:merge"  # of the key <<, which may be given twice
DIGITS = 4000  # Python converts no longer text to a whole number
_INT = re.compile(rf"[-+]?(?:0|[1-9][0-9]{{0,{DIGITS}}})\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)


def read_yaml(path: str | os.PathLike[str], *, name: str) -> Any:
    """Return the content of a YAML file.

    Args:
        path: Path of the file.
        name: Its name in messages.

    Raises:
        ParamsError: It cannot be read, is not YAML, names a key twice, or has more than `MOST_VALUES` values.
    """
    import yaml

    place = user_path(path, name=name)
    try:
        text, loader = read_small_text(place), _loader()
        return yaml.load(text, Loader=loader)  # nosec B506  # a safe loader
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ParamsError(f"{name} cannot be read: {reason}; give a YAML file.") from None
    except RecursionError:
        raise ParamsError(f"{name} is nested too deeply; give 'name: value' lines.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "error"
        raise ParamsError(f"{name} is not YAML: {problem}{line}.") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # for example `!!int x`
        raise ParamsError(f"{name} has a value that is not of its tag's type ({quoted(str(error))}).") from None


@cache
def _loader() -> type[SafeLoader]:
    """Return PyYAML's safe loader without its surprising numbers and dates, which refuses what `_count` does."""
    import yaml

    class Loader(yaml.SafeLoader):
        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None:
                _count(node, {})
            return node

    others = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in others]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return Loader


def _count(node: Node, known: dict[int, int | None]) -> int:
    """Return the number of values that a node stands for.

    Raises:
        MarkedYAMLError: Aliases multiply them, a value contains itself, or a key is given twice.
    """
    import yaml

    def refusal(problem: str, at: Node) -> Exception:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)

    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise refusal("a value that contains itself", node)
        return found
    known[id(node)] = None
    parts = list(node.value) if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, _ in parts:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in names:
                    raise refusal(f"the key {quoted(key.value)} is given twice", key)
                names.add(key.value)
        parts = [part for pair in parts for part in pair]
    total = 1 + sum(_count(part, known) for part in parts)
    if total > MOST_VALUES:
        raise refusal(f"more than {MOST_VALUES:,} values, aliases included", node)
    known[id(node)] = total
    return total
