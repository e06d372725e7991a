"""Conversations by chat templates as real models have them: rendered once, and only the assistant is learned."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from trifed.common.errors import ModelError
from trifed.tasks.causal_lm import _chat_tokens
from trifed.tasks.chat import render_conversation

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek-R1: the prompt for an answer opens a block that finished turns do not have.
R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# As Qwen3: an empty block of reasoning stands only in the turns after the last question.
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1].strip() + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Phi-3: the end of the whole text follows the last turn alone.
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
# As Llama-2: no header of the answer, spaces around what is stripped.
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' </s>' }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ASKED_FIRST = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
TURNS = [("user", "one?"), ("assistant", "first"), ("user", "two?"), ("assistant", "second one")]


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture
def tokenizer(tiny_language):
    return AutoTokenizer.from_pretrained(tiny_language(chat=True))


def learned(tokenizer, template, messages):
    tokenizer.chat_template = template
    chat = render_conversation(tokenizer, messages)
    assert chat.text == tokenizer.apply_chat_template(messages, tokenize=False)
    return [chat.text[first:end] for first, end in chat.learned]


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (CHATML, ["first<|im_end|>\n", "second one<|im_end|>\n"]),
        (R1, ["first<|im_end|>\n", "second one<|im_end|>\n"]),
        (QWEN3, ["first<|im_end|>\n", "<think>\n\n</think>\n\nsecond one<|im_end|>\n"]),
        (PHI, ["first<|end|>\n<|", "second one<|end|>\n<|endoftext|>"]),  # no token ends between "<|" and "user"
        (LLAMA2, ["first </s>", "second one </s>"]),
    ],
)
def test_the_assistants_turns_are_learned_with_their_ends(template, parts, tokenizer):
    assert learned(tokenizer, template, talk(*TURNS)) == parts


def test_a_user_who_says_what_the_assistant_says_is_not_learned(tokenizer):
    turns = [("user", "first"), ("assistant", "first"), ("user", "assistant\n"), ("assistant", "first")]
    tokenizer.chat_template = CHATML
    chat = render_conversation(tokenizer, talk(*turns))
    places = [first for first, _ in chat.learned]
    assert places == [chat.text.index("first", 45), chat.text.rindex("first")]


def test_reasoning_that_a_template_drops_from_earlier_turns(tokenizer):
    turns = [("user", "a"), ("assistant", "<think>why</think>b"), ("user", "c"), ("assistant", "d")]
    assert learned(tokenizer, QWEN3, talk(*turns)) == ["b<|im_end|>\n", "<think>\n\n</think>\n\nd<|im_end|>\n"]


@pytest.mark.parametrize("template", [CHATML, R1, QWEN3, LLAMA2])
def test_the_tokens_are_those_of_the_whole_conversation(template, tokenizer):
    tokenizer.chat_template = template
    tokens = _chat_tokens(tokenizer, talk(*TURNS))
    whole = tokenizer.apply_chat_template(talk(*TURNS), tokenize=False)
    assert [token for token, _ in tokens] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    marked = tokenizer.decode([token for token, is_learned in tokens if is_learned])
    assert marked == "".join(learned(tokenizer, template, talk(*TURNS)))


def test_a_tokenizer_that_does_not_tell_places_gives_the_same_tokens(tokenizer, monkeypatch):
    tokenizer.chat_template = QWEN3
    fast = _chat_tokens(tokenizer, talk(*TURNS))
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert _chat_tokens(tokenizer, talk(*TURNS)) == fast


@pytest.mark.parametrize(
    ("template", "turns", "says"),
    [
        (NO_SYSTEM + CHATML, [("system", "be kind"), *TURNS], ["roles system, user", "System role not supported"]),
        (ASKED_FIRST + CHATML, [("assistant", "hello"), *TURNS], ["roles assistant, user", "must alternate"]),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", TURNS, ["does not show message 2"]),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", TURNS, ["does not show message 2"]),
    ],
)
def test_what_a_template_refuses_or_hides_is_refused(template, turns, says, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(ModelError) as error:
        render_conversation(tokenizer, talk(*turns))
    assert all(part in str(error.value) for part in ["model.template", *says])


def test_an_assistant_may_begin(tokenizer):
    turns = [("assistant", "hello"), ("user", "a"), ("assistant", "b")]
    assert learned(tokenizer, CHATML, talk(*turns)) == ["hello<|im_end|>\n", "b<|im_end|>\n"]


def test_a_call_of_a_tool_is_learned_and_its_answer_is_not(tokenizer):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% if m.tool_calls %}[{{ m.tool_calls[0].function.name }}]{% endif %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    turns = [*talk(("user", "a")), call, *talk(("tool", "noon"), ("assistant", "b"))]
    assert learned(tokenizer, template, turns) == ["[now]</s>", "b</s>"]


def test_a_conversation_may_have_characters_for_private_use(tokenizer):
    turns = [("user", "x\ue000y\ue001"), ("assistant", "ok")]
    assert learned(tokenizer, CHATML, talk(*turns)) == ["ok<|im_end|>\n"]
