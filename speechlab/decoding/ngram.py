"""A small n-gram language model and the search that picks one candidate a position by it.

Interpolated Kneser-Ney (Kneser & Ney 1995; the interpolated form of Chen & Goodman 1999) with one discount an order,
n1 / (n1 + 2 n2). Meant for thousands of sentences: it is plain dictionaries, and a person can read all of it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"


class NGram:
    """p(token | the ``order - 1`` tokens before it) over a closed vocabulary: training's, ``</s>`` and ``<unk>``.

    Args:
        sentences: token sequences; a plain string counts as its characters. Empty ones are passed over.
        order: 1 or more; 3 is a trigram.
    """

    def __init__(self, sentences: Iterable[Sequence[str]], order: int = 3):
        if order < 1:
            raise ValueError(f"order {order}: an n-gram has an order of 1 or more")
        self.order = order
        counts = [Counter() for _ in range(order)]  # counts[k]: (k+1)-grams as they stand in the text
        for sentence in sentences:
            if not len(sentence):
                continue
            padded = (BEGIN, *sentence, END)
            for size in range(1, order + 1):
                counts[size - 1].update(zip(*(padded[offset:] for offset in range(size))))
        if not counts[0]:
            raise ValueError("no sentence to estimate a language model from")
        self.vocabulary = {gram[0] for gram in counts[0]} - {BEGIN} | {END, UNKNOWN}

        self._counts: list[dict] = []  # by order: adjusted count of a gram
        self._totals: list[dict] = []  # by order: a context's sum of adjusted counts, and its number of followers
        self._discounts: list[float] = []
        for size in range(1, order + 1):
            adjusted = counts[size - 1]
            if size < order:
                # Lower orders count in how many contexts a gram was seen, not how often. Nothing can stand before <s>,
                # so grams that begin with it keep their plain count.
                adjusted = Counter(gram[1:] for gram in counts[size])
                adjusted.update({gram: count for gram, count in counts[size - 1].items() if gram[0] == BEGIN})
            adjusted.pop((BEGIN,), None)  # never predicted
            totals: dict = defaultdict(lambda: [0, 0])
            for gram, count in adjusted.items():
                totals[gram[:-1]][0] += count
                totals[gram[:-1]][1] += 1
            once, twice = (sum(count == times for count in adjusted.values()) for times in (1, 2))
            self._counts.append(dict(adjusted))
            self._totals.append({context: tuple(pair) for context, pair in totals.items()})
            # A text too small for the estimate (no gram seen just once, or none twice) gets a middling discount.
            self._discounts.append(once / (once + 2 * twice) if once and twice else 0.5)

    def probability(self, token: str, context: Sequence[str] = ()) -> float:
        """p(token | context), over 0 for every token; unknown ones have ``<unk>``'s. Sentences begin with ``<s>``."""
        token = token if token in self.vocabulary else UNKNOWN
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        p = 1.0 / len(self.vocabulary)
        for size in range(1, len(context) + 2):
            history = context[len(context) + 1 - size :]
            if history not in self._totals[size - 1]:
                break  # nor can a longer history be known
            total, followers = self._totals[size - 1][history]
            count = self._counts[size - 1].get((*history, token), 0)
            discount = self._discounts[size - 1]
            p = (max(count - discount, 0.0) + discount * followers * p) / total
        return p

    def log_probability(self, sentence: Sequence[str]) -> float:
        """Natural log probability of a whole sentence with its end."""
        padded = (BEGIN, *sentence, END)
        return sum(math.log(self.probability(padded[i], padded[:i])) for i in range(1, len(padded)))

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Per token, ends of sentences counted as tokens."""
        total = tokens = 0.0
        for sentence in sentences:
            total += self.log_probability(sentence)
            tokens += len(sentence) + 1
        return math.exp(-total / tokens)


def choose(model: NGram, candidates: Sequence[Sequence[str]], beam: int = 200) -> tuple[list[str], float]:
    """The most probable sentence that takes one candidate at each position (Viterbi over contexts, beam-pruned).

    Args:
        model: the language model.
        candidates: for each position, the tokens it may be; none of them empty.
        beam: contexts kept after each position; 0 keeps all, which makes the answer exact.

    Returns:
        The tokens and their natural log probability, ``</s>`` included.
    """
    # A state is what the model can still see; of two ways into one state only the better can win.
    states: dict[tuple, tuple[float, tuple]] = {(BEGIN,) if model.order > 1 else (): (0.0, ())}
    for position, options in enumerate([*candidates, (END,)]):
        if not options:
            raise ValueError(f"no candidate at position {position}")
        reached: dict[tuple, tuple[float, tuple]] = {}
        for context, (score, back) in states.items():
            for token in options:
                new = score + math.log(model.probability(token, context))
                state = (*context, token)[-(model.order - 1) :] if model.order > 1 else ()
                if state not in reached or new > reached[state][0]:
                    reached[state] = (new, (back, token))
        if beam and len(reached) > beam:
            reached = dict(heapq.nlargest(beam, reached.items(), key=lambda item: item[1][0]))
        states = reached
    score, back = max(states.values(), key=lambda item: item[0])
    tokens: list[str] = []
    while back:
        back, token = back
        tokens.append(token)
    return tokens[:0:-1], score
