"""What a word of a text is."""

from __future__ import annotations

# a character of a script without spaces between words (Thai and Lao, Burmese, Khmer, kana, Han); or letters and digits,
# with the marks of Hebrew, Arabic and the scripts of India, which are no letters
WORD = (
    r"[฀-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|\w[\w\u0300-\u036f\u0591-\u05bd\u064b-\u0652\u0900-\u0963\u0971-\u0df3]*"
)
