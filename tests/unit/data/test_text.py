"""Text normalisation: both rules, the choice between them, and that doing it twice changes nothing."""

import random
import sys
import unicodedata

import pytest

from speechlab.data.symbols import KEEP, KEPT, LEAVE_OUT, Symbols
from speechlab.data.text import has_hanzi, is_chinese, normalise
from speechlab.errors import UserError

CASES = [
    ("今天，天气 很 好。", "zh", "今天天气很好"),
    ("“你好”——《书》……（笑）", "zh", "你好书笑"),
    ("ＡＢＣ１２３全角", "zh", "ABC123全角"),
    ("我 用 python 写 hello world 程序", "zh", "我用PYTHON写HELLO WORLD程序"),
    ("二〇二四 年", "zh", "二〇二四年"),
    ("今\u200b天\ufeff", "zh", "今天"),
    ("Hello,  world!", "en", "HELLO WORLD"),
    ("Don’t 'stop' the dogs'", "en", "DON'T STOP THE DOGS"),
    ("well-known e.g. U.S.A.", "en", "WELL KNOWN E G U S A"),
    ("cafe\u0301 Straße", "de", "CAFÉ STRASSE"),
    ("你好 世界", "en", "你好 世界"),
    ("你好 世界", None, "你好世界"),
    ("good morning", None, "GOOD MORNING"),
    ("snake_case\tand\nlines", None, "SNAKE CASE AND LINES"),
    ("…。！", "zh", ""),
    ("  ' - ' ", None, ""),
    ("", None, ""),
    # What nobody sees: variation selectors, keycaps, joiners in emoji, fillers, bidirectional marks, lone accents.
    ("好的❤️", "zh", "好的"),
    ("1️⃣", "zh", "1"),
    ("1️⃣ 2️⃣ 好", None, "1 2好"),
    ("葛\U000e0100城", "zh", "葛城"),
    ("👨\u200d👩\u200d👧 好👍🏽", "zh", "好"),
    ("\ufe0f", None, ""), ("\u20e3", None, ""), ("\U000e0100\u200d\u200c", "zh", ""),
    ("\u3164\uffa0\u115f", "ko", ""),
    ("🏴\U000e0067\U000e0062\U000e007f", "en", ""),
    ("\u202bHello\u202c \u2066wor\u00adld\u2069", "en", "HELLO WORLD"),
    ("e\u034f\u0301", "fr", "É"),
    ("¨ a \u0301b", None, "A B"),
    ("Auf\u200clage \u200d", "de", "AUFLAGE"),
    # Joiners that shape letters stay: Persian (also beside Latin), Devanagari, Bengali, Sinhala, Malayalam.
    ("می\u200cخواهم", "fa", "می\u200cخواهم"),
    ("CD\u200cها \u200cو\u200c", "fa", "CD\u200cها و"),
    ("क्\u200dष न्\u200cन", "hi", "क्\u200dष न्\u200cन"),
    ("র\u200d্য", "bn", "র\u200d্য"), ("ශ්\u200dරී", "si", "ශ්\u200dරී"), ("അവന്\u200d", "ml", "അവന്\u200d"),
    # Upper case by language.
    ("kır", "tr", "KIR"), ("kir", "tr", "KİR"), ("KIR KİR", "tr", "KIR KİR"), ("kir", "az-Latn-AZ", "KİR"),
    ("ﬁl", "Türkçe", "FİL"), ("i̇stanbul", "tur", "İSTANBUL"), ("î ı̂", "tr", "Î Î"), ("qırmızı", "aze", "QIRMIZI"),
    ("kitap", "kk-Latn", "KİTAP"), ("kir", "kk", "KIR"), ("kir", "ku-TR", "KIR"), ("kir", "en-TR", "KIR"),
    ("kir kır", None, "KIR KIR"),
    ("i̇̀ i̇́ j̇́", "lt", "Ì Í J́"),
    ("ὁδὸς ΣΑΣ", "el", "ὉΔῸΣ ΣΑΣ"), ("Maße STRAẞE", "de", "MASSE STRASSE"), ("ŉ ǆ", None, "N DŽ"),
    ("საქართველო ᲡᲐ", "ka", "საქართველო სა"), ("և", "hy", "ԵՎ"), ("և", "hyw", "ԵՒ"),
    # Chinese by any name.
    *(("今天 很 好", tag, "今天很好") for tag in (
        "zho", "chi", "ZH", "zh-Hant-TW", "zh_CN.UTF-8", "cmn_hans_cn", "Cmn", "yue", "yue-HK", "中文", "中文（简体）",
        "汉语", "漢語", "普通话", "粤语", "粵語", "四川话", "简体中文",
        "Chinese (Simplified)", "Mandarin Chinese", "Cantonese", "en-zh", "cn",
        "und", "unknown", "", "n/a")),
    ("今天 很 好", "ja", "今天 很 好"), ("今天 很 好", "日语", "今天 很 好"), ("今天 很 好", "en-CN", "今天 很 好"),
    # Non-speech symbols (speechlab/data/symbols.py).
    ("<NOISE> hello [laughter] big{breath}world <sil> (hesitation)", "en", "HELLO BIG WORLD"),
    ("今天＜NOISE＞很好【笑声】[噪音]", "zh", "今天很好"),
    ("[laughter-yeah] [vocalized-noise] [Lip Smack] <SPOKEN_NOISE> <UNK> yes </s>", "en", "YEAH YES"),
    ("{UH} item(s) [citation] (music)", "en", "UH ITEM S CITATION"),
    ("<NOISE>", "en", ""),
]


@pytest.mark.parametrize("text, language, expected", CASES)
def test_cases(text, language, expected):
    assert normalise(text, language) == expected


@pytest.mark.parametrize("text, language, _", CASES + [("ŉ ﬁn ǰ ΐ ½ ① ㎏", "en", ""), ("i̇ ﷺ", None, "")])
def test_idempotent(text, language, _):
    once = normalise(text, language)
    assert normalise(once, language) == once


def test_which_rule():
    assert all(is_chinese("abc", tag) for tag in ("zh", "zh-CN", "zh_TW", "Chinese", "cmn"))
    assert not is_chinese("中文", "ja") and not is_chinese("abc")
    assert not is_chinese("中文", "en-CN") and is_chinese("中文", "und") and not is_chinese("abc", "und")
    assert has_hanzi("a中") and not has_hanzi("かなabc")


def test_any_character_alone_and_between_letters():
    """Nothing invisible is left of any character of Unicode, and a second time changes nothing."""
    some = [c for c in map(chr, range(sys.maxunicode + 1))
            if unicodedata.category(c) not in ("Lo", "So", "Co", "Cn", "Cs")]
    for character in some + ["\u115f", "\uffa0", "\ufff0", "\U000e0fff"]:
        for text in (character, f"a{character}b"):
            once = normalise(text)
            assert normalise(once) == once, ascii(text)
            assert not any(unicodedata.category(c) in ("Cf", "Cc", "Me", "Cn") for c in once), ascii(text)


def test_a_second_time_changes_nothing_whatever_meets():
    rng = random.Random(0)
    pool = [*"aiıİßŉ '`´.好今①❤👨اخनമ്ए۱፩", "<noise>", " (noise) ", "[x]", "և",
            *"\u200c\u200d\u0301\u0307\u0345\u20e3\ufe0f\u034f\u00ad\u00a8\u037a\u094d\ufc5e"]
    for _ in range(4000):
        text, language = "".join(rng.choices(pool, k=rng.randint(2, 8))), rng.choice([None, "tr", "lt", "hy", "zh"])
        for symbols in (LEAVE_OUT, KEEP):
            once = normalise(text, language, symbols)
            assert normalise(once, language, symbols) == once, (ascii(text), language)


@pytest.mark.parametrize("text, language, expected", [
    ("<NOISE> hello [Laughter] big{lip-smack}world", "en", "<NOISE> HELLO <LAUGHTER> BIG <LIP_SMACK> WORLD"),
    ("今天 [噪音] 很 好 <noise> OK", "zh", "今天<NOISE>很好<NOISE> OK"),
    ("[foo] 3 < 5 > 2 <what>", "en", "FOO 3 5 2 WHAT"),
])
def test_kept_symbols_are_one_token_of_one_spelling(text, language, expected):
    assert normalise(text, language, KEEP) == expected == normalise(expected, language, KEEP)
    assert all(KEPT.fullmatch(word) for word in expected.split() if word[0] == "<" and word[-1] == ">")


def test_symbols_of_ones_own(tmp_path):
    path = tmp_path / "nlsyms.txt"
    path.write_text("<*IN*>\n!SIL\n\n【哔】\n", encoding="utf-8")
    text = "!sil hello <*in*> wow!SIL <noise>【哔】"
    assert normalise(text, "en", Symbols.read("leave_out", path)) == "HELLO WOW SIL"
    kept = normalise(text, "en", Symbols.read("keep", path))
    assert kept == "<SIL> HELLO <IN> WOW SIL <NOISE> <哔>" == normalise(kept, "en", Symbols.read("keep", path))
    assert Symbols.read("keep", path).count(text) == {"<SIL>": 1, "<IN>": 1, "<NOISE>": 1, "<哔>": 1}
    assert LEAVE_OUT.count(text) == {"<NOISE>": 1} and LEAVE_OUT.count(None) == {}
    assert LEAVE_OUT.unlisted("<foo> [Bar-1] {noise} (baz) [two words] <哔> [laughter-yes]") == ["<foo>", "[Bar-1]"]


def test_wrong_options_of_symbols(tmp_path):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes(b"<\xe9>\n")
    for way, file, message in [("both", "", "must be leave_out or keep"), ("keep", tmp_path / "none", "can't be read"),
                               ("keep", tmp_path, "can't be read"), ("keep", tmp_path / "empty", "is empty"),
                               ("keep", tmp_path / "latin", "not UTF-8")]:
        with pytest.raises(UserError, match=message):
            Symbols.read(way, file)
