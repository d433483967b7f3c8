"""Text normalisation: both rules, the choice between them, and that doing it twice changes nothing."""

import pytest

from speechlab.data.text import has_hanzi, is_chinese, normalise

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
    assert has_hanzi("a中") and not has_hanzi("かなabc")
