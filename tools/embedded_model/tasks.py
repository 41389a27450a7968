"""Makes the instruction-following examples that the embedded model is trained and measured on.

A task is an instruction in plain English (a routing policy, a word list, an operation, a form to write in) drawn
anew for every example, so that the right completion can only be found by reading the prompt. Inputs are split
by a hash of their text: a held-out input is in no training example, whatever its instruction. All randomness
comes from the `random.Random` that is passed in. Standard library only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .words import CITIES, CLOSINGS, CODAS, DAYS, FRAMES, NAMES, ONSETS, OPENINGS, TEAMS, TOPICS, VOWELS, WORDS

HELD_OUT_SHARE = 8  # one input in so many is held out


@dataclass(frozen=True)
class Task:
    """An instruction and a way to draw inputs for it.

    Attributes:
        instruction: What the prompt says before the input.
        sample: Draws an (input, completion) pair.
        cues: The words before the input and before the completion, for example ("Message", "Team").
        ask: The line that asks, with {input} in it, where it is not made from the cues.
        whole: Whether the instruction belongs to the input when inputs are split, as the input is a single word: a
            word that is never asked for in training would be one that the model learns never to answer.
    """

    instruction: str
    sample: Callable[[Random], tuple[str, str]]
    cues: tuple[str, str] = ("Input", "Answer")
    ask: str | None = None
    whole: bool = False


@dataclass(frozen=True)
class Example:
    """One instruction followed one or more times.

    Attributes:
        kind: One of `KINDS`.
        turns: (prompt, completion) pairs; the first prompt holds the instruction, later ones an input alone.
        inputs: The bare input of each turn, as it counts when inputs are split.
    """

    kind: str
    turns: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The first turn's prompt: instruction, input and the words that ask for the completion."""
        return self.turns[0][0]

    @property
    def completion(self) -> str:
        """The first turn's completion."""
        return self.turns[0][1]


def is_held_out(text: str) -> bool:
    """Return whether an input is kept out of training: one in `HELD_OUT_SHARE`, by a hash of its text."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def make_example(
    rng: Random, *, kind: str | None = None, held_out: bool = False, turns: int = 1, level: float = 1.0
) -> Example:
    """Draw one example.

    Args:
        rng: Where all randomness comes from.
        kind: One of `KINDS`; None draws one.
        held_out: Whether the inputs come from the held-out part or from the training part.
        turns: Inputs under the one instruction.
        level: From 0 (shortest lists) to 1 (longest): how much the instruction lists.
    """
    kind = kind or rng.choices(tuple(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
    while True:
        task = KINDS[kind][0](rng, level)
        pairs = _draw(rng, task, held_out, turns)
        if len(pairs) == turns:
            break  # a short word list may have no input in the wanted part: then another task is drawn
    first, later = _layout(rng, task)
    parts = [((later if i else first).replace("{input}", text), done) for i, (text, done) in enumerate(pairs)]
    return Example(kind, tuple(parts), tuple(_unit(task, text) for text, _ in pairs))


def _draw(rng: Random, task: Task, held_out: bool, turns: int) -> list[tuple[str, str]]:
    """Return up to `turns` (input, completion) pairs from one part of the inputs."""
    pairs: list[tuple[str, str]] = []
    for _ in range(20 * HELD_OUT_SHARE * turns):
        text, completion = task.sample(rng)
        if is_held_out(_unit(task, text)) == held_out:
            pairs.append((text, completion))
        if len(pairs) == turns:
            break
    return pairs


def _unit(task: Task, text: str) -> str:
    """Return what is either in training or held out."""
    return f"{task.instruction}\n{text}" if task.whole else text


def make_message(rng: Random, topic: str) -> str:
    """Return a short message to a support desk that names `topic` once."""
    parts = [rng.choice(OPENINGS) if rng.random() < 0.6 else "", rng.choice(FRAMES), rng.choice(CLOSINGS)]
    text = " ".join(part for part in parts if part)
    fields = {"name": NAMES, "city": CITIES, "day": DAYS}
    while "{" in text:
        for field, values in fields.items():
            text = text.replace(f"{{{field}}}", rng.choice(values), 1)
        text = text.replace("{number}", str(rng.randint(2, 9999)), 1).replace("{topic}", topic, 1)
    return text


def _layout(rng: Random, task: Task) -> tuple[str, str]:
    """Return the first prompt and the prompt of later turns, both with {input} where the input belongs."""
    if task.ask is not None:
        return f"{task.instruction}\n{task.ask}", f"\n{task.ask}"
    given, wanted = task.cues
    style = rng.randrange(5)
    if style == 0:  # what the chat template renders
        return f"System: {task.instruction}\nUser: {{input}}\nAssistant:", "\nUser: {input}\nAssistant:"
    if style == 1:
        wanted = "Answer"
    if style == 2:
        return f"{task.instruction}\n\n{{input}}\n\n{wanted}:", f"\n\n{{input}}\n\n{wanted}:"
    gap = "\n\n" if rng.random() < 0.5 else "\n"
    ask = f"{given}: {{input}}\n{wanted}:"
    return task.instruction + gap + ask, gap + ask


def _size(rng: Random, low: int, high: int, level: float) -> int:
    """Return a length from low to high, the upper end scaled by the level."""
    return rng.randint(low, max(low, low + round((high - low) * level)))


def _pseudo_word(rng: Random) -> str:
    """Return a made-up word of two syllables."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(2))


def _pseudo_words(rng: Random, count: int) -> list[str]:
    """Return different made-up words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[_pseudo_word(rng)] = None
    return list(found)


def _listing(words: list[str]) -> str:
    """Return "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


_WRAPS = (("[", "]"), ("(", ")"), ("<", ">"), ("*", "*"), ('"', '"'), ("<<", ">>"), ("#", "#"), ("=", "="))
_SEPARATORS = (" / ", " - ", ": ", ", ", " | ", " -> ", " + ", "; ", " for ", " about ")
_LEADS = ("Team: ", "To ", "Forward to ", "Result: ", "Send to ", "Note: ", "Done: ", "Goes to ")


def _form(rng: Random) -> str:
    """Return a pattern of the words TEAM and, often, TOPIC, which the completion is to follow."""
    team = "TEAM"
    if rng.random() < 0.5:
        left, right = rng.choice(_WRAPS)
        team = f"{left}{team}{right}"
    if rng.random() < 0.6:
        parts = [team, "TOPIC"] if rng.random() < 0.7 else ["TOPIC", team]
        team = (" " if team != "TEAM" and rng.random() < 0.3 else rng.choice(_SEPARATORS)).join(parts)
    return (rng.choice(_LEADS) if rng.random() < 0.4 else "") + team


def _route_form(rng: Random) -> tuple[str, str]:
    """Return the sentence that asks for a form, and the form with TEAM and TOPIC in it."""
    kind = rng.random()
    if kind < 0.3:
        plain = (
            "Answer with the name of the team.",
            "Write only the team.",
            "Which team is it?",
            "Reply with the team and nothing else.",
        )
        return rng.choice(plain), "TEAM"
    if kind < 0.45:
        one = ("Answer in JSON with the key team.", "Reply with a JSON object that has the key team.")
        if rng.random() < 0.5:
            return rng.choice(one), '{"team": "TEAM"}'
        two = ("Answer in JSON with the keys team and topic.", "Reply with JSON: the keys are team and topic.")
        return rng.choice(two), '{"team": "TEAM", "topic": "TOPIC"}'
    if kind < 0.6:
        choices = (
            ("Write the team in square brackets, then the topic.", "[TEAM] TOPIC"),
            ("Write the team in square brackets.", "[TEAM]"),
            ("Write the topic, then the team in brackets.", "TOPIC (TEAM)"),
            ("Write the team, a slash and the topic.", "TEAM / TOPIC"),
            ("Write the team, a colon and the topic.", "TEAM: TOPIC"),
            ("Write the team and then the topic.", "TEAM TOPIC"),
        )
        return rng.choice(choices)
    form = _form(rng)
    asks = ("Answer in the form {form}", "Use this form: {form}", "Write it like this: {form}", "Form: {form}")
    return rng.choice(asks).replace("{form}", form), form


def _policy(rng: Random, team_of: dict[str, str], default: str | None) -> str:
    """Return the text that says which topic belongs to which team, by topic or grouped by team."""
    groups: dict[str, list[str]] = {}
    for topic, team in team_of.items():
        groups.setdefault(team, []).append(topic)
    style = rng.randrange(6)
    if style == 0:
        lines = [f"- {topic}: {team}" for topic, team in team_of.items()]
    elif style == 1:
        lines = [f"{topic} -> {team}" for topic, team in team_of.items()]
    elif style == 2:
        lines = [f"A message about {topic} goes to {team}." for topic, team in team_of.items()]
    elif style == 3:
        lines = [f"- {team}: {', '.join(topics)}" for team, topics in groups.items()]
    elif style == 4:
        lines = [f"- {', '.join(topics)}: {team}" for team, topics in groups.items()]
    else:
        verb = rng.choice(("looks after", "answers questions about", "takes", "is responsible for"))
        lines = [f"{team} {verb} {_listing(topics)}." for team, topics in groups.items()]
    if default is not None:
        rests = ("Everything else goes to {team}.", "Anything else: {team}", "All other messages go to {team}.")
        lines.append(("- " if lines[0].startswith("-") else "") + rng.choice(rests).format(team=default))
    return (" " if style in (2, 5) and rng.random() < 0.4 else "\n").join(lines)


def route(rng: Random, level: float) -> Task:
    """A routing policy: topics and the team each belongs to, and the form of the completion."""
    count = _size(rng, 2, 16, level)
    topics = rng.sample(TOPICS if rng.random() < 0.8 else WORDS, count)
    wanted = max(2, min(count, rng.choice((count, count // 2, count // 3))))
    made_up = rng.random() < 0.1
    teams = [w.title() for w in _pseudo_words(rng, wanted + 1)] if made_up else rng.sample(TEAMS, wanted + 1)
    chosen = teams[:-1] + [rng.choice(teams[:-1]) for _ in range(count - wanted)]
    rng.shuffle(chosen)
    team_of = dict(zip(topics, chosen, strict=True))
    default = teams[-1] if rng.random() < 0.25 else None
    ask, form = _route_form(rng)
    intros = (
        "You work at a support desk. Read the message and send it to the right team.",
        "Decide which team should answer the message.",
        "Route each message to a team by its topic.",
        "Every message has one topic. Find the team that looks after it.",
        "You sort the mail of a company. These are the rules:",
        "Rules:",
    )
    parts = [rng.choice(intros), _policy(rng, team_of, default), ask]
    if rng.random() < 0.3:
        parts = [parts[0], ask, parts[1]]
    others = [t for t in TOPICS if t not in team_of]

    def sample(draw: Random) -> tuple[str, str]:
        unlisted = default is not None and draw.random() < 0.25
        topic = draw.choice(others if unlisted else topics)
        team = default if unlisted and default else team_of[topic]
        return make_message(draw, topic), form.replace("TEAM", team).replace("TOPIC", topic)

    return Task("\n".join(parts), sample, (rng.choice(("Message", "Mail", "Text", "Input")), "Team"))


_PAIRS = (
    ("{a} = {b}", ", "),
    ("{a} = {b}", "\n"),
    ("{a} -> {b}", "\n"),
    ("- {a}: {b}", "\n"),
    ("{a} is {b}", ", "),
    ("{a} means {b}.", " "),
)


def lookup(rng: Random, level: float) -> Task:
    """A list of pairs: the left half of one is given, the right half is the completion. The simplest of all."""
    count = _size(rng, 2, 10, level)
    left = rng.sample(rng.choice((WORDS, TOPICS)), count)
    right = rng.sample(rng.choice((WORDS, TEAMS, TEAMS, NAMES)), count)
    if rng.random() < 0.1:
        right = _pseudo_words(rng, count)
    table = dict(zip(left, right, strict=True))
    pattern, joint = rng.choice(_PAIRS)
    listed = joint.join(pattern.format(a=a, b=b) for a, b in table.items())
    ask = pattern.replace("{a}", "{input}").split(" {b}")[0]

    def sample(draw: Random) -> tuple[str, str]:
        word = draw.choice(left)
        return word, table[word]

    return Task(listed, sample, ask=ask, whole=True)


def translate(rng: Random, level: float) -> Task:
    """A word list: each word of the input is replaced by the word that the prompt gives for it."""
    count = _size(rng, 2, 12, level)
    words = rng.sample(WORDS, 2 * count)
    sources, targets = words[:count], words[count:]
    if rng.random() < 0.1:
        targets = _pseudo_words(rng, count)
    table = dict(zip(sources, targets, strict=True))
    pattern, joint = rng.choice(_PAIRS)
    listed = joint.join(pattern.format(a=a, b=b) for a, b in table.items())
    intros = (
        "Translate the words with this list:",
        "Replace every word by its code word:",
        "This is a secret language. Translate the text.",
        "Use the dictionary to translate each word.",
        "Write the code for each word of the text.",
    )
    longest = _size(rng, 2, 5, level)
    template = _wrap_rule(rng) if rng.random() < 0.2 else ("", "TEXT")

    def sample(draw: Random) -> tuple[str, str]:
        chosen = [draw.choice(sources) for _ in range(draw.randint(2, longest))]
        result = " ".join(table[word] for word in chosen)
        return " ".join(chosen), template[1].replace("TEXT", result)

    instruction = f"{rng.choice(intros)}\n{listed}" + (f"\n{template[0]}" if template[0] else "")
    return Task(instruction, sample, (rng.choice(("Text", "Words", "Input")), "Translation"))


_EDITS: tuple[tuple[tuple[str, ...], Callable[[list[str]], str]], ...] = (
    (("Write the text in capital letters.", "Turn the words into upper case."), lambda w: " ".join(w).upper()),
    (("Reverse the order of the words.", "Write the words from last to first."), lambda w: " ".join(w[::-1])),
    (("Write only the first word.", "What is the first word?"), lambda w: w[0]),
    (("Write only the last word.", "What is the last word?"), lambda w: w[-1]),
    (("Write only the second word.", "What is the second word?"), lambda w: w[1]),
    (("Leave out the first word.", "Remove the first word."), lambda w: " ".join(w[1:])),
    (("Leave out the last word.", "Remove the last word."), lambda w: " ".join(w[:-1])),
    (("Repeat the text twice.", "Write the text two times."), lambda w: " ".join(w + w)),
    (("Write every word twice.", "Double each word."), lambda w: " ".join(f"{x} {x}" for x in w)),
    (("Swap the first and the last word.", "Exchange the first and last words."),
     lambda w: " ".join([w[-1], *w[1:-1], w[0]])),
    (("Put a comma between the words.", "Separate the words by commas."), lambda w: ", ".join(w)),
    (("Put a slash between the words.", "Separate the words by slashes."), lambda w: " / ".join(w)),
    (("How many words are there?", "Count the words."), lambda w: str(len(w))),
    (("Copy the text.", "Repeat the text as it is."), " ".join),
)  # fmt: skip


def edit(rng: Random, level: float) -> Task:
    """An operation on the words of the input, at times with a form to write the result in."""
    asks, operation = rng.choice(_EDITS)
    longest = _size(rng, 3, 7, level)
    rule, form = _wrap_rule(rng) if rng.random() < 0.2 else ("", "TEXT")

    def sample(draw: Random) -> tuple[str, str]:
        words = draw.sample(WORDS, draw.randint(2, longest))
        return " ".join(words), form.replace("TEXT", operation(words))

    instruction = " ".join(part for part in (rng.choice(asks), rule) if part)
    return Task(instruction, sample, (rng.choice(("Text", "Words", "Input")), rng.choice(("Result", "Answer"))))


def _wrap_rule(rng: Random) -> tuple[str, str]:
    """Return a sentence that asks for something around the text, and the form with TEXT in it."""
    left, right = rng.choice(_WRAPS)
    word = rng.choice(WORDS)
    choices = (
        (f"Put {left} before it and {right} after it.", f"{left} TEXT {right}"),
        (f"Write it between {left} and {right}", f"{left} TEXT {right}"),
        (f"Begin with the word {word}.", f"{word} TEXT"),
        (f"End with the word {word}.", f"TEXT {word}"),
        (f"Start with {word}: and end with a full stop.", f"{word}: TEXT ."),
        ("Answer in JSON with the key text.", '{"text": " TEXT "}'),
        ("End with an exclamation mark.", "TEXT !"),
    )
    return rng.choice(choices)


def write_in_form(rng: Random, level: float) -> Task:
    """A form for the completion: the input is copied into it."""
    rule, form = _wrap_rule(rng)
    longest = _size(rng, 2, 7, level)

    def sample(draw: Random) -> tuple[str, str]:
        words = draw.sample(WORDS, draw.randint(2, longest))
        return " ".join(words), form.replace("TEXT", " ".join(words))

    asks = ("Copy the text.", "Repeat the text.", "Write the text again.")
    return Task(f"{rng.choice(asks)} {rule}", sample, (rng.choice(("Text", "Input")), rng.choice(("Result", "Answer"))))


_FIELDS: dict[str, tuple[str, ...]] = {
    "name": NAMES, "city": CITIES, "day": DAYS, "topic": TOPICS, "team": TEAMS, "item": WORDS, "friend": NAMES,
    "place": CITIES, "word": WORDS, "group": TEAMS,
}  # fmt: skip


def extract(rng: Random, level: float) -> Task:
    """A record in the input: the completion is the value of the field, or fields, that the prompt names."""
    fields = rng.sample(tuple(_FIELDS), _size(rng, 2, 6, level))
    wanted = rng.sample(fields, 2 if rng.random() < 0.25 else 1)
    asks = ("Give the {field}.", "What is the {field}?", "Answer with the {field}.", "Write down the {field}.")
    separator, joint = rng.choice(((": ", ", "), (" = ", "; "), (" is ", ", "), (": ", " | ")))

    def sample(draw: Random) -> tuple[str, str]:
        values = {field: draw.choice(_FIELDS[field]) for field in draw.sample(fields, len(fields))}
        record = joint.join(f"{field}{separator}{value}" for field, value in values.items())
        return record, ", ".join(values[field] for field in wanted)

    instruction = rng.choice(asks).format(field=" and the ".join(wanted))
    return Task(instruction, sample, (rng.choice(("Record", "Text", "Input")), rng.choice(("Value", "Answer"))))


KINDS: dict[str, tuple[Callable[[Random, float], Task], float]] = {
    "lookup": (lookup, 0.10),
    "route": (route, 0.38),
    "translate": (translate, 0.20),
    "edit": (edit, 0.14),
    "form": (write_in_form, 0.08),
    "extract": (extract, 0.10),
}
"""Each kind's maker and its share of the training examples."""
