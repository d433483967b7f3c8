"""The one place where transcripts are normalised, so that texts that mean the same are spelled the same.

All text goes through Unicode's NFKC (UAX #15), which also makes full-width letters half-width. Then there are two
rules:

* Chinese: no punctuation, no spaces next to a hanzi, Latin letters upper case.
* words (any other language): no punctuation but the apostrophe inside a word, upper case, single spaces.
"""

from __future__ import annotations

import re
import unicodedata

# For Unicode 〇 is a number and no ideograph, but Mandarin writes years with it. The rest are all ideographs.
_HANZI = "〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HANZI_RE = re.compile(f"[{_HANZI}]")
_SPACE_AT_HANZI = re.compile(rf"(?<=[{_HANZI}]) | (?=[{_HANZI}])")
# Typists and web pages use all of these as an apostrophe, and NFKC does not make them one.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032`\u00b4"), "'")
_LONE_APOSTROPHE = re.compile(r"(?<![^\W_])'|'(?![^\W_])")
_CHINESE_TAGS = ("zh", "cmn", "yue", "wuu", "nan", "chinese", "mandarin", "cantonese")
# Joiners shape letters in Persian and Indic scripts. Other format characters (BOM, zero-width space) are noise.
_JOINERS = "\u200c\u200d"


def has_hanzi(text: str) -> bool:
    """True if ``text`` holds at least one Chinese character."""
    return bool(_HANZI_RE.search(text))


def is_chinese(text: str, language: str | None = None) -> bool:
    """True if the Chinese rule applies: by ``language`` (``zh-CN``, ``Chinese``...), else if ``text`` has hanzi."""
    if language:
        return re.split(r"[-_]", language.strip().lower())[0] in _CHINESE_TAGS
    return has_hanzi(text)


def normalise(text: str, language: str | None = None) -> str:
    """Normalise one transcript; doing it twice changes nothing more. ``""`` means that nothing was said.

    >>> normalise("“今天”是 2024年，Hello world！", "zh")
    '今天是2024年HELLO WORLD'
    >>> normalise("  Don't   stop — 'now'! ", "en")
    "DON'T STOP NOW"
    """
    chinese = is_chinese(text, language)
    text = text.translate(_APOSTROPHES)  # before NFKC, which would turn U+00B4 into a space and an accent
    text = unicodedata.normalize("NFKC", text)
    # Once more, since upper() can leave a sequence that NFKC composes differently.
    text = unicodedata.normalize("NFKC", text.upper()).translate(_APOSTROPHES)
    text = "".join(map(_keep, text))
    text = _LONE_APOSTROPHE.sub(" ", text)
    text = " ".join(text.split())
    return _SPACE_AT_HANZI.sub("", text) if chinese else text


def _keep(character: str) -> str:
    """The character itself; a space for punctuation, symbols and controls; nothing for invisible characters."""
    if character == "'":
        return character
    category = unicodedata.category(character)
    if category == "Cf":
        return character if character in _JOINERS else ""
    return " " if category[0] in "PSZC" else character
