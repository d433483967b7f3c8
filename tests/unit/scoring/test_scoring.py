"""CER, WER and SER against hand-worked alignments, the bootstrap against known coverage, and the results writer."""

import json

import numpy as np
import pytest

from speechlab.scoring.bootstrap import interval
from speechlab.scoring.layout import width
from speechlab.scoring.metric import Metric
from speechlab.scoring.results import Row, list_hash, render, write_results
from speechlab.scoring.syllables import Syllables, canonical, true_readings
from speechlab.scoring.wer import (
    Counts,
    Item,
    alignment,
    code_switched,
    error_rate,
    is_hanzi,
    mostly_hanzi,
    trn,
    units,
    worst,
)


def test_word_errors_by_hand():
    items = [
        Item("a", "the cat sat on the mat", "the cat sat on mat"),  # one deletion of 6
        Item("b", "hello world", "hello there big world"),  # two insertions of 2
        Item("c", "yes", "no"),  # one substitution of 1
    ]
    rate = error_rate(items, "word")
    assert rate.counts == Counts(substitutions=1, deletions=1, insertions=2, length=9)
    assert rate.value == pytest.approx(100 * 4 / 9)
    assert [u.counts.errors for u in rate.utterances] == [1, 2, 1]
    assert rate.ci_low < rate.value < rate.ci_high


def test_characters_do_not_count_spaces():
    one = error_rate([Item("a", "老师 您好", "老是您好")], "char")
    assert one.counts == Counts(1, 0, 0, 4) and one.value == 25
    assert error_rate([Item("a", "ab c", "a bc")], "char").value == 0
    assert error_rate([Item("a", "ab c", "a bc")], "word").value == 100


def test_empty_references_and_hypotheses():
    rate = error_rate([Item("a", "", "三个字"), Item("b", "四个字啊", ""), Item("c", "", "")], "char")
    assert rate.counts == Counts(0, 4, 3, 4)
    assert rate.value == pytest.approx(175) and rate.n == 3
    nothing = error_rate([Item("a", "", "x")], "char")
    assert nothing.value is None and nothing.counts.insertions == 1


def test_failed_items_are_counted_and_not_scored():
    items = [Item("a", "ab", "ab"), Item("b", "cdef", "", error="posterior not finite at frame 3")]
    rate = error_rate(items, "char")
    assert (rate.value, rate.n, rate.n_failed) == (0, 1, 1)
    assert rate.counts.length == 2
    none_left = error_rate(items[1:], "char")
    assert (none_left.value, none_left.ci_low, none_left.n, none_left.n_failed) == (None, None, 0, 1)


def test_alignment_lines_stay_straight_with_hanzi():
    (utterance,) = error_rate([Item("u1", "我有A老师好", "我A老是好的")], "char").utterances
    ref, hyp, kinds = alignment(utterance).splitlines()
    assert ref == "REF 我 有 A 老 师 好 **" and hyp == "HYP 我 ** A 老 是 好 的"
    columns = {width(kinds[:place]): kind for place, kind in enumerate(kinds) if kind != " "}
    assert columns == {7: "D", 15: "S", 21: "I"}
    assert all(width(line) <= 20 for line in alignment(utterance, columns=20).splitlines())
    assert len(alignment(utterance, columns=12).splitlines()) > 3


def test_worst_are_those_with_most_errors():
    items = [Item("few", "abcdef", "abcdex"), Item("many", "ab", "cd"), Item("none", "a", "a")]
    text = worst(error_rate(items, "char"))
    assert text.index("many") < text.index("few") and "none" not in text
    assert worst(error_rate([Item("none", "a", "a")], "char")) == ""


def test_mostly_hanzi():
    assert mostly_hanzi(["今天是MONDAY", "老师您好老师"])
    assert not mostly_hanzi(["HELLO WORLD 好"]) and not mostly_hanzi([""])


def test_mixed_errors_by_hand():
    assert units("我用PYTHON写 HELLO WORLD 程序", "mixed") == ["我", "用", "PYTHON", "写", "HELLO", "WORLD", "程", "序"]
    assert units("DON'T 好2024年", "mixed") == ["DON'T", "好", "2024", "年"]
    items = [Item("a", "我用PYTHON写程序", "我用 PYTHONS 写程"),  # a word and a deletion of 6
             Item("b", "OK 好", "OK好的")]  # an insertion of 2
    rate = error_rate(items, "mixed")
    assert rate.counts == Counts(substitutions=1, deletions=1, insertions=1, length=8) and rate.value == 37.5
    assert trn([("a b", items[0].ref)], "mixed") == "我 用 PYTHON 写 程 序 (a_b)\n"
    assert error_rate([Item("a", "今天很好", "今天好")], "mixed").counts == \
        error_rate([Item("a", "今天很好", "今天好")], "char").counts, "of hanzi alone, MER is CER"
    assert error_rate([Item("a", "HELLO WORLD", "HELLO")], "mixed").counts == Counts(0, 1, 0, 2), "of words alone, WER"


def test_hanzi_of_every_block():
    for character in "一㐀〇豈\U00020000\U000323af":
        assert is_hanzi(character) and units(f"A{character}B", "mixed") == ["A", character, "B"]


def test_how_mixed_references_must_be():
    assert code_switched(["我们用PYTHON写程序", "OK"]) and code_switched(["LET'S GO TO THE MARKET 买 SOME VEGETABLES"])
    assert code_switched(["一二三四五六七八九 OK"]), "one unit in ten"
    assert not code_switched(["一二三四五六七八九十 OK"]) and not code_switched(["好", "A B C D E F G H I J"])
    assert not code_switched(["今天是2024年3月5日"]), "numbers are no words"
    assert not code_switched(["これは日本語です 人名"]) and not code_switched([]) and not code_switched([""])
    assert not code_switched(["好<NOISE>", "<NOISE> <NOISE>"])


def test_kept_symbols_are_not_scored():
    for unit, length in (("char", 2), ("word", 1), ("mixed", 2)):
        counts = error_rate([Item("a", "<NOISE> 你好 <LAUGHTER>", "你好<COUGH>")], unit).counts
        assert counts == Counts(0, 0, 0, length)
    assert trn([("a", "HELLO <NOISE> YOU")], "word") == "HELLO YOU (a)\n"
    assert syllable_rate(Item("a", "他<NOISE>们", "她们", pinyin="ta1 men5")).counts == Counts(0, 0, 0, 2)


SOUNDS = {"他": "ta1", "她": "ta1", "们": "men5", "长": "zhang3", "掌": "zhang3", "了": "le5", "料": "liao4",
          "好": "hao3"}


def by_table(hanzi):
    """A reader in place of pypinyin: what is not in the table is left out, as pypinyin does."""
    return [SOUNDS[c] for c in hanzi if c in SOUNDS]


def syllable_rate(*items):
    return error_rate(items, "syllable", split=Syllables(by_table, "table").split)


def test_syllables_forgive_homophones_and_nothing_else():
    assert syllable_rate(Item("a", "他们长", "她们掌")).counts == Counts(0, 0, 0, 3)
    assert error_rate([Item("a", "他们长", "她们掌")], "char").counts == Counts(2, 0, 0, 3)
    assert syllable_rate(Item("a", "他们好", "她好")).counts == Counts(0, 1, 0, 3)
    two = syllable_rate(Item("a", "他们好", "好们他"), Item("b", "好", "", error="no audio"))
    assert (two.value, two.n, two.n_failed) == (pytest.approx(200 / 3), 1, 1)
    assert syllable_rate(Item("a", "", "好")).counts == Counts(0, 0, 1, 0)


def test_what_is_no_known_hanzi_is_a_unit_of_its_own():
    syllables = Syllables(by_table, "table")
    assert syllables.units("他 ok们𠮷好") == ["ta1", "o", "k", "men5", "𠮷", "hao3"]
    assert syllable_rate(Item("a", "他A们", "她B们")).counts == Counts(1, 0, 0, 3)


def test_true_readings_of_the_reference():
    """Right characters are right syllables, whatever the dictionary says; other characters are read by it."""
    right = Item("a", "他长了", "他长了", pinyin="ta1 chang2 LIAO3")
    assert true_readings(right) == ["ta1", "chang2", "liao3"]
    assert syllable_rate(right).counts == Counts(0, 0, 0, 3)
    assert syllable_rate(Item("a", "他长了", "她掌好了", pinyin="ta1 zhang3 le")).counts == Counts(0, 0, 1, 3)
    assert syllable_rate(Item("a", "长", "掌", pinyin="chang2")).counts == Counts(1, 0, 0, 1)
    assert true_readings(Item("a", "他长了", pinyin="ta1 chang2")) is None, "not one a character: not used"
    assert true_readings(Item("a", "他们")) is None
    spelt = {"nü3": "nv3", "nu:3": "nv3", "Lüe4": "lve4", "men": "men5", "de0": "de5", "r5": "er5", "er2": "er2"}
    assert {text: canonical(text) for text in spelt} == spelt


def test_syllable_rate_is_never_over_the_character_rate_with_true_readings():
    rng = np.random.default_rng(1)
    hanzi, sounds = list(SOUNDS), ["ta1", "men5", "chang2", "liao3", "hao4"]
    for _ in range(200):
        ref, hyp = ("".join(rng.choice(hanzi, rng.integers(0, 8))) for _ in range(2))
        item = Item("a", ref, hyp, pinyin=" ".join(rng.choice(sounds, len(ref))))
        assert syllable_rate(item).counts.errors <= error_rate([item], "char").counts.errors


def test_syllables_by_pypinyin_and_its_protocol():
    """The reader that score.py gives, against pypinyin and a Levenshtein distance of our own."""
    pypinyin = pytest.importorskip("pypinyin")
    from speechlab.data.pinyin import syllables

    texts = [("我们在银行长大", "我门再音行涨大"), ("女儿一个人去学校了", "女二一个人去学笑"),
             ("老师您好", "老是你好吗")]
    judge = Syllables(syllables, "pypinyin 0")
    found = error_rate([Item(str(i), *pair) for i, pair in enumerate(texts)], "syllable", split=judge.split)
    for pair, utterance in zip(texts, found.utterances):
        ref, hyp = (pypinyin.lazy_pinyin(text, style=pypinyin.Style.TONE3, neutral_tone_with_five=True)
                    for text in pair)
        row = list(range(len(hyp) + 1))
        for i, r in enumerate(ref):
            row, above = [i + 1], row
            for j, h in enumerate(hyp):
                row.append(min(row[j] + 1, above[j + 1] + 1, above[j] + (r != h)))
        assert (utterance.counts.errors, utterance.counts.length) == (row[-1], len(ref))
    plain, true = Item("a", "老师"), Item("b", "老师", pinyin="lao3 shi1")
    assert judge.protocol([plain]) == "SER jiwer, tonal, pypinyin 0"
    assert judge.protocol([true]) == "SER jiwer, tonal, ref true readings, else pypinyin 0"
    assert "true readings (1 of 2), else" in judge.protocol([plain, true, Item("c", "老", error="no audio")])
    with pytest.raises(ValueError, match="reader"):
        units("老师", "syllable")


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    """Utterances of 5-14 words with a known error rate: the 95 % interval must hold it in most of 300 trials."""
    rng, truth, inside = np.random.default_rng(5), 0.2, 0
    for trial in range(300):
        length = rng.integers(5, 15, size=80)
        errors = rng.binomial(length, truth)
        low, high = interval(errors, length, resamples=1000, seed=trial)
        inside += low <= truth <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_bootstrap_against_a_plain_loop_and_the_normal_interval():
    rng = np.random.default_rng(0)
    errors, length = rng.integers(0, 4, 60), rng.integers(3, 12, 60)
    picks = [rng.integers(0, 60, 60) for _ in range(4000)]
    slow = np.quantile([errors[p].sum() / length[p].sum() for p in picks], [0.025, 0.975])
    assert interval(errors, length, resamples=4000) == pytest.approx(slow, abs=0.004)
    values = rng.normal(3, 1, 400)
    half = 1.96 * values.std() / 20
    assert interval(values, resamples=4000) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.007)
    assert interval(errors, length, seed=1) == interval(errors, length, seed=1) != interval(errors, length, seed=2)
    assert interval([1], [2]) == (None, None) and interval([0, 0], [0, 0]) == (None, None)


def _row(**changes):
    base = dict(test_set="test", method="ctc_greedy", metric="CER", value=12.345, ci_low=11.0, ci_high=13.0, unit="%",
                protocol="CER jiwer", n=10, n_failed=1, list_hash="0123456789ab")
    return Row(**{**base, **changes})


def test_results_files(tmp_path):
    rows = [_row(method="oracle", value=None, ci_low=None, ci_high=None), _row(), _row(test_set="测试集", value=0.0)]
    text = write_results(tmp_path, rows, {"experiment": "mini_conformer"}, ["a note"])
    assert (tmp_path / "results.txt").read_text(encoding="utf-8") == text
    again = write_results(tmp_path, rows[::-1], {"experiment": "mini_conformer"}, ["a note"])
    assert again == text, "the order of rows is not the caller's"
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(r["test_set"], r["method"], r["value"]) for r in read] == [
        ("test", "ctc_greedy", 12.345), ("test", "oracle", None), ("测试集", "ctc_greedy", 0.0)]
    assert list(read[0]) == "test_set method metric value ci_low ci_high unit protocol n n_failed list_hash".split()
    lines = text.splitlines()
    assert lines[0].startswith("test: ctc_greedy, CER 12.35 % (") and lines[3] == "# experiment: mini_conformer"
    assert lines[1].startswith("测试集: ctc_greedy, CER 0.00 %") and lines[2] == "" and lines[-1] == "a note"
    ends = [width(line[: line.index("0123456789ab")]) for line in lines if "0123456789ab" in line]
    assert len(ends) == 3 and len(set(ends)) == 1, "columns stay straight with hanzi in them"


def test_speeds_stand_last_and_leave_the_rest_as_it_is():
    speed = dict(metric="RTF", ci_low=None, ci_high=None, unit="1", protocol="cpu, 2 threads", n_failed=0)
    one, other = (render([_row(), _row(value=value, **speed)], {"experiment": "a"}, ["a note"])
                  for value in (0.0015749, 0.25))
    assert one.splitlines()[-3:] == ["test_set  method      real-time factor  measured on",
                                     "--------  ----------  ----------------  --------------",
                                     "test      ctc_greedy            0.0016  cpu, 2 threads"]
    assert one.splitlines()[:-1] == other.splitlines()[:-1] and "12.35" in one and "0.25" in other
    assert one == render([_row(value=0.00158, **speed), _row()], {"experiment": "a"}, ["a note"])
    assert one.startswith(render([_row()], {"experiment": "a"}, ["a note"]))


def test_list_hash():
    pairs = [("a", "x"), ("b", "y")]
    assert list_hash(pairs) == list_hash(pairs[::-1])
    assert len({list_hash(pairs), list_hash([("a", "x")]), list_hash([("a", "y"), ("b", "x")])}) == 3


def test_trn_form():
    assert trn([("a b", "老师 ok")], "char") == "老 师 o k (a_b)\n"
    assert trn([("x", "two  words (really)")], "word") == "two words （really） (x)\n"
    assert trn([("x", "")], "word") == "(x)\n"


def test_the_opening_in_odd_cases():
    def first(*rows, **options):
        return render(rows, {"experiment": "x"}, **options).partition("\n\n")[0].splitlines()

    odd = Metric("odd", lower=None)
    assert first(_row(metric="odd", method="a"), _row(metric="odd", method="b"), own=[odd]) == [
        "test: 2 methods, and nobody has said whether a high odd is good or bad"]
    assert first(_row(metric="odd", method="a"), own=[odd]) == ["test: a, odd 12.35 % (11.00 - 13.00), 1 of 11 failed"]
    other = first(_row(n_failed=0), _row(n_failed=0, test_set="other", metric="SER"))
    assert [line.partition(" 12")[0] for line in other] == ["other: ctc_greedy, SER", "test: ctc_greedy, CER"]
    assert first(_row(value=None, ci_low=None, ci_high=None, n=0, n_failed=40)) == ["test: no figure, 40 failed"]
    assert first(_row(value=float("nan"), method="a"), _row(method="b"))[0].startswith("test: b, CER 12.35")
    assert "(-6.00 to -4.00)" in first(_row(metric="SI-SDR", unit="dB", value=-5.0, ci_low=-6.0, ci_high=-4.0))[0]
