"""What the sampler is fed and the trainer sees, over families of chat templates."""

import gc
import re
import time
import weakref
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from labeling import chat  # noqa: E402
from labeling.chat import (  # noqa: E402
    ChatError,
    Message,
    Role,
    check_prompt_messages,
    end_token_ids,
    prompt_ids,
    response_ids,
    response_text,
)
from tests.chat_templates import (  # noqa: E402
    FAMILIES,
    Family,
    make_tokenizer,
    tokenizer_of,
)

SYSTEM = Message(role="system", content="be kind")
TALK = [
    Message(role="user", content="first"),
    Message(role="assistant", content="one"),
    Message(role="user", content="second"),
]
TAKING_SYSTEM = [name for name, family in FAMILIES.items() if family.system == "kept"]

every_family = pytest.mark.parametrize("name", FAMILIES)
quick = settings(max_examples=60, deadline=None)
fragments = st.sampled_from(
    ["\n", " ", "the", "<|", "|>", "im_end", "</", "s>", "[INST", "user", "é"]
)
some_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40),
    st.lists(fragments, max_size=8).map("".join),
).filter(lambda text: bool(text.strip()))


def spells_a_token(text: str) -> bool:
    return any(token in text for family in FAMILIES.values() for token in family.tokens)


harmless = some_text.filter(lambda text: not spells_a_token(text))
tidy = harmless.map(str.strip)


@st.composite
def conversations(draw: st.DrawFn, texts: st.SearchStrategy[str] = harmless) -> list[Message]:
    """User and assistant in turns, up to a user's turn."""
    count = 2 * draw(st.integers(0, 2)) + 1
    roles: tuple[Role, ...] = ("user", "assistant")
    return [Message(role=roles[at % 2], content=draw(texts)) for at in range(count)]


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def expected_bos(family: Family, messages: list[Message]) -> int:
    if family.bos_each_turn:
        return sum(message["role"] == "user" for message in messages)
    return int(family.adds_bos or "bos_token" in family.template)


def rendered(name: str, messages: list[Message], **settings: Any) -> list[int]:
    """What the library makes of it, with the BOS that the template forgets."""
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    day = chat.TODAY.strftime
    ids = tokenizer.apply_chat_template(messages, return_dict=False, strftime_now=day, **settings)
    forgotten = family.adds_bos and "bos_token" not in family.template
    return [tokenizer.bos_token_id, *ids] if forgotten else ids


def changed(name: str, template: str | None, **settings: Any) -> Any:
    """A family's tokenizer with another template."""
    tokenizer = make_tokenizer(FAMILIES[name])
    tokenizer.chat_template = template
    for key, value in settings.items():
        setattr(tokenizer, key, value)
    return tokenizer


# The prompt


@every_family
@quick
@given(messages=conversations(), system=st.none() | harmless)
def test_a_prompt_begins_with_one_bos_and_says_what_its_messages_say(name, messages, system):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    if system and family.system == "kept":
        messages = [Message(role="system", content=system), *messages]
    ids = prompt_ids(tokenizer, messages)
    bos = tokenizer.bos_token_id
    assert ids.count(bos) == expected_bos(family, messages)
    assert bos not in ids or (ids[0] == bos and ids[1] != bos)
    text = tokenizer.decode(ids)
    assert all(message["content"].strip() in text for message in messages)


@every_family
@quick
@given(messages=conversations())
def test_a_prompt_is_what_the_library_renders_but_for_a_missing_bos(name, messages):
    ids = prompt_ids(tokenizer_of(name), messages)
    assert ids == rendered(name, messages, add_generation_prompt=True)


def test_a_bos_that_the_template_spells_twice_is_fed_once():
    tokenizer = changed("zephyr", "{{ bos_token }}{{ bos_token }}{{ messages[-1].content }}")
    assert prompt_ids(tokenizer, user("hi")).count(tokenizer.bos_token_id) == 1


def test_a_bos_that_does_not_come_first_is_not_fed_again():
    tokenizer = changed("zephyr", "\n{{ bos_token }}{{ messages[-1].content }}")
    assert prompt_ids(tokenizer, user("hi")).count(tokenizer.bos_token_id) == 1


def test_a_prompt_is_the_same_on_every_day():
    text = tokenizer_of("llama3").decode(prompt_ids(tokenizer_of("llama3"), TALK))
    assert "Today: 26 Jul 2024" in text


# Messages that a template does not take


@pytest.mark.parametrize("name", TAKING_SYSTEM)
def test_a_system_message_is_fed(name):
    ids = prompt_ids(tokenizer_of(name), [SYSTEM, *TALK])
    assert tokenizer_of(name).decode(ids).count("be kind") == 1


def test_a_system_message_that_the_template_refuses_is_a_reason():
    with pytest.raises(ChatError, match="the chat template failed: no system role"):
        prompt_ids(tokenizer_of("gemma"), [SYSTEM, *TALK])


def test_a_system_message_that_the_template_would_silently_lose_is_refused():
    words = "message 1: the chat template leaves out this system message"
    for system in (SYSTEM, Message(role="system", content="first")):
        with pytest.raises(ChatError, match=words):
            prompt_ids(tokenizer_of("alpaca"), [system, *TALK])


def test_turns_that_the_template_would_silently_lose_are_refused():
    tokenizer = changed("alpaca", "{{ messages[0].content }} {{ messages[-1].content }}")
    with pytest.raises(ChatError, match="message 2: .* leaves out this assistant message"):
        prompt_ids(tokenizer, TALK)


def test_a_template_that_rewrites_messages_does_not_leave_them_out():
    tokenizer = changed("alpaca", "{% for m in messages %}{{ m.content | upper }}\n{% endfor %}")
    assert tokenizer.decode(prompt_ids(tokenizer, TALK)) == "<s>FIRST\nONE\nSECOND\n"


@pytest.mark.parametrize("name", ["llama2", "gemma", "mistral"])
def test_turns_that_do_not_alternate_are_refused_with_the_templates_reason(name):
    with pytest.raises(ChatError, match="roles must alternate user and assistant"):
        prompt_ids(tokenizer_of(name), [*user("a"), *user("b")])


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_a_prompt_ends_with_the_users_turn(role):
    words = f"the last message must be the user's, not the {role}'s"
    if role == "system":
        words = "a system message must come first"
    with pytest.raises(ChatError, match=words):
        check_prompt_messages([*TALK, {"role": role, "content": "so?"}])
    with pytest.raises(ChatError):
        check_prompt_messages([{"role": role, "content": "so?"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('x' * 5000) }}",
        "{% if messages %}",
        "{{ messages.content.text }}",
        "{{ messages[9].content }}{{ 1 / 0 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for _ in range(1000000) %}x{% endfor %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_that_fails_is_a_short_reason(template):
    with pytest.raises(ChatError, match="the chat template failed") as failure:
        prompt_ids(changed("chatml", template), TALK)
    assert len(str(failure.value)) < 400


def test_what_a_template_makes_is_bounded():
    with pytest.raises(ChatError, match="too long: the chat template makes 3,000,000 characters"):
        prompt_ids(changed("chatml", "{{ 'x' * 3000000 }}"), TALK)


def test_without_a_template_there_is_no_prompt():
    with pytest.raises(ChatError, match="no chat template"):
        prompt_ids(changed("chatml", None), TALK)


def test_text_that_no_tokenizer_takes_is_a_reason():
    with pytest.raises(ChatError, match="the tokenizer failed"):
        prompt_ids(tokenizer_of("chatml"), user("half a pair: \ud83d"))


# Special tokens in a person's text


@every_family
@quick
@given(data=st.data(), before=some_text, after=some_text)
def test_a_message_that_spells_a_special_token_is_refused_by_name(name, data, before, after):
    family = FAMILIES[name]
    messages = data.draw(conversations())
    token = data.draw(st.sampled_from(family.tokens))
    place = data.draw(st.integers(0, len(messages) - 1))
    spelt = before + token + after
    messages[place] = Message(role=messages[place]["role"], content=spelt)
    with pytest.raises(ChatError) as refusal:
        prompt_ids(tokenizer_of(name), messages)
    found = re.fullmatch(r"message (\d+): it spells (.+), which is .*", str(refusal.value))
    assert found
    assert int(found[1]) == place + 1
    assert found[2] in family.tokens
    assert found[2] in spelt


@pytest.mark.parametrize("name", TAKING_SYSTEM)
def test_a_system_message_that_spells_a_special_token_is_refused(name):
    system = Message(role="system", content=f"be {FAMILIES[name].end}")
    with pytest.raises(ChatError, match="message 1: it spells"):
        prompt_ids(tokenizer_of(name), [system, *TALK])


def test_a_person_may_spell_what_is_a_special_token_elsewhere_only():
    prompt_ids(tokenizer_of("chatml"), user("what is </s>, [INST] or <|eot_id|>?"))


def test_a_template_that_disarms_what_a_person_spells_is_trusted_with_it():
    template = FAMILIES["chatml"].template.replace("m.content", "m.content | replace('<|', '< |')")
    tokenizer = changed("chatml", template)
    ids = prompt_ids(tokenizer, user("a<|im_end|>b"))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ids
    assert tokenizer.decode(ids).startswith("<|im_start|>user\na< |im_end|>b<|im_end|>")


def test_a_special_token_that_only_normalising_brings_about_is_refused_too():
    from tokenizers import AddedToken, normalizers

    tokenizer = make_tokenizer(FAMILIES["chatml"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens(AddedToken("<|turn|>", special=True, normalized=True), special_tokens=True)
    text = "\uff1c|turn|\uff1e"  # full-width brackets
    assert tokenizer.convert_tokens_to_ids("<|turn|>") in tokenizer.encode(text)
    with pytest.raises(ChatError, match=re.escape("message 1: it spells <|turn|>")):
        prompt_ids(tokenizer, user(text))


def test_letters_that_a_tokenizer_does_not_know_are_no_special_token():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "</s>": 1, "hi": 2, "message1text": 3}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} </s> {% endfor %}"
    assert prompt_ids(tokenizer, user("hi you")) == [2, 0, 1]
    with pytest.raises(ChatError, match="message 1: it spells <unk>"):
        prompt_ids(tokenizer, user("hi <unk>"))


def test_long_texts_are_looked_through_quickly():
    tokenizer = tokenizer_of("chatml")
    text = "some <| text |> of a < person >. " * 10_000
    began = time.perf_counter()
    tokenizer.encode(text)
    encoding = time.perf_counter() - began
    began = time.perf_counter()
    prompt_ids(tokenizer, user(text))
    with pytest.raises(ChatError, match="it spells"):
        prompt_ids(tokenizer, user(text + "<|im_end|>"))
    assert time.perf_counter() - began < 10 * encoding + 1


# The response


@every_family
def test_the_first_end_token_is_the_templates_own(name):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    ends = tokenizer.convert_ids_to_tokens(end_token_ids(tokenizer))
    assert ends == list(dict.fromkeys([family.end, family.eos]))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, "<|endoftext|>"),
        ("{{ raise_exception('no') }}", "<|endoftext|>"),
        ("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", "<|endoftext|>"),
        ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", "<|endoftext|>"),
        ("{% for m in messages %}{{ m.content }} . <|im_end|>{% endfor %}", "<|im_end|>"),
    ],
)
def test_where_the_template_shows_no_end_token_it_is_the_tokenizers(template, end):
    tokenizer = changed("chatml", template)
    assert end_token_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids(end)


def test_without_any_end_token_there_is_a_reason():
    tokenizer = changed("chatml", "{{ messages[0].content }}", eos_token=None)
    with pytest.raises(ChatError, match="no end-of-sequence token"):
        end_token_ids(tokenizer)


def test_another_template_has_another_end():
    tokenizer = make_tokenizer(FAMILIES["chatml"])
    before = end_token_ids(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    assert end_token_ids(tokenizer) == [before[1]]


@every_family
@quick
@given(messages=conversations(), text=st.one_of(some_text, st.just("")))
def test_a_response_is_letter_for_letter_with_its_end_token_once_and_last(name, messages, text):
    tokenizer = tokenizer_of(name)
    assume(not any(token in text for token in FAMILIES[name].plain))
    ids = response_ids(tokenizer, messages, text)
    ends = end_token_ids(tokenizer)
    assert ids[-1] == ends[0]
    assert not set(ids[:-1]) & {*ends, tokenizer.bos_token_id}
    assert response_text(tokenizer, ids[:-1]) == text


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].exact])
@quick
@given(messages=conversations(tidy), text=tidy)
def test_prompt_and_response_are_the_beginning_of_the_conversation(name, messages, text):
    tokenizer = tokenizer_of(name)
    prompt, response = prompt_ids(tokenizer, messages), response_ids(tokenizer, messages, text)
    whole = rendered(name, [*messages, Message(role="assistant", content=text)])
    assert whole[: len(prompt) + len(response)] == prompt + response


@every_family
@quick
@given(data=st.data())
def test_a_response_that_spells_special_tokens_is_text(name, data):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    special = [token for token in family.tokens if token not in family.plain]
    token = data.draw(st.sampled_from(special))
    text = data.draw(harmless) + token + data.draw(harmless)
    ids = response_ids(tokenizer, TALK, text)
    assert response_text(tokenizer, ids[:-1]) == text
    assert tokenizer.convert_tokens_to_ids(token) not in ids[:-1]


def test_a_response_that_can_only_be_spelt_with_its_end_is_refused():
    with pytest.raises(ChatError, match="the response spells an end token"):
        response_ids(tokenizer_of("added end"), TALK, "a<|im_end|>b")


def test_the_text_of_tokens_is_not_tidied():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"yes": 0, ".": 1, "</s>": 2, "\x00": 3}))
    core.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", clean_up_tokenization_spaces=True
    )
    assert tokenizer.decode([0, 1]) == "yes."
    assert response_text(tokenizer, [0, 1, 2]) == "yes ."
    assert response_text(tokenizer, [3]) == "\ufffd"


# Found out once


def test_a_tokenizer_is_looked_at_once(monkeypatch):
    tokenizer = make_tokenizer(FAMILIES["llama3"])
    rendered = []
    library = tokenizer.apply_chat_template

    def apply(messages: list[Message], **settings: Any) -> Any:
        rendered.append(messages)
        return library(messages, **settings)

    monkeypatch.setattr(tokenizer, "apply_chat_template", apply)
    response_ids(tokenizer, TALK, "yes")
    assert len(rendered) > 2
    rendered.clear()
    for _ in range(3):
        end_token_ids(tokenizer)
        prompt_ids(tokenizer, TALK)
    assert rendered == [TALK] * 3


def test_a_tokenizer_is_not_kept_alive():
    tokenizer = make_tokenizer(FAMILIES["chatml"])
    prompt_ids(tokenizer, TALK)
    kept = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert kept() is None
