"""Non-speech symbols of transcripts: ``<NOISE>``, ``[laughter]``, ``{breath}``, ``<sil>``, ``(hesitation)``...

Kaldi and ESPnet (whose file of them is called ``nlsyms``) write so what was heard and is no word. They are left out of
the transcript by default, or kept, each as one token of one spelling: ``[Noise]``, ``{noise}`` and ``<noise>`` are all
``<NOISE>``. A kept symbol is a token that the model learns; scoring leaves it out (speechlab/scoring/wer.py), as those
toolkits do.

The list below is of names in transcripts of Switchboard, Fisher, WSJ, TED-LIUM, AMI, CHiME, Babel, GigaSpeech,
KeSpeech and MagicData. Filled pauses with a spelling (``{UH}``, ``[um]``) are on no list: somebody said them. A corpus
with other symbols has a file of its own, a symbol per line.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from speechlab.errors import UserError

# In any brackets. Here and below: lower case, and a space, a hyphen and an underline are the same.
_SOUNDS = frozenset("""
    noise noises background_noise spoken_noise vocalized_noise vocalised_noise vocal_noise human_noise speaker_noise
    mouth_noise nonspeech non_speech no_speech silence pause long_pause short_pause static feedback music applause
    clapping cheering laugh laughs laughing laughter chuckle chuckles giggle giggles breath breaths breathing breathes
    loud_breath inhale inhales exhale exhales sigh sighs sighing gasp gasps cough coughs coughing throat_clearing
    throat_clear clears_throat clearing_throat sneeze sneezes sniff sniffs sniffle sniffles sniffing yawn yawns cries
    crying sob sobs sobbing screams screaming lipsmack lip_smack lip_smacks smack smacks tongue_click mouth_click click
    clicks beep beeps door_slam door_knock knocking phone_ring phone_ringing telephone_ringing paper_rustle
    paper_rustling chair_squeak typing hesitation hesitations inaudible unintelligible indiscernible crosstalk
    cross_talk overlap background_speech background_music background_voices
""".split())
# In any but round brackets: in round ones they may be words or their endings.
_MARKS = frozenset("""
    sil spn nsn spk fil nps ens unk oov eps garbage other background foreign skip redacted int sta hes mn dtmf prompt
    ring ringing male_to_female female_to_male b_aside e_aside
""".split())
_ANGLES = frozenset("s /s comma period questionmark exclamationpoint".split())  # in angle brackets only
_CHINESE = {"噪音": "noise", "噪声": "noise", "杂音": "noise", "笑": "laughter", "笑声": "laughter", "咳嗽": "cough",
            "咳嗽声": "cough", "音乐": "music", "静音": "silence", "呼吸": "breath", "呼吸声": "breath",
            "掌声": "applause", "清嗓": "throat_clearing", "清嗓子": "throat_clearing"}  # in any but round brackets

_IN_BRACKETS = r"<[^<>]{1,40}>|\[[^\[\]]{1,40}\]|\{[^{}]{1,40}\}|\([^()]{1,40}\)|【[^【】]{1,40}】"
_BRACKETED = re.compile(_IN_BRACKETS)
_WORDS_SAID = re.compile(r"laughter-(.+)", re.IGNORECASE | re.DOTALL)  # Switchboard: [laughter-yeah] is a laughed word
WAYS = ("leave_out", "keep")


class Symbols:
    """Which symbols there are, and whether they are kept.

    Args:
        keep: keep them as tokens ``<NAME>``.
        own: symbols beside the list, as they are written (``<*IN*>``, ``!SIL``), in any case. Those without brackets
            are found where they stand between spaces.
    """

    def __init__(self, keep: bool = False, own: Iterable[str] = ()):
        self.keep = keep
        self._own: dict[str, str] = {}
        for symbol in own:
            name = re.sub(r"[^\w]+|_+", "_", symbol).strip("_").upper() or "SYMBOL"
            self._own[_plain(symbol)] = self._own[_plain(f"<{name}>")] = name
        bare = [re.escape(symbol) for symbol in sorted(self._own, key=len, reverse=True)
                if not _BRACKETED.fullmatch(symbol)]
        between = f"|(?<!\\S)(?:{'|'.join(bare)})(?!\\S)" if bare else ""
        self._pattern = re.compile(_IN_BRACKETS + between, re.IGNORECASE)

    @classmethod
    def read(cls, way: str = "leave_out", file: str | Path = "") -> Symbols:
        """Those of the options ``symbols`` (``leave_out`` or ``keep``) and ``nlsyms`` (a file, a symbol per line).

        Raises:
            UserError: another way; a file that is missing, not UTF-8, or empty.
        """
        if way not in WAYS:
            raise UserError(f"symbols={way}: it must be {' or '.join(WAYS)}", 2)
        if not str(file):
            return cls(way == "keep")
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise UserError(f"nlsyms={file} can't be read ({error.strerror}): give a file with a symbol per line",
                            2) from None
        except UnicodeDecodeError as error:
            raise UserError(f"nlsyms={file} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
        own = [line.strip() for line in lines if line.strip()]
        if not own:
            raise UserError(f"nlsyms={file} is empty: it must have a symbol per line")
        return cls(way == "keep", own)

    def split(self, text: str) -> list[str]:
        """``text``, which is in NFKC, as what was said and names of symbols by turns: ``["hello ", "NOISE", " you"]``.

        It begins and ends with what was said, which may be empty.
        """
        parts, last = [""], 0
        for found in self._pattern.finditer(text):
            parts[-1] += text[last:found.start()]
            last = found.end()
            if name := self._name(found[0]):
                parts += [name, ""]
            elif said := _WORDS_SAID.fullmatch(found[0][1:-1].strip()):
                parts[-1] += f" {said[1]} "
            else:
                parts[-1] += found[0]
        parts[-1] += text[last:]
        return parts

    def count(self, text: str | None) -> Counter[str]:
        """How often each symbol is in ``text``, by the spelling in which it would be kept."""
        names = self.split(unicodedata.normalize("NFKC", text or ""))[1::2]
        return Counter(f"<{name}>" for name in names)

    def unlisted(self, text: str | None) -> list[str]:
        """What stands in ``text`` as symbols do, and is on no list: ``<one_word>``, ``[one_word]``, ``{one_word}``."""
        return [found for found in _BRACKETED.findall(unicodedata.normalize("NFKC", text or ""))
                if re.fullmatch(r"[<\[{][A-Za-z][\w-]*[>\]}]", found) and not self._name(found)
                and not _WORDS_SAID.fullmatch(found[1:-1])]

    def _name(self, found: str) -> str | None:
        """``[Lip smack]`` -> ``LIP_SMACK``; None for what is no symbol."""
        if own := self._own.get(_plain(found)):
            return own
        name = re.sub(r"[\s_-]+", "_", found[1:-1].strip()).lower()
        known = _SOUNDS if found[0] == "(" else _ALL if found[0] == "<" else _SOUNDS | _MARKS | _CHINESE.keys()
        return _CHINESE.get(name, name).upper() if name in known else None


_ALL = _SOUNDS | _MARKS | _ANGLES | _CHINESE.keys()


def _plain(symbol: str) -> str:
    return unicodedata.normalize("NFKC", symbol).casefold()


LEAVE_OUT, KEEP = Symbols(), Symbols(keep=True)
KEPT = re.compile(r"<[^<>\s]+>")  # a kept symbol in normalised text, in which nothing else has such brackets
