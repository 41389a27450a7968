r"""Text of data, models and servers for a terminal, which obeys what it cannot show.

An escape sequence moves the cursor, sets the window's title or hides the rest of a line, and a mark of direction
reverses what follows (https://www.trojansource.codes). Both are written as Python writes them: `\x1b`, `\u202e`.
"""

from __future__ import annotations

import re

# C0, DEL, C1, soft hyphen, directional marks, zero width, line separators, embeddings, isolates, byte-order mark, tags,
# and surrogates, which no file in UTF-8 can hold. Not the joiners U+200C and U+200D, which emoji and Persian need.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""Return a text whose control characters are written out, so that a terminal shows them and obeys none.

    Newlines and tabs stay; a carriage return does not, since it overwrites the line. Doing it twice changes nothing.

    Args:
        text: Any text; what a program adds itself, such as colours, has to come after.
    """
    return HIDDEN.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found[0]), text)


def _escape(character: str) -> str:
    return repr(character)[1:-1]  # each of them is one that Python escapes
