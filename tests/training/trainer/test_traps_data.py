"""Mistakes that trainers are known to make with text and tokens, each by its number in our list of
traps. Trap 7, truncation, is in test_shorten.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from labeling.chat import prompt_ids, response_text
from tests.training.trainer.builders import TEMPLATE, make_tokenizer
from tests.training.trainer.test_data import (
    END,
    TALK,
    TOKENIZER,
    USER,
    only,
    prepared,
    row,
    text_of,
)
from training.trainer.data import encode_response

# --- trap 3: BOS and EOS, double or missing -------------------------------------------------


@pytest.mark.parametrize("spelled", ["{{ bos_token }}", ""])
def test_trap_3_one_bos_at_most_and_the_end_token_once(spelled):
    tokenizer = make_tokenizer(bos_token="<|bos|>")
    tokenizer.chat_template = spelled + TEMPLATE
    group = only(prepared(row("yes", "no"), tokenizer=tokenizer))
    assert group.prompt.count(tokenizer.bos_token_id) == bool(spelled)
    for response in group.responses:
        assert tokenizer.bos_token_id not in response
        assert response.count(END) == 1
        assert response[-1] == END


TURN = "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
EACH_TURN = "{% for m in messages %}" + TURN + "{% endfor %}"
TEMPLATES = {
    "plain": EACH_TURN + ASK,
    "bos": "{{ bos_token }}" + EACH_TURN + ASK,
    "newlines": EACH_TURN.replace("<|end|>", "<|end|>\n") + ASK.replace("ant|>", "ant|>\n"),
    "trims": "{{ bos_token }}" + EACH_TURN.replace("'content']", "'content'] | trim") + ASK,
    "ends in a space": EACH_TURN.replace("|>{{", "|> {{") + ASK.replace("ant|>", "ant|> "),
    "thinks when asked": EACH_TURN + ASK.replace("ant|>", "ant|>(think)"),
    "thinks when answered": EACH_TURN.replace(
        "{{ m['c", "{{ '(no)' if m['role'] == 'assistant' }}{{ m['c"
    )
    + ASK,
    "ends with more": EACH_TURN
    + "{% if not add_generation_prompt %}<|end|>(over){% endif %}"
    + ASK,
    "words for roles": EACH_TURN.replace("<|{{ m['role'] }}|>", "{{ m['role'] }}: ")
    + ASK.replace("<|assistant|>", "assistant: "),
    "one system": "{% if messages[0]['role'] != 'system' %}<|system|>be kind<|end|>{% endif %}"
    + EACH_TURN
    + ASK,
    "no end after answers": EACH_TURN.replace(
        "<|end|>", "{{ '<|end|>' if m['role'] != 'assistant' }}"
    )
    + ASK,
}


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_trap_3_over_many_templates_one_bos_one_end_and_nothing_after_it(template, adds_bos):
    tokenizer = make_tokenizer(bos_token="<|bos|>")
    tokenizer.chat_template = template
    bos = tokenizer.bos_token_id
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
        )
        assert tokenizer.encode("yes")[0] == bos
    texts = ["yes, the answer", "no"]
    group = only(prepared(row(*texts), tokenizer=tokenizer))
    assert group.prompt.count(bos) == ("bos_token" in template or adds_bos)
    assert bos not in group.prompt[1:]
    for response, text in zip(group.responses, texts, strict=True):
        assert bos not in response
        assert text_of(response) == text
        assert response.index(END) == len(response) - 1


# --- trap 4: joint and separate tokenization ------------------------------------------------


def test_trap_4_the_sampled_ids_are_trained_on_although_encoding_would_merge_them():
    apart = [*(TOKENIZER.convert_tokens_to_ids(c) for c in "the"), END]
    assert TOKENIZER.encode("the", add_special_tokens=False) != apart[:-1]
    ids, source = encode_response(TOKENIZER, USER, id="r", text="the", token_ids=apart)
    assert (list(ids), source) == (apart, "sampled")


@pytest.mark.parametrize("wrong", [[1, 2, 3], [10**6], [], [0, 0]])
def test_trap_4_ids_that_do_not_spell_the_text_are_not_believed(wrong):
    ids, source = encode_response(TOKENIZER, USER, id="r", text="the", token_ids=wrong)
    assert (text_of(ids), source) == ("the", "encoded")


@settings(max_examples=50, deadline=None)
@given(text=st.text(min_size=1, max_size=30))
def test_trap_4_every_text_keeps_its_letters(text):
    ids, _source = encode_response(TOKENIZER, USER, id="r", text=text, token_ids=None)
    assert text_of(ids) == text
    assert ids.index(END) == len(ids) - 1


@settings(max_examples=100, deadline=None)
@given(
    body=st.lists(st.integers(5, len(TOKENIZER) - 1), min_size=1, max_size=20), ended=st.booleans()
)
def test_trap_4_the_ids_trained_are_the_ids_sampled(body, ended):
    """Whatever the policy sampled, also what no encoder would give for that text."""
    text = response_text(TOKENIZER, body)
    sampled = [*body, END] if ended else body
    ids, source = encode_response(TOKENIZER, USER, id="r", text=text, token_ids=sampled)
    assert (list(ids), source) == (sampled, "sampled" if ended else "cut")


# --- trap 5: the generation prompt ----------------------------------------------------------


def test_trap_5_the_prompt_ends_with_the_assistants_header_and_is_what_the_sampler_fed():
    group = only(prepared(row("yes", "no")))
    assert list(group.prompt) == prompt_ids(TOKENIZER, USER)
    assert group.prompt[-1] == TOKENIZER.convert_tokens_to_ids("<|assistant|>")


def test_trap_5_a_header_that_only_the_generation_prompt_has_stays_in_the_prompt():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|>th{% endif")
    group = only(prepared(row("yes", "no"), tokenizer=tokenizer))
    assert tokenizer.decode(group.prompt).endswith("<|assistant|>th")
    assert sorted(map(text_of, group.responses)) == ["no", "yes"]


# --- trap 6: string surgery -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "\n\nyes\n",
        "  yes  ",
        "\tyes\r\n",
        "user: hi assistant:",
        "<|end|>",
        "a<|end|><|user|>b<|assistant|>",
        "h\u00e9 \u4f60\u597d \U0001f642",
        "e\u0301 \u200b\ufeff",
        "hi",
    ],
)
def test_trap_6_a_response_is_trained_on_letter_for_letter(text):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['content'] | trim")
    for each in (TOKENIZER, tokenizer):
        group = only(prepared(row(text, "no"), tokenizer=each))
        assert text_of(group.responses[0]) == text


# --- trap 20: what is the prompt, and what the response --------------------------------------


def test_trap_20_earlier_answers_belong_to_the_prompt_and_only_the_last_is_trained_on():
    group = only(prepared(row("yes", "no", prompt=TALK)))
    assert list(group.prompt) == prompt_ids(TOKENIZER, TALK)
    assert all(m["content"] in TOKENIZER.decode(group.prompt) for m in TALK)
    assert sorted(map(text_of, group.responses)) == ["no", "yes"]


def test_trap_20_what_responses_share_stays_in_each_of_them():
    """A common start is no prompt: the policy wrote it, and its logp counts."""
    group = only(prepared(row("I would say yes", "I would say no")))
    assert list(group.prompt) == prompt_ids(TOKENIZER, USER)
    assert all(text_of(ids).startswith("I would say ") for ids in group.responses)
