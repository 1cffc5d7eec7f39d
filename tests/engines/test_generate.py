"""Generation: the cache changes nothing, a seed repeats, text is never split, and the loss is the model's
own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from medley.engines.generate import PREFILL_TOKENS, Generator
from medley.engines.sampling import Sampling, draw, logprob, uniform
from medley.engines.text import TextStream
from medley.engines.wording import Request, plain_prompt
from medley.protocol.errors import UserError

CORPUS = ["Question: What is fever?\nAnswer: A raised body temperature, often above 38 °C. Drink water 😀."] * 4


def byte_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def tiny_model(family: str, context: int = 600) -> LlamaForCausalLM | OPTForCausalLM:
    torch.manual_seed(1)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            bos_token_id=0,
            eos_token_id=1,
        )
        return LlamaForCausalLM(config).eval()
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=300,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=context,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


@pytest.fixture(scope="module", params=["llama", "opt"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return Generator.of(tiny_model(request.param), byte_tokenizer(), request.param)


@pytest.fixture(scope="module")
def llama() -> Generator:
    return Generator.of(tiny_model("llama"), byte_tokenizer(), "tiny")


def greedy_without_cache(generator: Generator, prompt: tuple[int, ...], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            logits = generator.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [5, PREFILL_TOKENS + 3])
def test_cache_and_chunked_prefill_change_nothing(generator: Generator, length: int) -> None:
    prompt = tuple(int(i) for i in np.random.default_rng(0).integers(2, 300, length))
    done = generator.complete(Request(prompt, Sampling(max_tokens=12, logprobs=0)))
    expected = greedy_without_cache(generator, prompt, 12)
    got = [t.token for t in done.tokens]
    assert got == expected[: len(got)]
    assert len(got) == 12 or expected[len(got)] in generator.ends


def test_seed_repeats_and_choices_differ(llama: Generator) -> None:
    prompt = llama.prompt_tokens("What is fever?")
    answer = {
        (seed, choice): llama.complete(
            Request(prompt, Sampling(max_tokens=16, temperature=1.0, seed=seed, choice=choice))
        ).text
        for seed in (7, 8)
        for choice in (0, 1)
    }
    again = llama.complete(Request(prompt, Sampling(max_tokens=16, temperature=1.0, seed=7)))
    assert again.text == answer[7, 0]
    assert len(set(answer.values())) == 4


def test_continuing_from_tokens_already_sent_draws_the_same(llama: Generator) -> None:
    prompt = llama.prompt_tokens("What is fever?")
    sampling = Sampling(max_tokens=10, temperature=1.0, seed=3, logprobs=0)
    whole = [t.token for t in llama.complete(Request(prompt, sampling)).tokens]
    resumed = llama.complete(Request((*prompt, *whole[:4]), Sampling(6, temperature=1.0, seed=3, logprobs=0)))
    assert [t.token for t in resumed.tokens] == whole[4:]


def test_pieces_join_to_the_decoded_whole(llama: Generator) -> None:
    prompt = llama.prompt_tokens("What is fever?")
    request = Request(prompt, Sampling(max_tokens=80, temperature=1.5, seed=5, logprobs=0))
    pieces = list(llama.stream(request))
    tokens = [t.token for p in pieces for t in p.tokens]
    assert "".join(p.text for p in pieces) == llama.decode(tokens)
    assert pieces[-1].finish in {"length", "stop"}


def test_question_longer_than_the_context_is_refused(llama: Generator) -> None:
    with pytest.raises(UserError, match="context of 600 tokens"):
        llama.prompt_tokens("fever " * 2000)


def test_answer_stops_at_the_end_of_the_context(llama: Generator) -> None:
    prompt = tuple([5] * 597)
    done = llama.complete(Request(prompt, Sampling(max_tokens=50)))
    assert done.finish == "length" and done.generated == 3


def test_answer_loss_is_the_models_own(generator: Generator) -> None:
    prompt, answer = (5, 6, 7, 8), (9, 10, 11)
    labels = torch.tensor([[-100] * 4 + list(answer)])
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *answer]])
        expected = generator.model(input_ids=ids, labels=labels).loss * 3
    loss, count = generator.answer_loss(prompt, answer)
    assert count == 3 and loss == pytest.approx(float(expected), rel=1e-5)


def test_loads_what_transformers_saved(tmp_path: Path, llama: Generator) -> None:
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    loaded = Generator.load(tmp_path, "fp32")
    request = Request(llama.prompt_tokens("What is fever?"), Sampling(max_tokens=8))
    assert loaded.complete(request) == llama.complete(request)


def test_loads_an_adapter_on_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    loaded = Generator.load(tmp_path / "adapter", "fp32")
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "sentence"), [(None, "does not name the model"), ("nobody/nothing", "cannot be reached")]
)
def test_adapter_without_its_base_is_one_sentence(
    tmp_path: Path, base: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UserError, match=sentence):
        Generator.load(tmp_path)


def test_damaged_weights_are_one_sentence(tmp_path: Path, llama: Generator) -> None:
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="could not be loaded"):
        Generator.load(tmp_path)


def test_missing_weights_are_never_drawn_at_random(tmp_path: Path, llama: Generator) -> None:
    from safetensors.torch import load_file, save_file

    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="incomplete: 1 are missing"):
        Generator.load(tmp_path)


def test_weights_that_are_not_numbers_say_so() -> None:
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        Generator.of(broken, byte_tokenizer(), "broken").answer("What?")


def test_plain_template() -> None:
    turns = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "C?"},
    ]
    assert plain_prompt(turns) == "Question: A?\nAnswer: B.\n\nQuestion: C?\nAnswer:"


def test_chat_template_is_used_where_there_is_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    chat = Generator.of(tiny_model("llama"), tokenizer, "chat")
    assert chat.decode(chat.prompt_tokens("Hi")) == "[user]Hi[assistant]"
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match="no system here"):
        chat.prompt_tokens("Hi")


def test_text_is_never_split_inside_a_character() -> None:
    data = "é😀 ok 漢字".encode()
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    pieces = [stream.push(b) for b in data]
    assert "".join(pieces) == data.decode()
    assert not any("\ufffd" in p for p in pieces)


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    assert [stream.push(b) for b in b"a\xf0\x9f"] == ["a", "", ""]
    assert stream.finish() == "\ufffd"


def test_stop_string_across_tokens_is_not_shown() -> None:
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), ["\nQ:"])
    shown = "".join(stream.push(b) for b in b"yes\nno\nQ: more")
    assert shown == "yes\nno" and stream.stopped and stream.finish() == ""


def test_what_only_looked_like_a_stop_is_shown() -> None:
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), ["END"])
    assert "".join(stream.push(b) for b in b"the E") == "the "
    assert stream.finish() == "E"


def test_uniform_is_a_function_of_its_key() -> None:
    assert uniform(1, 0, 5) == uniform(1, 0, 5)
    assert len({uniform(1, 0, 5), uniform(2, 0, 5), uniform(1, 1, 5), uniform(1, 0, 6)}) == 4
    assert abs(np.mean([uniform(9, 0, p) for p in range(2000)]) - 0.5) < 0.03


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-9])
def test_next_to_no_temperature_draws_the_likeliest(temperature: float) -> None:
    logits = np.array([1.0, 5.0, 3.0, 2.0], np.float32)
    for top_p in (1.0, 0.9, 0.0):
        assert draw(logits, Sampling(temperature=temperature, top_p=top_p, seed=3), 4) == 1


def test_draw_follows_the_distribution_and_its_bounds() -> None:
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probs).astype(np.float32)
    drawn = [draw(logits, Sampling(temperature=1.0, seed=1), p) for p in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, probs, atol=0.03)
    assert {draw(logits, Sampling(temperature=1.0, top_p=0.79), p) for p in range(300)} == {0, 1}
    assert {draw(logits, Sampling(temperature=1.0, top_k=3), p) for p in range(600)} == {0, 1, 2}
    assert {draw(logits, Sampling(temperature=1.0, top_p=1e-9), p) for p in range(50)} == {0}
    assert draw(logits, Sampling(), 0) == 0


def test_logprob_is_log_softmax() -> None:
    logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    found = logprob(logits, 0, 2)
    expected = torch.log_softmax(torch.tensor(logits), 0)
    assert found.logprob == pytest.approx(float(expected[0]), abs=1e-6)
    assert [i for i, _ in found.top] == [1, 2]
