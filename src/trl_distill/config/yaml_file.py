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
    from yaml import SafeLoader

MOST_VALUES = 100_000  # with each alias counted as what it stands for
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
    """Return PyYAML's safe loader without its surprising numbers and dates, with limits."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses aliases that multiply, values that contain themselves, and keys that are given twice."""

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None:
                _count(node, {})
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.MarkedYAMLError(
                            problem=f"the key {quoted(key.value)} is given twice", problem_mark=key.start_mark
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    def _count(node: Any, known: dict[int, int | None]) -> int:
        """Return the number of values that a node stands for."""
        if id(node) in known:
            found = known[id(node)]
            if found is None:
                raise yaml.MarkedYAMLError(problem="a value that contains itself", problem_mark=node.start_mark)
            return found
        known[id(node)] = None
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        total = 1 + sum(_count(part, known) for pair in pairs for part in pair)
        if total > MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MOST_VALUES:,} values, aliases included", problem_mark=node.start_mark
            )
        known[id(node)] = total
        return total

    others = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in others]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return Loader
