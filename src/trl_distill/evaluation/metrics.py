"""Scores of completions, row by row, from 0 to 100, against a reference or the teacher's completion.

A metric is named on the command line: `exact_match`, `contains`, `json`, `json_valid`, `regex`, `regex:PATTERN`,
`chrf`, or a Python function as `module:name`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from ..config.user_function import function_named
from ..data.words import WORD as ONE_WORD
from ..errors import DataError, ParamsError, UsageError, nearest, quoted

LABELS = {  # as a reader sees them
    "exact_match": "exact match",
    "contains": "contains the reference",
    "json": "JSON fields equal",
    "json_valid": "valid JSON",
    "regex": "regular expression",
    "chrf": "chrF",
}
SHORT = 5  # words of a reference that can be expected letter by letter
WORD = re.compile(rf"{ONE_WORD}|[^\w ]")  # or a mark
PHRASE, TIMES = 2, 3  # the shortest phrase that is a repetition, and how often it is written
FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)

Score = Callable[[str, str], float]


def metric_label(name: str) -> str:
    """Return a metric's name as a reader sees it; one of a user's own is shown as it is."""
    return LABELS.get(name, name)


@dataclass(frozen=True)
class Metric:
    """A score of one completion.

    Attributes:
        name: As `--metric` has it.
        label: As a reader sees it.
        score: Returns 0 to 100 for a completion and a reference.
        check: Raises ValueError with what is wrong with a reference that the metric cannot use; None if it uses any.
        needs_reference: Whether rows without a reference have no score.
    """

    name: str
    label: str
    score: Score
    check: Callable[[str], object] | None = None
    needs_reference: bool = True

    def fault_of(self, reference: str) -> str | None:
        """Return what is wrong with a reference; None if the metric can use it."""
        try:
            if self.check is not None:
                self.check(reference)
        except ValueError as error:
            return str(error)
        return None


def metric_named(name: str) -> Metric:
    """Return the metric of a name.

    Raises:
        ParamsError: There is none, its pattern is no regular expression, or its function cannot be imported.
        UsageError: It is chrF, and sacrebleu is missing.
    """
    if name.startswith("regex:"):
        return _pattern_metric(name)
    if name in _METRICS:
        return _METRICS[name]()
    if ":" in name:
        function = function_named(name, setting="metric", takes=2, of="a completion and a reference")
        return Metric(name, name, partial(_score_of_function, name, function))
    raise ParamsError(
        f"metric {name!r} is unknown; there are {', '.join(_METRICS)}, regex:PATTERN and a function as module:name."
        f"{nearest(name, _METRICS)}"
    )


def default_metric(references: Sequence[str | None] | None) -> str:
    """Return the name of the metric that decides if none is given.

    That is `exact_match` if every reference has at most five words, else `chrf`; so it is without references, when the
    teacher's completions are what the others are compared with.
    """
    given = [reference for reference in references or () if reference is not None]
    return "exact_match" if given and all(_is_short(reference) for reference in given) else "chrf"


def metrics_for(names: Sequence[str], references: Sequence[str | None] | None) -> tuple[Metric, ...]:
    """Return the metrics of an evaluation, the one that decides first, and check what they are compared with.

    Args:
        names: The requested metrics, the deciding one first; empty chooses by `default_metric`. chrF and exact match
            are added, so that each evaluation has them, and to `json` whether it is valid.
        references: Of each row, None for a row without; None altogether compares with the teacher's completions.

    Raises:
        DataError: A metric cannot use a reference; the sentence names the row.
        UsageError, ParamsError: See `metric_named`.
    """
    asked = list(names) or [default_metric(references)]
    if references is None and "regex" in asked:
        raise ParamsError(
            "metric 'regex' takes the pattern from each row's reference, but there are none; name their column, or "
            "give "
            "regex:PATTERN."
        )
    chrf = ["chrf"] if find_spec("sacrebleu") else []  # nobody asked for it: no reason to refuse
    added = [*(["json_valid"] if "json" in asked else []), *chrf, "exact_match"]
    metrics = tuple(metric_named(name) for name in dict.fromkeys([*asked, *added]))
    for metric in metrics:
        for row, reference in enumerate(references or ()):
            fault = None if reference is None else metric.fault_of(reference)
            if fault is not None:
                raise DataError(
                    f"metric {metric.name!r} cannot use the reference of row {row + 1}: {fault}; correct it, or choose "
                    "another metric."
                )
    return metrics


def scores_of(
    metrics: Sequence[Metric], completions: Sequence[str], references: Sequence[str | None]
) -> dict[str, tuple[float, ...]]:
    """Return the scores of each row by metric, 0 to 100; NaN if a metric needs a reference that it can use.

    Args:
        metrics: From `metrics_for`.
        completions: One a row.
        references: One a row: the rows' own, or the teacher's completions.

    Raises:
        ParamsError: A function of the user fails, or returns no number from 0 to 1.
    """
    pairs = list(zip(completions, references, strict=True))
    return {metric.name: tuple(_score(metric, *pair) for pair in pairs) for metric in metrics}


def repeats(completion: str, *, finished: bool) -> bool:
    """Return whether a completion ends in a repetition: a phrase of at least two words, at least three times.

    After the repetition of A. Holtzman et al., "The Curious Case of Neural Text Degeneration" (ICLR 2020), here over
    words, punctuation marks and newlines. A completion that was cut may end in half a word, which is left out.
    """
    words = WORD.findall(completion)
    if not finished:
        words = words[:-1]
    return any(
        all(words[-k] == words[-k - length] for k in range(1, (TIMES - 1) * length + 1))
        for length in range(PHRASE, len(words) // TIMES + 1)
    )


def _score(metric: Metric, completion: str, reference: str | None) -> float:
    if metric.needs_reference and (reference is None or metric.fault_of(reference) is not None):
        return math.nan  # the teacher's completion need not be JSON
    return metric.score(completion, reference or "")


def _is_short(reference: str) -> bool:
    return sum(1 for word in WORD.findall(reference) if word[0].isalnum()) <= SHORT


def _flat(text: str) -> str:
    """Return a text without the white space around it, and with one space for each in it."""
    return " ".join(text.split())


def _exact_match(completion: str, reference: str) -> float:
    """Return 100 for the same text but for white space; case and punctuation count."""
    return 100.0 * (_flat(completion) == _flat(reference))


def _contains(completion: str, reference: str) -> float:
    """Return 100 if the reference stands in the completion, not as a part of a longer ASCII word or number."""
    text = _flat(reference)
    before = r"(?<![A-Za-z0-9])" if re.match("[A-Za-z0-9]", text) else ""
    after = r"(?![A-Za-z0-9])" if re.search("[A-Za-z0-9]$", text) else ""
    return 100.0 * (re.search(before + re.escape(text) + after, _flat(completion)) is not None)


def _check_given(reference: str) -> None:
    if not reference.strip():
        raise ValueError("it is empty")


def _chrf_metric() -> Metric:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise UsageError(
            "metric 'chrf' needs the package sacrebleu; pip install sacrebleu, or choose another metric."
        ) from None
    chrf = CHRF()

    def score(completion: str, reference: str) -> float:
        """Return chrF2 (M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015)."""
        if completion == reference:  # empty ones too
            return 100.0
        return float(chrf.sentence_score(completion, [reference]).score)

    return Metric("chrf", LABELS["chrf"], score)


def _read_json(text: str) -> object:
    """Return the JSON that a text is, a code fence around it left out.

    Raises:
        ValueError: It is none.
    """
    fenced = FENCE.fullmatch(text)
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _fields_equal(completion: str, reference: str) -> float:
    """Return the share of fields, of either, that both have with the same value; nested ones count by themselves."""
    try:
        found = dict(_leaves(_read_json(completion)))
    except ValueError:
        return 0.0
    wanted = dict(_leaves(_read_json(reference)))
    equal = sum(path in found and found[path] == value for path, value in wanted.items())
    return 100.0 * equal / len(wanted.keys() | found.keys())


def _leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], object]]:
    """Yield the path and the value of each field that holds no others; true is not 1, and an empty list is a value."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, (isinstance(value, bool), value)


def _valid_json(completion: str, _reference: str) -> float:
    try:
        _read_json(completion)
    except ValueError:
        return 0.0
    return 100.0


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:  # too large a number, or nested too deeply
        raise ValueError(f"{quoted(pattern)} is not a regular expression ({error})") from None


def _matches_reference(completion: str, reference: str) -> float:
    """Return 100 if the reference, a regular expression, matches somewhere in the completion."""
    return 100.0 * (_compile(reference).search(completion) is not None)


def _pattern_metric(name: str) -> Metric:
    """Return the metric of `regex:PATTERN`.

    Without a group it asks whether the pattern matches somewhere in the completion. With one it compares what the
    group's last match holds with the reference, or with the group's last match there if there is one.
    """
    try:
        pattern = _compile(name.removeprefix("regex:"))
    except ValueError as error:
        raise ParamsError(f"metric {quoted(name)}: {error}; correct the pattern.") from None

    def extracted(text: str) -> str | None:
        found = [match[1] for match in pattern.finditer(text) if match[1] is not None]
        return found[-1] if found else None

    def score(completion: str, reference: str) -> float:
        if not pattern.groups:
            return 100.0 * (pattern.search(completion) is not None)
        found, wanted = extracted(completion), extracted(reference)
        return 0.0 if found is None else _exact_match(found, reference if wanted is None else wanted)

    return Metric(name, name, score, needs_reference=pattern.groups > 0)


def _score_of_function(name: str, function: Callable[..., object], completion: str, reference: str) -> float:
    """Return 100 times what a user's function returns."""
    try:
        value = function(completion, reference)
    except Exception as error:  # whatever a user's function raises
        raise ParamsError(
            f"metric {name!r} fails with {type(error).__name__}: {error}; correct the function."
        ) from error
    try:
        number = math.nan if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if 0 <= number <= 1:
        return 100.0 * number
    raise ParamsError(f"metric {name!r} returns {value!r}; it must return a number from 0 to 1.")


_METRICS: Mapping[str, Callable[[], Metric]] = {
    "exact_match": lambda: Metric("exact_match", LABELS["exact_match"], _exact_match),
    "contains": lambda: Metric("contains", LABELS["contains"], _contains, check=_check_given),
    "json": lambda: Metric("json", LABELS["json"], _fields_equal, check=_read_json),
    "json_valid": lambda: Metric("json_valid", LABELS["json_valid"], _valid_json, needs_reference=False),
    "regex": lambda: Metric("regex", LABELS["regex"], _matches_reference, check=_compile),
    "chrf": _chrf_metric,
}
