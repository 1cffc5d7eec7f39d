"""A question and its answer as token windows: what is read, and which tokens are learned.

Promises: the loss sees only answer tokens and the end mark; every answer token is learned exactly once,
however long the answer is; nothing is cut silently.
Leaves to others: how windows share a sequence (`pack`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medley.data.examples import Example
from medley.protocol.errors import UserError

PLAIN = "Question: {question}\nAnswer:"


@dataclass(frozen=True, slots=True)
class Window:
    """`tokens[learned:]` are predicted and scored; `tokens[:learned]` are only read."""

    tokens: tuple[int, ...]
    learned: int

    @property
    def labels(self) -> int:
        return len(self.tokens) - self.learned


def windows(tokenizer: Any, example: Example, context_tokens: int, template: str = "auto") -> list[Window]:
    """Cut one example into windows of at most `context_tokens`.

    A longer example becomes several windows: each repeats the question (shortened to half a window where it
    is longer) and the answer goes on where the window before it ended. Raises `UserError` for a question that
    fills the context.
    """
    prompt, answer = tokens_of(tokenizer, example.question, example.answer, template)
    if len(prompt) >= context_tokens:
        raise UserError(
            f"question '{example.id}' is {len(prompt)} tokens long, but model.context_tokens "
            f"is {context_tokens}; raise it or shorten the question"
        )
    if len(prompt) + len(answer) <= context_tokens:
        return [Window((*prompt, *answer), len(prompt))]
    return _cut(prompt, answer, context_tokens)


def check_questions(tokenizer: Any, examples: Iterable[Example], context_tokens: int, template: str = "auto") -> None:
    """Raise for the first question that fills the context, before anything is trained on it."""
    for example in examples:
        # A byte is a token at worst, so most questions need no tokenizer to be known short.
        if 4 * len(example.question) + 64 >= context_tokens:
            windows(tokenizer, example, context_tokens, template)


def _cut(prompt: Sequence[int], answer: Sequence[int], context_tokens: int) -> list[Window]:
    head = shortened(prompt, max(1, context_tokens // 2))
    size = context_tokens - len(head)
    return [Window((*head, *answer[at : at + size]), len(head)) for at in range(0, len(answer), size)]


def shortened(prompt: Sequence[int], limit: int) -> Sequence[int]:
    """Keep the beginning and the end: the end carries the mark that an answer follows."""
    if len(prompt) <= limit:
        return prompt
    tail = limit // 2
    return (*prompt[: limit - tail], *prompt[len(prompt) - tail :])


def tokens_of(tokenizer: Any, question: str, answer: str, template: str = "auto") -> tuple[list[int], list[int]]:
    """(prompt tokens, answer tokens with the end mark)."""
    prompt_text, answer_text = _texts(tokenizer, question, answer, template)
    prompt, learned = _ids(tokenizer, prompt_text), _ids(tokenizer, answer_text)
    end = tokenizer.eos_token_id
    return prompt, learned if end is None or end in learned[-3:] else [*learned, end]


def prompt_tokens(tokenizer: Any, question: str, template: str = "auto") -> list[int]:
    """What a model trained here wants to read before it answers `question`."""
    return tokens_of(tokenizer, question, "", template)[0]


def chat_template(template: str) -> str:
    """A template as jinja, with which any library asks as the model was trained; '' for 'auto', which is none."""
    if template == "auto":
        return ""
    literals = [json.dumps(part, ensure_ascii=False) for part in _plain(template).split("{question}")]
    asked = " + m['content'] + ".join(literals)
    return (
        "{{ bos_token or '' }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ " + asked + " }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + (eos_token or '') }}"
        "{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    )


def _texts(tokenizer: Any, question: str, answer: str, template: str) -> tuple[str, str]:
    if template == "auto" and getattr(tokenizer, "chat_template", None):
        asked = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        told = [*asked, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(told, tokenize=False)
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
        raise UserError(
            "the tokenizer's chat template changes the question once it is answered; set data.template: plain"
        )
    start = tokenizer.bos_token or ""
    return start + _plain(template).replace("{question}", question), f" {answer}"


def _plain(template: str) -> str:
    if template in ("auto", "plain"):
        return PLAIN
    if "{question}" not in template:
        raise UserError(
            f"data.template '{template}' has no {{question}}; 'auto', 'plain' or a text with it is expected"
        )
    return template


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
