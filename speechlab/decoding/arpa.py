"""Any ARPA language model, with a recogniser's token ids, scored in arrays.

A backoff model is a graph. A state is a context that the file knows. An arc is an n-gram (context, token) with its
probability. A state that lacks a token asks its fallback, the context without its first token, and pays with its
backoff weight. All arcs stand in one array, sorted by ``state * V + token``; states are numbered by order, and arc a of
a lower order leads to the state a + 1. Looking up thousands of (state, token) is then a few numpy operations.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from speechlab.decoding.arpa_file import Section, read_sections
from speechlab.errors import UserError

_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))


class ArpaLM:
    """p(token | context) for batches of states and tokens.

    Token ids are the recogniser's; 0, its blank, is the boundary: ``<s>`` in a context and ``</s>`` as a next token.
    States are integers without any other meaning.

    Args:
        units: the recogniser's units in the order of ids; the first, blank, is no word.
        sections: the n-grams by order.
        where: what messages call the model.
    Raises:
        UserError: where an n-gram stands twice, or its context does not stand in the file.
    """

    def __init__(self, units: Sequence[str], sections: Sequence[Section], where: str = "language model"):
        self.units, self.order = list(units), len(sections)
        graph = _Graph(sections[0], len(self.units), self.order)
        for section in sections[1:]:
            graph.add(section, where)
        self._first = graph.first_arcs()
        proper = graph.proper(self._first)
        self._start, self._follow = int(proper[1]), proper[graph.follow]
        self._chains, self._paid = graph.chains(proper)
        self._keys = np.append(graph.keys, np.iinfo(np.int64).max)  # what an empty slot points to is no key
        self._log_probs = graph.log_probs.astype(np.float32)
        self._table, self._shift = _cuckoo(graph.keys)
        self._none = len(graph.keys)

    @classmethod
    def read(cls, path: str | Path, units: Sequence[str]) -> ArpaLM:
        """Read an ARPA file (gzipped where it ends in .gz).

        N-grams with words that are no units are left out. A unit that the file lacks gets the probability of ``<unk>``,
        or of the file's least probable word where there is no ``<unk>``.

        Raises:
            UserError: naming the line, for a file that is broken or no ARPA file; for a model over other units.
        """
        path = Path(path)
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
                return cls(units, read_sections(file, units, str(path)), str(path))
        except FileNotFoundError:
            raise UserError(f"no language model {path}") from None
        except (gzip.BadGzipFile, EOFError) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}") from None

    def __len__(self) -> int:
        """The number of n-grams, 1-grams included."""
        return self._none

    def start(self, n: int) -> np.ndarray:
        """``(n,)`` states at the beginning of a sentence, int64."""
        return np.full(n, self._start)

    def step(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Natural log p(token | state), float64, and the states after the tokens; all ``(N,)``."""
        log_probs, arcs = self.score(np.asarray(states, np.int64), np.asarray(tokens, np.int64))
        return log_probs, self._follow[arcs]

    def score(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`step`, but with arcs instead of the next states; :meth:`follow` gives the states of some arcs."""
        keys = np.multiply(self._chains.take(states, axis=1), len(self.units), dtype=np.int64)
        keys += tokens
        found = self._find(keys)
        arcs = tokens.copy()  # the empty state's arc for token a is arc a
        level = np.full(len(arcs), self.order - 1)
        for number in reversed(range(self.order - 1)):  # the longest context has the last word
            known = found[number] != self._none
            np.copyto(arcs, found[number], where=known)
            np.copyto(level, number, where=known)
        level += states * self.order
        return self._paid.take(level) + self._log_probs.take(arcs).astype(np.float64), arcs

    def follow(self, arcs: np.ndarray) -> np.ndarray:
        """The states that arcs lead to."""
        return self._follow[arcs]

    def step_all(self, states: np.ndarray) -> np.ndarray:
        """Natural log p of every next token, ``(N, V)`` float32, from states ``(N,)``; column 0 is ``</s>``."""
        states, inverse = np.unique(states, return_inverse=True)
        paid = self._paid[states]
        table = paid[:, -1:] + self._log_probs[: len(self.units)]
        for number in reversed(range(self.order - 1)):
            known = self._chains[number, states]
            first = self._first[known]
            count = np.where(known > 0, self._first[known + 1] - first, 0)
            rows = np.repeat(np.arange(len(known)), count)
            arcs = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count) + first[rows]
            table[rows, self._keys[arcs] % len(self.units)] = paid[rows, number] + self._log_probs[arcs]
        return table[inverse]

    def final(self, states: np.ndarray) -> np.ndarray:
        """Natural log p(``</s>`` | state), ``(N,)``."""
        return self.score(states, np.zeros_like(states))[0]

    def log_probabilities(self, sequences: Iterable[Sequence[int]]) -> np.ndarray:
        """Natural log probability of each whole sequence of tokens with its end, ``(N,)``."""
        sequences = list(map(list, sequences))
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))  # the longest stay in front
        sizes = np.array([len(sequences[i]) for i in order], dtype=np.int64)
        states, totals = self.start(len(order)), np.zeros(len(order))
        for position in range(int(sizes.max(initial=0))):
            active = int((sizes > position).sum())
            tokens = np.array([sequences[i][position] for i in order[:active]], dtype=np.int64)
            log_probs, states[:active] = self.step(states[:active], tokens)
            totals[:active] += log_probs
        answers = np.empty(len(order))
        answers[order] = totals + self.final(states)
        return answers

    def perplexity(self, sequences: Iterable[Sequence[int]]) -> float:
        """Perplexity per token, with the ends of sentences counted as tokens. NaN without any sequence."""
        lines = list(map(list, sequences))
        count = sum(map(len, lines)) + len(lines)
        return math.exp(-self.log_probabilities(lines).sum() / count) if lines else math.nan

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """The arcs of keys (any shape), ``_none`` where there is none.

        Looking in both slots of each key takes as long as bisection with ten thousand n-grams, and a fifth of its time
        with a million.
        """
        one, other = (self._table.take(slots) for slots in _slots(keys, self._shift))
        other = np.where(self._keys.take(other) == keys, other, self._none)
        return np.where(self._keys.take(one) == keys, one, other)


def load(folder: str | Path, units: Sequence[str]) -> ArpaLM:
    """The language model of ``data/<corpus>/lm-<hash>`` for a recogniser of these units.

    An ARPA file is taken too (``lm.arpa`` of such a folder, or one that another tool made over the same units).

    Raises:
        UserError: where it is not there, is broken, or is over other units.
    """
    folder, file = Path(folder), "lm.arpa"
    if folder.is_file():
        if not (folder.parent / "lm.json").is_file() or folder.name != file:
            return ArpaLM.read(folder, units)  # which looks at its words
        folder = folder.parent
    elif not folder.exists():
        raise UserError(f"no language model {folder}: the recipe's stage 3 makes one (data/*/*/lm-*)")
    try:
        theirs = json.loads((folder / "lm.json").read_text(encoding="utf-8"))["units"]
    except FileNotFoundError:
        raise UserError(f"no {folder / 'lm.json'}: run the recipe's language model stage") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'lm.json'} does not describe a language model: make it again") from None
    if theirs != list(units):
        raise UserError(f"the language model in {folder} is over other units ({len(theirs)}) than the recogniser's "
                        f"({len(units)}): make it with the token list that the recogniser was trained with")
    return ArpaLM.read(folder / file, units)


class _Graph:
    """The states (S) and arcs (A) of a backoff model over V tokens, built order by order.

    keys: (A,) state * V + token of each arc, ascending. log_probs: (A,) of the arcs. follow: (A,) states that the arcs
    lead to. backoffs: (S,) weights. fallbacks: (S,) each state's context without its first token.
    """

    def __init__(self, section: Section, size: int, order: int):
        """The 1-grams: the empty state 0 with an arc for each token, 0 ... V - 1, to the states 1 ... V."""
        tokens = section.ids[:, 0]
        self.size, self.order, self.reached = size, order, 1
        self.keys, self.log_probs = np.arange(size), np.empty(size)
        self.log_probs[tokens] = section.log_probs
        self.follow, self.fallbacks = 1 + np.arange(size), np.zeros(1 + size, np.int64)
        self.backoffs = np.zeros(1 + size)
        if order > 1:  # an n-gram of the highest order is no context
            self.backoffs[1 + tokens] = section.backoffs

    def add(self, section: Section, where: str) -> None:
        """Add the n-grams (n, order) of the next order: n arcs and, but for the highest order, n states."""
        self.reached += 1
        contexts = self._contexts(section, where)
        keys = contexts * self.size + section.ids[:, -1]
        rank = np.argsort(keys, kind="stable")
        keys = keys[rank]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise UserError(f"{where}, line {section.lines[rank[twice[0] + 1]]}: this n-gram stands in it twice")
        shorter = self._suffixes(contexts[rank], section.ids[rank, -1])
        if self.reached < self.order:
            self.follow = np.concatenate([self.follow, 1 + len(self.keys) + np.arange(len(rank))])
            self.fallbacks = np.concatenate([self.fallbacks, shorter])
            self.backoffs = np.concatenate([self.backoffs, section.backoffs[rank]])
        else:  # these are no contexts: the longest known one follows
            self.follow = np.concatenate([self.follow, shorter])
        self.keys = np.concatenate([self.keys, keys])
        self.log_probs = np.concatenate([self.log_probs, section.log_probs[rank]])

    def _contexts(self, section: Section, where: str) -> np.ndarray:
        """The state of each n-gram without its last token, (n,): found token by token from the empty state."""
        states = 1 + section.ids[:, 0]
        for column in range(1, self.reached - 1):
            states = 1 + _search(self.keys, states * self.size + section.ids[:, column])
            if not states.all():
                line = section.lines[np.argmin(states)]
                raise UserError(f"{where}, line {line}: the context of this {self.reached}-gram is not in the file")
        return states

    def _suffixes(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The state of the longest known suffix, the first token dropped, of each n-gram (context, token); all (n,)."""
        answers = 1 + tokens  # the token alone; after </s>, which nothing follows, any state will do
        contexts = self.fallbacks[contexts]
        left = np.flatnonzero(contexts)
        while len(left):
            found = _search(self.keys, contexts[left] * self.size + tokens[left])
            answers[left[found >= 0]] = 1 + found[found >= 0]
            left = left[found < 0]
            contexts[left] = self.fallbacks[contexts[left]]
            left = left[contexts[left] > 0]
        return answers

    def first_arcs(self) -> np.ndarray:
        """(S + 1,): state s has the arcs first[s] ... first[s + 1] - 1."""
        return np.searchsorted(self.keys, np.arange(len(self.fallbacks) + 1) * self.size)

    def proper(self, first: np.ndarray) -> np.ndarray:
        """(S,): for each state the one to use in its place; ``first`` as :meth:`first_arcs` gives it.

        A state without an arc and with a backoff weight of 1 is its fallback under another name.
        """
        needed = (np.diff(first) > 0) | (self.backoffs != 0)
        proper = np.arange(len(self.fallbacks))
        for _ in range(self.order - 1):  # each round, one token shorter
            proper = np.where(needed[proper], proper, self.fallbacks[proper])
        return proper

    def chains(self, proper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every state, its fallback, that one's fallback..., (order - 1, S), and the log of the backoff weights paid on
        the way there, (S, order). The last one, the empty state, knows every token: it is paid for but not written.
        """
        chain, paid = [np.arange(len(proper))], [np.zeros(len(proper))]
        for _ in range(self.order - 1):
            paid.append(paid[-1] + self.backoffs[chain[-1]])
            chain.append(proper[self.fallbacks[chain[-1]]])
        return np.stack(chain)[:-1].astype(np.int32), np.stack(paid, 1).astype(np.float32)  # small: the cache holds it


def _search(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of ``wanted`` in the sorted ``keys``, -1 where absent."""
    at = np.searchsorted(keys, wanted)
    return np.where(keys[np.minimum(at, len(keys) - 1)] == wanted, at, -1)


def _slots(keys: np.ndarray, shift: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """The two slots of each key: the upper bits of its products with two odd constants (Knuth, TAOCP 3, 6.4)."""
    keys = keys.view(np.uint64)
    return (keys * _ODD[0] >> shift).view(np.int64), (keys * _ODD[1] >> shift).view(np.int64)


def _cuckoo(keys: np.ndarray) -> tuple[np.ndarray, np.uint64]:
    """A hash table by cuckoo hashing (Pagh & Rodler 2004), filled with all keys at once.

    Returns:
        The table, in which the position of each key in ``keys`` is in one of the key's two slots and an empty slot has
        ``len(keys)``; and the shift for :func:`_slots`. A key that is thrown out of one slot goes to its other.
    """
    size = len(keys)
    bits = max(4, math.ceil(math.log2(2.2 * size)))  # two slots per key are too few in a table over half full
    while True:
        shift = np.uint64(64 - bits)
        slots = np.stack(_slots(keys, shift))
        table = np.full(1 << bits, size, np.int64 if size >= 2**31 else np.int32)
        chosen, left = np.zeros(size, np.int8), np.arange(size)
        for _ in range(100):  # a dozen rounds are enough, unless the table is too small
            wanted = slots[chosen[left], left]
            thrown = table[wanted]
            table[wanted] = left  # of several keys that want a slot, one gets it
            left = np.concatenate([left[table[wanted] != left], np.unique(thrown[thrown < size])])
            if not len(left):
                return table, shift
            chosen[left] ^= 1
        bits += 1
