"""The one place where transcripts are normalised, so that texts that mean the same are spelled the same.

All text goes through Unicode's NFKC (UAX #15), which also makes full-width letters half-width. Non-speech symbols
(``<NOISE>``, ``[laughter]``) are left out, or kept where that is asked for (speechlab/data/symbols.py). Then there are
two rules:

* Chinese: no punctuation, no spaces next to a hanzi, Latin letters upper case.
* words (any other language): no punctuation but the apostrophe inside a word, upper case, single spaces.

What nobody sees is no character: variation selectors, keycaps, joiners in emoji, a byte order mark. Joiners stay where
they shape letters (Persian, Indic scripts).

Upper case depends on the language, where one is given: Turkish, Azerbaijani and their kin have I for ı and İ for i,
Lithuanian drops the dot of an accented i, Armenian և is ԵՎ. In all languages ß and ẞ are SS, both Greek sigmas are Σ
(accents stay), and Georgian stays in the letters that it is written in, which have no upper case.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from speechlab.data.symbols import LEAVE_OUT, Symbols

# For Unicode 〇 is a number and no ideograph, but Mandarin writes years with it. The rest are all ideographs.
_HANZI = "〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HANZI_RE = re.compile(f"[{_HANZI}]")
_SPACE_AT_HANZI = re.compile(rf"(?<=[{_HANZI}]) | (?=[{_HANZI}])")
# Typists and web pages use all of these as an apostrophe, and NFKC does not make them one.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032`\u00b4"), "'")
_LONE_APOSTROPHE = re.compile(r"(?<![^\W_])'|'(?![^\W_])")

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt) but the joiners, and the enclosing marks (category
# Me: keycaps, circles). Other format characters (Cf) go by their category.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\u0488\u0489\u1abe\u20dd-\u20e0\u20e2-\u20e4\ua670-\ua672]")
# Joiners: U+200C keeps letters apart, U+200D lets them join. The blocks of the scripts in which they do: Arabic to
# Sinhala, Tibetan to Myanmar, Khmer and Mongolian, Limbu to Vedic, Syloti to Meetei, Kharoshthi to Adlam. Elsewhere (in
# emoji, between Latin letters) they have nothing to do.
_SHAPED = re.compile(
    "[\u0600-\u0dff\u0f00-\u109f\u1700-\u18af\u1900-\u1cff\ua800-\uab2f\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00012fff\U0001e900-\U0001e95f]")
_JOINERS = re.compile("[\u200c\u200d]+")
_SETTLED = re.compile(r"(?:[^\W_]|['\s])*")  # neither marks nor joiners

# What upper() leaves: one letter for the other spelling of SS, and Georgian capitals, which titles are set in and fonts
# rarely have.
_AFTER_UPPER = {**_APOSTROPHES, ord("ẞ"): "SS",
                **{code: code - 0xBC0 for code in (*range(0x1C90, 0x1CBB), *range(0x1CBD, 0x1CC0))}}
_DOTTED = str.maketrans("iı", "İI")
_DOT_OVER_I = re.compile("(?<=[ijį])\u0307")

# Codes of ISO 639 and names, in lower case. A language of no name is found by its text.
_CHINESE = frozenset("""
    zh zho chi cmn yue wuu nan hak gan hsn cjy cdo czh czo cpx mnp cnp csp lzh chinese mandarin putonghua guoyu
    huayu hanyu zhongwen cantonese taiwanese hokkien hakka teochew shanghainese
""".split())
_CHINESE_NAMES = tuple("""
    中文 汉文 汉语 漢語 华语 華語 国语 國語 普通话 普通話 官话 官話 粤语 粵語 广东话 廣東話 广州话 廣州話 白话
    吴语 吳語 上海话 上海話 闽语 閩語 闽南语 閩南語 闽南话 閩南話 台语 台語 臺語 潮州话 潮州話 潮汕话 客语 客語
    客家话 客家話 湘语 湘語 湖南话 赣语 贛語 晋语 晉語 四川话 四川話 方言
""".split())  # how a tag ends: 简体中文
_TURKIC = frozenset("tr tur turkish türkçe turkce az aze azj azerbaijani azeri azərbaycanca crh gag".split())
_TURKIC_IN_LATIN = frozenset("kk kaz tt tat ba bak".split())  # where the tag says Latn: they have Cyrillic, too
_LITHUANIAN = frozenset("lt lit lithuanian lietuvių".split())
_ARMENIAN = frozenset("hy hye arm armenian".split())
_NO_LANGUAGE = frozenset("und unknown none null mul mis auto".split())


def has_hanzi(text: str) -> bool:
    """True if ``text`` holds at least one Chinese character."""
    return bool(_HANZI_RE.search(text))


def is_chinese(text: str, language: str | None = None) -> bool:
    """True if the Chinese rule applies: by ``language``, else (none, ``und``) if ``text`` has hanzi.

    Codes and names count in any case, with region, script or another language: ``zh-CN``, ``ZHO``, ``cmn_hans_cn``,
    ``Chinese (Simplified)``, ``中文``, ``粤语``, ``en-zh``.
    """
    tags = _tags(language)
    if not tags:
        return has_hanzi(text)
    return tags[0] == "cn" or any(tag in _CHINESE or tag.endswith(_CHINESE_NAMES) for tag in tags)


def normalise(text: str, language: str | None = None, symbols: Symbols = LEAVE_OUT) -> str:
    """Normalise one transcript; doing it twice changes nothing more. ``""`` means that nothing was said.

    >>> normalise("“今天”是 2024年，Hello world！", "zh")
    '今天是2024年HELLO WORLD'
    >>> normalise("  Don't   stop — 'now'! <NOISE>", "en")
    "DON'T STOP NOW"
    >>> normalise("kır kir", "tr")
    'KIR KİR'
    """
    casing = _casing(language)
    if casing == "hy":
        text = text.replace("և", "եվ")  # before NFKC, which makes two other letters of it
    text = text.translate(_APOSTROPHES)  # before NFKC, which would turn U+00B4 into a space and an accent
    parts = symbols.split(unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)))
    parts[::2] = [_words(said, casing) for said in parts[::2]]
    parts[1::2] = [f"<{name}>" if symbols.keep else "" for name in parts[1::2]]
    text = " ".join(filter(None, parts))
    return _SPACE_AT_HANZI.sub("", text) if is_chinese(text, language) else text


def _words(text: str, casing: str) -> str:
    """What was said, by the rule for words; again, until nothing changes, where there are marks and joiners.

    What is left out between a letter and a mark brings them together, and then NFKC may know a letter for both.
    """
    made = _once(text, casing)
    while made != text and not _SETTLED.fullmatch(made):
        text, made = made, _once(made, casing)
    return made


def _once(text: str, casing: str) -> str:
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    if casing == "tr":
        text = text.replace("i\u0307", "i").translate(_DOTTED)  # which Python's lower() makes of İ
    elif casing == "lt":
        text = _DOT_OVER_I.sub("", text)
    # Once more, since upper() can leave a sequence that NFKC composes differently.
    text = unicodedata.normalize("NFKC", text.upper()).translate(_AFTER_UPPER)
    text = "".join(map(_keep, text))
    text = _LONE_APOSTROPHE.sub(" ", text)
    text = _JOINERS.sub(_joiner, text)
    if not _SETTLED.fullmatch(text):
        text = "".join(c for c, before in zip(text, " " + text) if not (before in " '" and _is_mark(c)))
    return " ".join(text.split())


@functools.lru_cache(maxsize=20000)
def _keep(character: str) -> str:
    """The character itself; a space for punctuation, symbols and controls; nothing for invisible characters."""
    if character in "'\u200c\u200d":
        return character
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return " " if category[0] in "PSZC" else character


def _joiner(found: re.Match[str]) -> str:
    """What stays of a run of joiners: one that joins behind a letter that is shaped, or one that keeps two apart."""
    text, before, after = found.string, found.string[:found.start()][-1:], found.string[found.end():][:1]
    if "\u200d" in text[found.start():found.end()] and _SHAPED.match(before):
        return "\u200d"
    between = all(c.isalnum() or unicodedata.category(c)[0] == "M" for c in (before or " ", after or " "))
    return "\u200c" if "\u200c" in found[0] and between and (_SHAPED.match(before) or _SHAPED.match(after)) else ""


def _is_mark(character: str) -> bool:
    """A mark that sits on a letter; alone it is as good as invisible."""
    return unicodedata.category(character) == "Mn"


@functools.lru_cache(maxsize=1000)
def _tags(language: str | None) -> list[str]:
    """``zh_Hans-CN`` -> zh, hans, cn; nothing where no language is named."""
    words = re.split(r"[\W_]+", unicodedata.normalize("NFKC", language or "").lower())
    tags = [word for word in words if word]
    return [] if not tags or tags[0] in _NO_LANGUAGE or tags == ["n", "a"] else tags


def _casing(language: str | None) -> str:
    """Which rule of upper case applies: ``tr``, ``lt``, ``hy``, or ``""``. A region (ku-TR) does not decide it."""
    tags = _tags(language)
    if not tags:
        return ""
    if tags[0] in _TURKIC or (tags[0] in _TURKIC_IN_LATIN and "latn" in tags):
        return "tr"
    return "lt" if tags[0] in _LITHUANIAN else "hy" if tags[0] in _ARMENIAN else ""
