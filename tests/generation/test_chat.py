"""Documents, tools, thoughts and turns: where a template shows them, which tokens carry them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import escape
from tiny import CHATML, make_model, make_tokenizer

from llmxai import Settings, explain, explain_many, load_explanation
from llmxai.commands.prompts import context_from, read_documents
from llmxai.errors import OptionError, PromptError
from llmxai.generation import PromptTokens, chat_inputs, encode, encode_messages, force_response, token_texts
from llmxai.generation.placing import chat_of
from llmxai.models import LoadedModel, wrap
from llmxai.settings import IntegratedGradients
from llmxai.types import Part, Role

QUICK = Settings(gradients=IntegratedGradients(max_nodes=8), removal=None)
START = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
DOCUMENTS = (
    "{% for d in documents or [] %}<doc>{{ d.title }}: {{ d.text | trim }}</doc>\n{% endfor %}" + CHATML,
    "{{ documents | tojson }}" + CHATML,
    "{% for d in documents or [] %}# {{ d.title | upper }}\n{{ d.text }}\n\n{% endfor %}" + CHATML,
)
CALLS = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</call>{% endfor %}'
    "<|im_end|>\n{% endfor %}" + START
)
CALLS_BY_LINE = (
    "{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.description }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
    "<call={{ call.function.name }}>{% for k, v in call.function.arguments | items %}<p={{ k }}>{{ v }}</p>{% endfor %}"
    "</call>{% endfor %}<|im_end|>\n{% endfor %}" + START
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}" + START
)
PAPERS = [
    {"title": "France", "text": "Paris is the capital.\nIt is big."},
    {"title": "Italy", "text": " Rome 😀 日本 \n"},
    {"title": "France", "text": "user assistant Which city?"},
]
QUESTION = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Which city?"}]
CAPITAL = {
    "type": "function",
    "function": {
        "name": "capital",
        "description": "Find a capital.",
        "parameters": {"type": "object", "properties": {"country": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama", max_position_embeddings=1024)


def loaded_with(model: Any, template: str) -> LoadedModel:
    return wrap(model, make_tokenizer(template=template), name="tiny")


def text_of(loaded: LoadedModel, tokens: PromptTokens, role: Role) -> str:
    texts = token_texts(loaded.tokenizer, tokens.ids)
    return "".join(text for text, own in zip(texts, tokens.roles, strict=True) if own == role)


def carried(part: Part) -> str:
    """The characters of the original text that any token carries, each once."""
    shown = {i for _, start, end in part.spans for i in range(start, end)}
    return "".join(part.text[i] for i in sorted(shown))


def part_of(tokens: PromptTokens, kind: str, source: int) -> Part:
    return next(part for part in tokens.parts if (part.kind, part.source) == (kind, source))


def check_spans(loaded: LoadedModel, tokens: PromptTokens) -> None:
    """Every span against the token's own text: what the token carries is in it, and only its own characters."""
    texts = token_texts(loaded.tokenizer, tokens.ids)
    for part in tokens.parts:
        for token, start, end in part.spans:
            assert part.first <= token < part.last
            if texts[token] and "\ufffd" not in texts[token]:
                assert part.text[start:end].casefold() in texts[token].casefold()


# roles, whatever a template does with a text

CHANGES: dict[str, tuple[str, Callable[[str], str]]] = {
    "as it is": ("{{ c }}", str),
    "trimmed": ("{{ c | trim }}", str.strip),
    "trimmed behind": ("{{ c.rstrip() }}", str.rstrip),
    "in capitals": ("{{ c | upper }}", str.upper),
    "on one line": ("{{ c | replace('\\n', ' ') }}", lambda c: c.replace("\n", " ")),
    "escaped": ("{{ c | e }}", lambda c: str(escape(c))),
    "cut": ("{{ c[:5] }}", lambda c: c[:5]),
    "as JSON": ("{{ c | tojson }}", lambda c: json.dumps(c, ensure_ascii=False)[1:-1]),
    "twice": ("{{ c }}, {{ c }}", lambda c: c + c),
    "backwards": ("{{ c | reverse }}", lambda c: c[::-1]),
    "with a remark on it": ("{{ c }}{% if 'e' in c %} (user){% endif %}", str),
}
WORDS = (
    *("user", "e", " ", "\n", "<b>", "&", '"', "😀", "日本", "e\u0301", "{{ x }}", "<|im_end|>", "</think>", "ß"),
    *(".", "\\"),
)


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=25, deadline=None)
@given(content=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join))
@example(content="user")
@example(content="<b> & you")
@example(content=" \n e ")
def test_what_a_person_wrote_is_theirs_and_nothing_else(change: str, content: str) -> None:
    shown, changed = CHANGES[change]
    template = "{% for m in messages %}{% set c = m.content %}<user>\n" + shown + "</user>\n{% endfor %}"
    tokenizer = make_tokenizer(template=template)
    found = chat_of(tokenizer, [{"role": "user", "content": content}], chat_inputs(), name="tiny")
    own = "".join(found.text[place.start : place.end] for place in found.places)
    if change == "in capitals" and "ß" in content:  # one character becomes two
        assert own.strip() == content.upper().strip()
    else:
        assert own == changed(content)
    assert {place.role for place in found.places} <= {Role.USER}


def test_a_text_that_cannot_be_located(model: Any) -> None:
    """It changes what the template itself prints, and is printed in another form."""
    odd = "{% for m in messages %}{{ m.content | length }} {{ m.content | length }}{% endfor %}" + START
    with pytest.raises(PromptError, match="leaves out the text of all messages"):
        encode_messages(loaded_with(model, odd), [{"role": "user", "content": "Hello"}])
    worse = "{% for m in messages %}{{ 'Hello Hello' if m.content == 'Hello' else m.content }}{% endfor %}" + START
    with pytest.raises(PromptError, match=r"message 0 in a way that cannot be located.*--prompt"):
        encode_messages(loaded_with(model, worse), [{"role": "user", "content": "Hello"}])


# documents


@pytest.mark.parametrize("template", DOCUMENTS)
def test_documents_in_the_template(model: Any, template: str) -> None:
    loaded = loaded_with(model, template)
    tokens = encode_messages(loaded, QUESTION, chat_inputs(documents=PAPERS))
    own = loaded.tokenizer.apply_chat_template(QUESTION, documents=PAPERS, add_generation_prompt=True, tokenize=False)
    assert loaded.tokenizer.decode(tokens.ids) == own
    for number, paper in enumerate(PAPERS):
        assert carried(part_of(tokens, "document", number)).strip() == paper["text"].strip()
    assert [part.title for part in tokens.parts if part.kind == "document"] == ["France", "Italy", "France (2)"]
    assert carried(part_of(tokens, "turn", 1)) == "Which city?"
    assert text_of(loaded, tokens, Role.USER) == "Which city?"
    assert text_of(loaded, tokens, Role.SYSTEM) == "be brief"
    assert "Rome" in text_of(loaded, tokens, Role.DOCUMENT)
    if "tojson" not in template:
        check_spans(loaded, tokens)


@pytest.mark.parametrize("documents_in", ["auto", "user"])
def test_documents_before_the_question(model: Any, documents_in: str) -> None:
    loaded = loaded_with(model, CHATML)
    tokens = encode_messages(loaded, QUESTION, chat_inputs(documents=PAPERS, documents_in=documents_in))
    shown = "".join(f"Document {i}: {p['title']}\n{p['text']}\n\n" for i, p in enumerate(PAPERS, start=1))
    asked = [QUESTION[0], {"role": "user", "content": f"{shown}Which city?"}]
    assert tokens.ids == encode_messages(loaded, asked).ids
    for number, paper in enumerate(PAPERS):
        assert carried(part_of(tokens, "document", number)) == paper["text"]
    assert text_of(loaded, tokens, Role.USER) == "Which city?"
    assert carried(part_of(tokens, "turn", 1)) == "Which city?"
    assert "Document 1" in text_of(loaded, tokens, Role.TEMPLATE)
    assert any("The documents stand before the text of the user's last message" in note for note in tokens.notes)
    check_spans(loaded, tokens)


def test_documents_before_a_raw_prompt_and_among_parts(model: Any) -> None:
    loaded = loaded_with(model, CHATML)
    raw = encode(loaded, "The capital is", chat_inputs(documents=PAPERS))
    assert loaded.tokenizer.decode(raw.ids).endswith("Document 3: France\nuser assistant Which city?\n\nThe capital is")
    assert carried(part_of(raw, "document", 0)) == PAPERS[0]["text"]
    assert carried(part_of(raw, "prompt", 0)) == "The capital is"
    said = [{"role": "user", "content": [{"type": "text", "text": "Which"}, {"type": "text", "text": "city?"}]}]
    parts = encode(loaded, said, chat_inputs(documents=PAPERS[:1]))
    assert carried(part_of(parts, "document", 0)) == PAPERS[0]["text"]
    assert carried(part_of(parts, "turn", 0)) == "Which\ncity?"


def test_characters_and_tokens_are_inverse(model: Any) -> None:
    loaded = loaded_with(model, CHATML)
    tokens = encode_messages(loaded, QUESTION, chat_inputs(documents=PAPERS))
    texts = token_texts(loaded.tokenizer, tokens.ids)
    paper = part_of(tokens, "document", 0)
    start = paper.text.index("capital")
    own = paper.tokens(start, start + len("capital"))
    assert "".join(texts[i] for i in own).strip() == "capital"
    found = paper.characters(own[0], own[-1] + 1)
    assert found is not None
    assert paper.text[slice(*found)].strip() == "capital"
    assert paper.characters(0, 1) is None


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([{"title": "x", "text": " \n"}], r"Document 1 \('x'\) is empty\. Leave it out"),
        ([{"text": "a"}, {"title": "x"}], r"Document 2 is .*expected an object with `text`"),
        ([{"title": 5, "text": "a"}], r"title 5"),
        ([{"text": "\ud800"}], r"Document 1 holds a lone surrogate"),
        ("text", r"documents is a str; expected a list"),
        ([{"text": "a", "extra": {1, 2}}], r"Document 1 is no JSON value"),
    ],
)
def test_malformed_documents(documents: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        chat_inputs(documents=documents)


def test_documents_that_a_template_would_drop(model: Any) -> None:
    with pytest.raises(PromptError, match=r"takes no documents.*documents_in='user'"):
        encode_messages(loaded_with(model, CHATML), QUESTION, chat_inputs(documents=PAPERS, documents_in="template"))
    first = "{% if documents %}{{ documents[0].text }}{% endif %}" + CHATML
    with pytest.raises(PromptError, match=r"leaves out document 2 \('Italy'\).*--documents-in user"):
        encode_messages(loaded_with(model, first), QUESTION, chat_inputs(documents=PAPERS))
    mended = encode_messages(loaded_with(model, first), QUESTION, chat_inputs(documents=PAPERS, documents_in="user"))
    assert carried(part_of(mended, "document", 1)) == PAPERS[1]["text"]
    with pytest.raises(PromptError, match="no user message"):
        encode_messages(loaded_with(model, CHATML), [{"role": "tool", "content": "a"}], chat_inputs(documents=PAPERS))


# tools and calls

CALL = [
    {"role": "user", "content": "Which city?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "capital", "arguments": {"country": "France", "n": 5}}}
        ],
    },
    {"role": "tool", "content": '{"city": "Paris"}'},
]


@pytest.mark.parametrize("template", [CALLS, CALLS_BY_LINE])
def test_tools_calls_and_results(model: Any, template: str) -> None:
    loaded = loaded_with(model, template)
    tokens = encode_messages(loaded, CALL, chat_inputs(tools=[CAPITAL]))
    own = loaded.tokenizer.apply_chat_template(CALL, tools=[CAPITAL], add_generation_prompt=True, tokenize=False)
    assert loaded.tokenizer.decode(tokens.ids) == own
    tool, call = part_of(tokens, "tool", 0), part_of(tokens, "call", 1)
    assert (tool.title, call.title) == ("capital", "capital")
    assert json.loads(tool.text) == CAPITAL
    assert json.loads(call.text) == {"country": "France", "n": 5}
    context, told = text_of(loaded, tokens, Role.CONTEXT), text_of(loaded, tokens, Role.TOOL)
    assert all(word in context for word in ("capital", "country", "France", "5"))
    assert "call" not in context
    assert "Find a capital." in told
    assert '{"city": "Paris"}' in told
    assert text_of(loaded, tokens, Role.USER) == "Which city?"
    if template == CALLS:
        assert carried(tool) == tool.text
        assert carried(call) == call.text
        assert json.dumps(CAPITAL) in told


def test_a_call_in_words_and_a_function_as_tool(model: Any) -> None:
    def capital(country: str) -> str:
        """
        Find a capital.

        Args:
            country: Which country.
        """
        return country

    loaded = loaded_with(model, CALLS)
    worded = [
        CALL[0],
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "b"}'}}]},
        CALL[2],
    ]
    tokens = encode_messages(loaded, worded, chat_inputs(tools=[capital]))
    assert part_of(tokens, "call", 1).text == '{"a": "b"}'
    assert "Which country." in part_of(tokens, "tool", 0).text
    assert tokens.request["tools"][0]["function"]["name"] == "capital"


def test_tools_and_calls_that_a_template_would_drop(model: Any) -> None:
    loaded = loaded_with(model, CHATML)
    with pytest.raises(PromptError, match=r"takes no tools: they would be left out\. Describe them"):
        encode_messages(loaded, QUESTION, chat_inputs(tools=[CAPITAL]))
    with pytest.raises(PromptError, match=r"leaves out what message 1 calls \('capital'\)"):
        encode_messages(loaded, CALL)
    mentions = "{% if tools and false %}{{ tools }}{% endif %}" + CHATML
    with pytest.raises(PromptError, match="leaves out tool 1"):
        encode_messages(loaded_with(model, mentions), QUESTION, chat_inputs(tools=[CAPITAL]))
    for strange in ("x", {"function": {}}, 5):
        with pytest.raises(PromptError, match="Tool 1 is"):
            chat_inputs(tools=[strange])


# thoughts

HELLO = [{"role": "user", "content": "Hello <think>me</think>"}, {"role": "user", "content": "And?"}]


def answered(content: str, **more: str) -> list[dict[str, Any]]:
    return [HELLO[0], {"role": "assistant", "content": content, **more}, HELLO[1]]


def test_the_reasoning_of_earlier_turns(model: Any) -> None:
    loaded = loaded_with(model, THINKING)
    field = encode_messages(loaded, answered("Hi", reasoning_content="a greeting"))
    assert text_of(loaded, field, Role.THINKING) == "a greeting"
    assert text_of(loaded, field, Role.CONTEXT) == "Hi"
    assert carried(part_of(field, "thinking", 1)) == "a greeting"
    written = encode_messages(loaded, answered("<think>\nhm\n</think>\n\nHello"))
    assert text_of(loaded, written, Role.THINKING) == "<think>\nhm\n</think>"
    assert text_of(loaded, written, Role.CONTEXT).strip() == "Hello"
    assert text_of(loaded, written, Role.USER) == "Hello <think>me</think>And?"


def test_a_template_that_strips_old_thoughts(model: Any) -> None:
    loaded = loaded_with(model, FORGETFUL)
    told = encode_messages(loaded, answered("<think>\nhm, a greeting\n</think>\n\nHello, how are you?"))
    plain = encode_messages(loaded, answered("Hello, how are you?"))
    assert told.ids == plain.ids
    assert told.roles == plain.roles
    assert text_of(loaded, told, Role.CONTEXT) == "Hello, how are you?"
    assert carried(part_of(told, "turn", 1)) == "Hello, how are you?"


def test_reasoning_that_the_prompt_opens(model: Any) -> None:
    loaded = loaded_with(model, THINKING)
    opened = encode_messages(loaded, QUESTION)
    assert opened.thinks == "</think>"
    generation = force_response(loaded, opened, response="a city\n</think>\n\nParis")
    roles = dict.fromkeys(generation.roles[generation.prompt_len :])
    said = [
        "".join(t for t, r in zip(generation.texts, generation.roles, strict=True) if r == role)
        for role in (Role.THINKING, Role.GENERATED)
    ]
    assert list(roles) == [Role.THINKING, Role.GENERATED]
    assert said == ["a city\n</think>", "\n\nParis"]
    closed = encode_messages(loaded, QUESTION, chat_inputs(chat_template_kwargs={"enable_thinking": False}))
    assert closed.thinks == ""
    assert closed.request["chat_template_kwargs"] == {"enable_thinking": False}
    assert Role.THINKING not in force_response(loaded, closed, response="Paris").roles


def test_variables_that_a_template_does_not_read(model: Any) -> None:
    with pytest.raises(PromptError, match=r"does not read 'enable_thinking'"):
        encode_messages(
            loaded_with(model, CHATML), QUESTION, chat_inputs(chat_template_kwargs={"enable_thinking": True})
        )
    with pytest.raises(OptionError, match="'tokenize' is no variable"):
        chat_inputs(chat_template_kwargs={"tokenize": True})
    for name, instead in (("tools", "--tools"), ("chat_template", "chat_template.jinja")):
        with pytest.raises(OptionError, match=f"'{name}' is no variable of a template.*{instead}"):
            chat_inputs(chat_template_kwargs={name: "x"})


def test_what_no_record_could_be_read_with_is_refused() -> None:
    nested: Any = []
    for depth in range(900):
        nested = [nested]
        if depth == 20:
            chat_inputs(documents=[{"text": "Rome", "more": nested}])
    with pytest.raises(PromptError, match="Document 1 is nested more than 32 levels deep"):
        chat_inputs(documents=[{"text": "Rome", "more": nested}])


# a turn to continue


def test_an_answer_that_is_begun(model: Any) -> None:
    loaded = loaded_with(model, CHATML)
    begun = [*QUESTION, {"role": "assistant", "content": "The answer is"}]
    tokens = encode_messages(loaded, begun, chat_inputs(continue_final_message=True))
    assert loaded.tokenizer.decode(tokens.ids).endswith("<|im_start|>assistant\nThe answer is")
    assert text_of(loaded, tokens, Role.CONTEXT) == "The answer is"
    thinking = [*QUESTION, {"role": "assistant", "content": "<think>\nLet me"}]
    opened = encode_messages(loaded, thinking, chat_inputs(continue_final_message=True))
    assert opened.thinks == "</think>"
    assert text_of(loaded, opened, Role.THINKING) == "<think>\nLet me"
    with pytest.raises(PromptError, match="--continue-final-message"):
        encode_messages(loaded, begun)
    with pytest.raises(PromptError, match="not the beginning of an assistant's answer"):
        encode_messages(loaded, QUESTION, chat_inputs(continue_final_message=True))


# through explain, the folder and the command


def test_parts_in_an_explanation_and_its_folder(model: Any, tmp_path: Path) -> None:
    loaded = loaded_with(model, CHATML)
    explanation = explain(loaded, QUESTION, documents=PAPERS, response=" Paris", settings=QUICK)
    generation = explanation.generation
    assert carried(generation.part("document", 1)) == PAPERS[1]["text"]
    assert any("The documents stand before" in line for line in explanation.to_dict()["warnings"])
    with pytest.raises(LookupError, match=r"no tool 0\. There are: document 0"):
        generation.part("tool", 0)
    again = load_explanation(explanation.save(tmp_path / "out"))
    assert again.generation == generation
    request = explanation.to_dict()["generation"]["request"]
    assert explain(loaded, request.pop("messages"), **request, settings=QUICK).generation.ids == generation.ids
    features = explanation.gradients.features[0].tolist()
    assert all(features[token] for token, _, _ in generation.part("document", 0).spans)


def test_many_prompts_and_rows_with_their_documents(model: Any) -> None:
    loaded = loaded_with(model, CHATML)
    rows = [{"messages": QUESTION, "documents": PAPERS[:1]}, {"prompt": "Which city?", "documents": PAPERS[1:2]}]
    first, second = explain_many(loaded, rows, response=" a", settings=QUICK)
    assert carried(first.generation.part("document", 0)) == PAPERS[0]["text"]
    assert carried(second.generation.part("document", 0)) == PAPERS[1]["text"]
    (same,) = explain_many(loaded, [QUESTION], documents=PAPERS, response=" a", settings=QUICK)
    assert len([part for part in same.generation.parts if part.kind == "document"]) == 3
    with pytest.raises(OptionError, match="documents was given with token ids"):
        explain(loaded, [5, 6, 7], documents=PAPERS, settings=QUICK)
    with pytest.raises(OptionError, match="documents was given with an answer"):
        explain(loaded, same.generation, documents=PAPERS, settings=QUICK)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"title": "x"}', "Document 1 is"),
        ("a.jsonl", '{"text": "a"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", "", "holds no documents"),
        ("a.json", "5", "holds no documents"),
        ("docs/a.pdf", "x", "is no text file"),
    ],
)
def test_files_that_hold_no_documents(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    given = path.parent if path.parent != tmp_path else path
    with pytest.raises(PromptError, match=words):
        chat_inputs(documents=read_documents(given))


def test_files_of_documents_and_tools(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "b.txt").write_bytes("\ufeffRome".encode())
    (folder / "a.md").write_text("Paris", encoding="utf-8")
    lines = tmp_path / "papers.jsonl"
    lines.write_text('{"title": "a\u2028", "text": "Paris"}\r\n\n{"text": "Rome"}\n', encoding="utf-8")
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([CAPITAL]), encoding="utf-8")
    found = context_from(
        documents=folder,
        documents_in="user",
        tools=tools,
        template_args=["enable_thinking=false", "effort=low"],
        continue_final_message=False,
    )
    assert found == {
        "documents": [{"title": "a.md", "text": "Paris"}, {"title": "b.txt", "text": "Rome"}],
        "documents_in": "user",
        "tools": [CAPITAL],
        "chat_template_kwargs": {"enable_thinking": False, "effort": "low"},
    }
    assert read_documents(lines) == [{"title": "a\u2028", "text": "Paris"}, {"text": "Rome"}]
    with pytest.raises(OptionError, match="expected name=value"):
        context_from(documents=None, documents_in="auto", tools=None, template_args=["x"], continue_final_message=False)
