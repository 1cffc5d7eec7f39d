"""Windows: only answers are learned, each answer token once, nothing cut silently."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from medley.data.examples import Example
from medley.data.template import PLAIN, chat_template, check_questions, prompt_tokens, tokens_of, windows
from medley.models.tokenizer import train_tokenizer
from medley.protocol.errors import UserError

TEXT = "a cold is a mild illness of the nose and throat that passes by itself within a week or two"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer([" ".join(WORDS)] * 3, 300, tmp_path_factory.mktemp("tokenizer"))


def example(words: int, question: str = "What is a cold?") -> Example:
    return Example("x", "g", question, " ".join(WORDS[i % len(WORDS)] for i in range(words)))


def test_a_short_example_is_one_window(tokenizer: Any) -> None:
    (window,) = windows(tokenizer, example(8), 256)
    assert tokenizer.decode(window.tokens[: window.learned]) == "<bos><|user|>What is a cold?<|assistant|>"
    assert tokenizer.decode(window.tokens[window.learned :]) == example(8).answer + "<eos>"


@pytest.mark.parametrize("context", [24, 40, 64])
def test_a_long_answer_is_learned_exactly_once(tokenizer: Any, context: int) -> None:
    long = example(90)
    prompt, answer = tokens_of(tokenizer, long.question, long.answer)
    cut = windows(tokenizer, long, context)
    assert len(cut) > 1
    assert all(len(w.tokens) <= context for w in cut)
    assert [t for w in cut for t in w.tokens[w.learned :]] == answer
    assert all(w.tokens[: w.learned][-1] == prompt[-1] for w in cut)


def test_a_question_that_fills_the_context_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"question 'x' is \d+ tokens long, but model.context_tokens is 16"):
        windows(tokenizer, example(3, "why " * 40), 16)
    with pytest.raises(UserError, match="question 'x'"):
        check_questions(tokenizer, [example(3), example(3, "why " * 40)], 24)
    check_questions(tokenizer, [example(3)], 64)


def test_without_a_chat_template_the_plain_text_is_used(tokenizer: Any) -> None:
    prompt, answer = tokens_of(tokenizer, "Why?", "So.", template="plain")
    assert tokenizer.decode(prompt) == "<bos>" + PLAIN.format(question="Why?")
    assert tokenizer.decode(answer) == " So.<eos>"
    assert tokenizer.decode(prompt_tokens(tokenizer, "Why?", "Q {question} A")) == "<bos>Q Why? A"
    with pytest.raises(UserError, match="has no {question}"):
        tokens_of(tokenizer, "Why?", "So.", template="Q A")


def test_braces_in_a_question_are_text(tokenizer: Any) -> None:
    assert "{x}" in tokenizer.decode(prompt_tokens(tokenizer, "What is {x}?", "plain"))


def test_any_input_encodes_and_comes_back(tokenizer: Any) -> None:
    odd = "naïve \x00 \U0001f600 日本 \t end"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd


def test_the_directory_loads_with_plain_transformers(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert prompt_tokens(again, "What is a cold?") == prompt_tokens(tokenizer, "What is a cold?")
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (0, 1, 2)


def test_a_vocabulary_without_room_for_all_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.vocab_size is 100; at least 262"):
        train_tokenizer(["a"], 100, tmp_path)


@pytest.mark.parametrize("template", ["plain", 'Say "{question}"!\nÄ {question} 🙂 {% x %}\n{{y}}\\:'])
def test_a_template_of_the_job_is_written_as_jinja_that_asks_the_same(template: str, tokenizer: Any) -> None:
    trained = tokens_of(tokenizer, "What is a <b>fever</b>?", "It is {heat}.", template)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template(template)
    assert tokens_of(tokenizer, "What is a <b>fever</b>?", "It is {heat}.") == trained


def test_no_template_of_the_job_leaves_the_tokenizers_own() -> None:
    assert chat_template("auto") == ""
