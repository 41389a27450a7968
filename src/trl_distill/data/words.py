"""What a word of a text is."""

from __future__ import annotations

# a character of a script without spaces between words (Thai and Lao, Burmese, Khmer, kana, Han), or letters and digits
WORD = r"[฀-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|\w+"
