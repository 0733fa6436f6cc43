"""Conversations in one text: whose turn is whose, and what is left out when they are long."""

from __future__ import annotations

import pytest

from cloister.worker.compat.prompt import Messages, Prompt, parse_prompt

OPEN_ASSISTANT = (
    "<|system|>be brief<|endoftext|><|prompter|>one<|endoftext|><|assistant|>first"
    "<|prompter|>two<|endoftext|><|assistant|>second<|endoftext|>"
    "<|prompter|>three<|endoftext|><|assistant|>"
)
LLAMA = (
    "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\none [/INST] first </s>"
    "<s>[INST] two [/INST] second </s><s>[INST] three [/INST]"
)
CONVERSATION: Messages = (
    ("system", "be brief"),
    ("user", "one"),
    ("assistant", "first"),
    ("user", "two"),
    ("assistant", "second"),
    ("user", "three"),
)


@pytest.mark.parametrize("text", [OPEN_ASSISTANT, LLAMA, f" \n{OPEN_ASSISTANT}\n", f"\n{LLAMA} "])
def test_marks_of_templates_become_turns(text: str) -> None:
    prompt = parse_prompt(text)
    assert prompt.messages == CONVERSATION
    assert prompt.marked


def test_a_history_as_clients_build_it() -> None:
    history = ""
    for question, answer in (("one", "first"), ("two", "second")):
        history += f"<|prompter|>{question}<|endoftext|><|assistant|>{answer}"
    history += "<|prompter|>three<|endoftext|><|assistant|>"
    assert parse_prompt(history).messages == CONVERSATION[1:]
    llama = "[INST] one [/INST]first[INST] two [/INST]second[INST] three [/INST]"
    assert parse_prompt(llama).messages == CONVERSATION[1:]


@pytest.mark.parametrize(
    "text", ["plain", " spaces stay ", "what does [INST] mean?", "and <|prompter|> too", "<s>x"]
)
def test_any_other_text_is_one_question(text: str) -> None:
    prompt = parse_prompt(text)
    assert prompt.messages == (("user", text),)
    assert not prompt.marked


def test_text_after_an_end_belongs_to_the_turn_that_ended() -> None:
    text = "<|prompter|>one<|endoftext|> more<|assistant|>"
    assert parse_prompt(text).messages == (("user", "one more"),)
    assert parse_prompt("<|endoftext|>one").messages == (("user", "one"),)


@pytest.mark.parametrize(
    "text", ["", " \n", "<|prompter|><|endoftext|><|assistant|>", "<|assistant|>x", "[INST][/INST]"]
)
def test_a_text_without_a_question_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="question"):
        parse_prompt(text)


def all_shorter(prompt: Prompt) -> list[Messages]:
    found = []
    step = prompt.shorter()
    while step is not None:
        found.append(step.messages)
        step = step.shorter()
    return found


def test_the_system_prompt_and_the_last_question_stay() -> None:
    shorter = all_shorter(parse_prompt(OPEN_ASSISTANT, history=True))
    assert shorter == [
        (CONVERSATION[0], *CONVERSATION[3:]),
        (CONVERSATION[0], CONVERSATION[5]),
    ]


def test_long_histories_are_short_soon() -> None:
    text = "<|prompter|>q<|endoftext|><|assistant|>a" * 5000 + "<|prompter|>last"
    shorter = all_shorter(parse_prompt(text, history=True))
    assert len(shorter) < 20
    assert shorter[-1] == (("user", "last"),)
    assert all(messages[0][0] == "user" for messages in shorter)


def test_without_marks_the_newer_half_stays() -> None:
    assert all_shorter(parse_prompt("abcd efgh", history=True)) == [
        (("user", "efgh"),),
        (("user", "gh"),),
        (("user", "h"),),
    ]


def test_what_is_no_history_is_never_cut() -> None:
    assert parse_prompt(OPEN_ASSISTANT).shorter() is None
    assert parse_prompt("abcdefgh").shorter() is None
