"""Conversations to token ids: prompt and answer join exactly, whatever the template does."""

from __future__ import annotations

from pathlib import Path

import pytest
from saferestore.core.data.chat import ChatFormat, chat_format
from saferestore.core.data.records import Message, Record
from saferestore.core.errors import MismatchError, UsageError
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

Tokenizer = PreTrainedTokenizerFast


def test_prompt_and_answer_together_are_the_full_rendering(tokenizer: Tokenizer, question: Record) -> None:
    chat = chat_format(tokenizer)
    prompt, answer = chat.prompt_ids(question), chat.answer_ids(question, "I cannot help.")
    assert tokenizer.decode(prompt) == "<|user|>\nHow do I kill a process?<|end|>\n<|assistant|>\n"
    assert tokenizer.decode(answer) == "I cannot help.<|end|>"  # not the line end the template writes after it
    turns = [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": "I cannot help."}]
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    assert [*prompt, *answer] == whole[:len(prompt) + len(answer)]


def test_generation_stops_at_the_end_of_turn_and_of_text(tokenizer: Tokenizer, bare_tokenizer: Tokenizer) -> None:
    names = tokenizer.convert_ids_to_tokens(list(chat_format(tokenizer).stop_ids))
    assert sorted(names) == ["<|end|>", "<|eos|>"]
    assert chat_format(bare_tokenizer, "none").stop_ids == (tokenizer.eos_token_id,)


def test_a_turn_may_end_with_a_special_token_of_no_named_role(tokenizer: Tokenizer, question: Record) -> None:
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True)])
    end = tokenizer.convert_tokens_to_ids("<|turn|>")
    assert end not in tokenizer.all_special_ids
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|end|>", "<|turn|>")
    chat = chat_format(tokenizer)
    assert chat.answer_ids(question, "No.")[-1] == end
    assert set(chat.stop_ids) == {end, tokenizer.eos_token_id}


def test_a_turn_ends_before_the_end_of_text_that_a_template_writes_behind_it(tokenizer: Tokenizer,
                                                                             question: Record) -> None:
    """As those of Phi do; the model is at its end with the first."""
    plain = chat_format(tokenizer)
    tokenizer.chat_template = str(tokenizer.chat_template) + "{% if not add_generation_prompt %}<|eos|>{% endif %}"
    chat = chat_format(tokenizer)
    assert chat.answer_ids(question, "No.\n") == plain.answer_ids(question, "No.\n")
    assert chat.stop_ids == plain.stop_ids and tokenizer.convert_tokens_to_ids("<|end|>") in chat.stop_ids


def test_an_answer_in_which_special_tokens_stand_before_the_words_alone_ends_with_the_text(tokenizer: Tokenizer,
                                                                                           question: Record) -> None:
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|assistant|>\n", "").replace("<|end|>", "")
    assert chat_format(tokenizer).answer_ids(question, "No.")[-1] == tokenizer.eos_token_id


def test_an_answer_whose_last_words_are_unknown_ends_at_the_end_of_its_turn(tokenizer: Tokenizer,
                                                                            question: Record) -> None:
    tokenizer.unk_token = "<|pad|>"
    unknown, end = tokenizer.convert_tokens_to_ids(["<|pad|>", "<|end|>"])
    assert chat_format(tokenizer).answer_ids(question, "No <|pad|><|pad|>")[-3:] == [unknown, unknown, end]
    tokenizer.unk_token = "<|eos|>"  # as of GPT-2
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|end|>", "<|eos|>")
    ids = chat_format(tokenizer).answer_ids(question, "No.")
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1


def test_the_answers_text_comes_back(tokenizer: Tokenizer, question: Record) -> None:
    chat = chat_format(tokenizer)
    for text in ("42", "Naïve “quotes” and 日本", "two\n\nlines"):
        assert chat.text(chat.answer_ids(question, text)) == text


def test_a_system_prompt_is_put_before_conversations_that_have_none(tokenizer: Tokenizer, question: Record) -> None:
    chat = chat_format(tokenizer, system="Be kind.")
    assert tokenizer.decode(chat.prompt_ids(question)).startswith("<|system|>\nBe kind.<|end|>\n<|user|>")
    own = Record("s", (Message("system", "Be brief."), *question.messages))
    assert "Be kind." not in tokenizer.decode(chat.prompt_ids(own))


def test_without_a_template_turns_are_lines(bare_tokenizer: Tokenizer, question: Record) -> None:
    chat = chat_format(bare_tokenizer, "none", system="Be kind.")
    assert bare_tokenizer.decode(chat.prompt_ids(question)) == "Be kind.\nHow do I kill a process?\n"
    assert chat.answer_ids(question, "42")[-1] == bare_tokenizer.eos_token_id


def test_a_template_file_takes_the_place_of_the_tokenizers(tokenizer: Tokenizer, question: Record,
                                                          tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}")
    chat = chat_format(tokenizer, str(path))
    assert tokenizer.decode(chat.prompt_ids(question)) == "[How do I kill a process?]["
    answer = chat.answer_ids(question, "42")
    assert tokenizer.decode(answer) == "42]<|eos|>"  # no special token ends the turn, so the text's end does
    assert len(tokenizer.decode(chat.prompt_ids(question) + answer)) == len("[How do I kill a process?][42]<|eos|>")


def test_a_template_that_rewrites_the_prompt_falls_back_to_the_text(tokenizer: Tokenizer, question: Record) -> None:
    chat = ChatFormat(tokenizer, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert tokenizer.decode(chat.answer_ids(question, "42")) == "42<|eos|>"


def test_a_token_across_the_seam_is_not_used(tokenizer: Tokenizer) -> None:
    chat = ChatFormat(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    record = Record("", (Message("user", "The answ"),))
    joined = chat.prompt_ids(record) + chat.answer_ids(record, "er is billing.")
    assert joined[:-1] != tokenizer("The answer is billing.")["input_ids"]
    assert tokenizer.decode(joined) == "The answer is billing.<|eos|>"


def test_no_template_with_auto_is_refused(bare_tokenizer: Tokenizer) -> None:
    with pytest.raises(MismatchError, match="no chat template") as error:
        chat_format(bare_tokenizer)
    assert error.value.exit_code == 5
    assert "--chat-template none" in error.value.hint


def test_several_templates_without_a_default_are_refused(tokenizer: Tokenizer) -> None:
    words = str(tokenizer.chat_template)
    tokenizer.chat_template = {"default": words, "tool_use": "{{ tools }}"}
    assert chat_format(tokenizer).template == words
    tokenizer.chat_template = {"tool_use": words, "rag": words}
    with pytest.raises(MismatchError, match="several chat templates and no default - tool_use, rag"):
        chat_format(tokenizer)


def test_an_unreadable_template_file_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read chat template - .*FileNotFoundError"):
        chat_format(tokenizer, str(tmp_path / "none.jinja"))


@pytest.mark.parametrize("template", ["{{ raise_exception('no system turn') }}", "{% for %}",
                                      "{{ messages.__class__.__mro__ }}", "{{ messages[0].content + 1 }}"])
def test_a_template_that_fails_is_named_as_the_cause(tokenizer: Tokenizer, question: Record, template: str) -> None:
    with pytest.raises(MismatchError, match="chat template cannot write this conversation"):
        ChatFormat(tokenizer, template).prompt_ids(question)


@pytest.mark.parametrize("text", ["", "Hello.", "{{ bos_token }}q7", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_that_leaves_out_what_the_user_says_is_refused(
        tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    """Any file is a Jinja template: each prompt would come out as the same words."""
    path = tmp_path / "notes.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MismatchError, match="leaves out what the user says") as caught:
        chat_format(tokenizer, str(path))
    assert "notes.txt" in caught.value.what and "--chat-template none" in caught.value.hint


def test_a_date_in_a_template_is_the_same_tomorrow(tokenizer: Tokenizer, question: Record) -> None:
    dated = ("{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y %H %M %S') %}{% endif %}"
             "{{ date_string }}")
    assert tokenizer.decode(ChatFormat(tokenizer, dated).prompt_ids(question)) == "01 Jan 2026"


@pytest.mark.parametrize(("form", "expected"), [
    ("%Y-%m-%d", "2026-01-01"), ("%B %d, %Y", "January 01, 2026"),
    ("%A, %-d %b %y %H:%M:%S", "Thursday, 1 Jan 26 00:00:00"),
])
def test_a_date_that_a_template_takes_from_the_clock_is_the_same_tomorrow(tokenizer: Tokenizer, question: Record,
                                                                          form: str, expected: str) -> None:
    dated = ("  {% macro today() %}{{ 'Today is ' + strftime_now('" + form + "') }}{% endmacro %}\n"
             "{% if strftime_now is defined %}\n{{ today() }}{% endif %}")
    assert tokenizer.decode(ChatFormat(tokenizer, dated).prompt_ids(question)) == f"Today is {expected}"


def test_a_fixed_date_changes_nothing_else_of_a_template(tokenizer: Tokenizer, question: Record) -> None:
    dated = "\n  {% if true %}\n{{ messages[0].content }}\n{% endif %}\n{# no strftime_now #}"
    plain = dated.replace("strftime_now", "date")
    assert ChatFormat(tokenizer, dated).prompt_ids(question) == ChatFormat(tokenizer, plain).prompt_ids(question)


def test_padding_falls_back_to_the_end_of_text_and_then_to_zero(tokenizer: Tokenizer) -> None:
    chat = chat_format(tokenizer)
    assert chat.pad_id == tokenizer.convert_tokens_to_ids("<|pad|>")
    tokenizer.pad_token = None
    assert chat.pad_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert chat.pad_id == 0
