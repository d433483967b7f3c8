"""Readings of Chinese text by pypinyin: tonal syllables, and their initials and finals."""

from __future__ import annotations

from speechlab.data.symbols import KEPT


def syllables(text: str) -> list[str]:
    """Tonal syllables, one per hanzi: 你好 -> ni3 hao3; the neutral tone is 5. Other characters are left out."""
    from pypinyin import Style, lazy_pinyin

    return lazy_pinyin(KEPT.sub(" ", text), style=Style.TONE3, neutral_tone_with_five=True, errors="ignore")


def phones(text: str) -> list[str]:
    """Initials and tonal finals: 你好 -> n i3 h ao3. They are about 200, each seen often; characters are thousands."""
    from pypinyin import Style, lazy_pinyin

    text = KEPT.sub(" ", text)  # a kept symbol of one's own may have hanzi in it
    initials = lazy_pinyin(text, style=Style.INITIALS, strict=False, errors="ignore")
    finals = lazy_pinyin(text, style=Style.FINALS_TONE3, strict=False, neutral_tone_with_five=True, errors="ignore")
    return [unit for pair in zip(initials, finals, strict=True) for unit in pair if unit]
