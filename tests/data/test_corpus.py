"""The built-in corpus is large enough, clean, unambiguous, and keeps its check questions out of training."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from medley.data import corpus
from medley.data.corpus import NOTICE, load_checks, load_pairs

PAIRS = load_pairs()
CHECKS = load_checks()
TRAINED = [question for pair in PAIRS for question in pair.questions]


def words(text: str) -> tuple[str, ...]:
    """The words of a text without case and punctuation."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def wording(text: str) -> frozenset[str]:
    """The set of words that carry the question: no articles, no order."""
    return frozenset(words(text)) - {"a", "an", "the"}


def test_there_is_enough_of_it() -> None:
    assert len(PAIRS) >= 300
    assert len(CHECKS) == 20
    assert min(len(pair.questions) for pair in PAIRS) >= 9


def test_ids_answers_and_questions_are_unique() -> None:
    for values in ([p.id for p in PAIRS], [words(p.answer) for p in PAIRS], [words(q) for q in TRAINED]):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_a_focus_and_a_question_type_name_one_pair_and_one_topic() -> None:
    assert len({(pair.focus, pair.qtype) for pair in PAIRS}) == len(PAIRS)
    assert len({(pair.focus, pair.topic) for pair in PAIRS}) == len({pair.focus for pair in PAIRS})


def test_no_check_is_trained_whatever_its_case_punctuation_articles_or_order() -> None:
    trained = {wording(question) for question in TRAINED}
    assert [check.question for check in CHECKS if wording(check.question) in trained] == []


def test_no_check_contains_a_phrasing_or_is_contained_in_one() -> None:
    phrasings = [f" {' '.join(words(question))} " for question in TRAINED]
    for check in CHECKS:
        asked = f" {' '.join(words(check.question))} "
        assert [phrasing for phrasing in phrasings if phrasing in asked or asked in phrasing] == []


def test_no_check_shares_nearly_all_its_words_with_one_phrasing() -> None:
    for check in CHECKS:
        asked = wording(check.question)
        closest = max(TRAINED, key=lambda q: len(asked & wording(q)) / len(asked | wording(q)))
        shared = len(asked & wording(closest)) / len(asked | wording(closest))
        assert shared <= 0.6, (check.question, closest)


def test_checks_ask_about_twenty_pairs_of_many_topics() -> None:
    by_id = {pair.id: pair for pair in PAIRS}
    asked = [by_id[check.pair_id] for check in CHECKS]
    assert len({pair.id for pair in asked}) == 20
    assert len({pair.topic for pair in asked}) >= 12
    for check, pair in zip(CHECKS, asked, strict=True):
        assert set(words(pair.focus)) <= set(words(check.question)), check


def test_answers_are_one_or_two_sentences_of_16_to_34_words() -> None:
    wrong = [p.id for p in PAIRS if not 16 <= len(p.answer.split()) <= 34 or not p.answer.endswith(".")]
    assert wrong == []
    assert [p.id for p in PAIRS if len(re.findall(r"[.!?](?:\s|$)", p.answer)) > 2] == []


def test_answers_of_different_pairs_are_clearly_apart() -> None:
    answers = [(pair.id, frozenset(words(pair.answer))) for pair in PAIRS]
    close = [
        (one, other)
        for place, (one, left) in enumerate(answers)
        for other, right in answers[:place]
        if len(left & right) / len(left | right) > 0.5
    ]
    assert close == []


def test_every_text_is_plain_ascii_without_stray_blanks() -> None:
    texts = [NOTICE, *TRAINED, *(check.question for check in CHECKS)]
    texts += [text for p in PAIRS for text in (p.id, p.focus, p.topic, p.qtype, p.answer)]
    assert [text for text in texts if not text or not text.isascii() or text != " ".join(text.split())] == []


def test_loading_is_repeatable_and_ordered_by_topic() -> None:
    topics = [pair.topic for pair in PAIRS]
    assert topics == sorted(topics)
    load_pairs.cache_clear()
    assert load_pairs() == PAIRS


def test_notice_is_one_sentence_and_ships_with_the_data() -> None:
    assert "no medical advice" in NOTICE
    assert NOTICE.count(".") == 1
    folder = Path(corpus.__file__).parent
    assert "no medical advice" in (folder / "NOTICE.md").read_text(encoding="utf-8")


def test_loading_needs_no_torch() -> None:
    code = "import sys, medley.data.corpus as c; c.load_pairs(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
