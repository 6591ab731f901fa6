"""Chat templates and conversations against transformers' rendering, llama.cpp's tokens and what each says of the other."""

import ctypes
import json
import re

import gguf
import pytest
from conftest import built_library
from test_convert import convert, lay_folder
from test_convert_folder import write_empty_weights
from test_tokenizer import Vocabulary

rendering = pytest.importorskip("transformers.utils.chat_template_utils")

LIBRARY = built_library("nibble_chat_c")

USER, ANSWER = {"role": "user", "content": "How are you?\n"}, {"role": "assistant", "content": " Fine & well. "}
SYSTEM = {"role": "system", "content": "Be brief — « ok » 日本語"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "It's \"weather\" <here>",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}},
            "required": ["city"],
        },
    },
}
CALL = {
    "role": "assistant", "content": "",
    "tool_calls": [
        {"type": "function", "id": "abcdefghi", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 1.5}}}
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "{\"sun\": true}"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
CONVERSATIONS = {
    "one turn": [USER, ANSWER],
    "question": [USER],
    "system": [SYSTEM, USER, ANSWER],
    "several turns": [SYSTEM, USER, ANSWER, USER, THOUGHT, USER, ANSWER],
    "tools": [USER, CALL, RESULT, ANSWER],
    "tools, twice": [SYSTEM, USER, CALL, RESULT, ANSWER, USER, CALL, RESULT, RESULT, ANSWER],
}


def ours(template, messages, tools=None, answer=False):
    render = LIBRARY.nibble_render_chat
    render.restype = ctypes.c_char_p
    given = json.dumps({"messages": messages, "tools": tools, "add_generation_prompt": answer})
    return render(template.encode(), given.encode()).decode()


def theirs(template, messages, tools=None, answer=False):
    compiled = rendering._compile_jinja_template(template)
    return compiled.render(
        messages=messages, tools=tools, documents=None, add_generation_prompt=answer, bos_token="<s>", eos_token="</s>"
    )


def shared_template(name, shared, smollm2):
    if name == "SmolLM2":
        return gguf.GGUFReader(smollm2).get_field("tokenizer.chat_template").contents()
    return json.loads((shared / "hf" / name / "tokenizer_config.json").read_text())["chat_template"]


@pytest.mark.skipif(not LIBRARY, reason="libnibble_chat_c.so is not built")
class TestTemplates:
    @pytest.mark.parametrize("answer", [False, True])
    @pytest.mark.parametrize("tools", [None, [WEATHER], [WEATHER, WEATHER]], ids=["no tools", "a tool", "two tools"])
    @pytest.mark.parametrize("conversation", CONVERSATIONS)
    @pytest.mark.parametrize("name", ["SmolLM2", "Qwen3-4B", "Mistral-7B-Instruct-v0.3"])
    def test_real_templates(self, name, conversation, tools, answer, shared, smollm2_q4_1):
        template, messages = shared_template(name, shared, smollm2_q4_1), CONVERSATIONS[conversation]
        assert ours(template, messages, tools, answer) == theirs(template, messages, tools, answer)

    def test_what_the_template_refuses(self, shared, smollm2_q4_1):
        template = shared_template("Mistral-7B-Instruct-v0.3", shared, smollm2_q4_1)
        with pytest.raises(Exception, match="must alternate"):
            theirs(template, [USER, USER])
        assert "line 18: the template refuses the conversation: After the optional system message" in ours(template, [USER, USER])

    # Whitespace, escapes, scopes, arithmetic, slices, filters, tests and methods, a text each.
    @pytest.mark.parametrize(
        "template",
        """
{{ 1 + 2 * 3 ** 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** -1 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 3.0 }}
{{ -2|abs }} {{ 2.5|abs }} {{ '12'|int + 1 }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ '1.5'|float }} {{ 3.9|int }} {{ true + 1 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.0 }} {{ 'ab' * 3 }} {{ [1, 'a', none, true, 1.5, {'k': "it's"}] }} {{ {'a': [1]} }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ [1, 2] == [1, 2] }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }}
{{ 'a' in 'cat' }} {{ 2 not in [1, 3] }} {{ 'k' in {'k': 1} }} {{ not 1 == 2 }} {{ not false and true }} {{ 1 or 2 }} {{ 0 or 'x' }}
{{ 'yes' if messages else 'no' }} {{ 'x' if false }}| {{ 1 if 0 else 2 if 0 else 3 }}
{{ 'hello'[1:3] }} {{ 'hello'[::-1] }} {{ 'héllo'[1] }} {{ [1,2,3,4][-2:] }} {{ [1,2,3,4][::2] }} {{ [1,2,3][5:] }} {{ [1,2,3][10] }}|
{{ 'hello'[-100:2] }} {{ [1,2,3,4,5][4:0:-2] }} {{ [1,2,3][:-1] }} {{ 'abc'[5:1:-1] }} {{ [1,2,3,4][-1:-4:-1] }}
{{ missing }}| {{ missing is defined }} {{ messages is defined }} {{ messages[99] is defined }} {{ messages[0].nothing is undefined }}
{{ messages[0].role }} {{ messages[0]['role'] }} {{ messages[-1].content|trim }} {{ messages|length }} {{ messages[0]|length }}
{{ '  x '|trim }}| {{ 'xxaxx'.strip('x') }} {{ ' a b '.lstrip() }}| {{ ' a b '.rstrip() }}| {{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }}
{{ 'a-b-c'.split('-', 1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ ' a b  c '.split(none, 1) }} {{ ' a b  c '.rsplit(none, 1) }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'Abc def'.upper() }} {{ 'ABC'.lower() }} {{ 'a bc'.title() }} {{ 'aBC'.capitalize() }}
{{ 'aXbXc'.replace('X', '-') }} {{ 'aXbXc'.replace('X', '-', 1) }} {{ 'abcabc'.find('c') }} {{ 'äbc'.find('c') }} {{ 'aXbX'.count('X') }} {{ '-'.join(['a', 'b']) }}
{% for pair in {'a': 1}.items() %}{{ pair[0] }}{{ pair[1] }}{% endfor %} {{ {'a': 1, 'b': 2}.keys() | list }} {{ {'a': 1}.values() | list }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 5) }} {{ {'a': 1}.get('a') }}
{{ messages|tojson }}
{{ messages|tojson(indent=2) }}
{{ {'ä': "\\u2028<'&\\x1f\\"/", 'b': [], 'c': {}, 'd': [1, 2.5, none, true]}|tojson }} {{ []|tojson(indent=4) }}
{{ {'ä': ['é\\u0101', '日本', '🙂', 'a\x7f']}|tojson(ensure_ascii=true) }} {{ messages|tojson(ensure_ascii=true) }}
{{ 'a\\tb\\nc\\'d\\\\e\\u00e4\\x41\\q' }} {{ "it's" }} {{ 'say "hi"' }} {{ ['it\\'s', "say \\"hi\\"", 'both\\'"', 'a\\n'] }}
{{ [3, 1, 2]|min }} {{ [3, 1, 2]|max }} {{ [3, 1, 2]|sum }} {{ ['a', 'b']|join(', ') }} {{ [1, 2]|join }} {{ [{'n': 1}, {'n': 2}]|join('/', attribute='n') }}
{{ [1, 2]|first }} {{ 'abc'|last }} {{ []|first }}| {{ 'abc'|reverse }} {{ [1, 2]|reverse|list }} {{ [1, 1, 2]|unique|list }} {{ 'abc'|list }}
{{ missing|default('d') }} {{ ''|default('d') }}| {{ ''|default('d', true) }} {{ missing|d }}| {{ none|default('x') }} {{ missing|length }}
{{ messages|map(attribute='role')|list }} {{ ['a', 'b']|map('upper')|list }} {{ messages|map(attribute='x', default='-')|join(',') }}
{{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages|rejectattr('role', 'eq', 'user')|map(attribute='role')|first }} {{ messages|selectattr('nothing')|list }}
{{ [1, 2, 3, 4]|select('even')|list }} {{ [1, 2, 3]|reject('odd')|list }} {{ [0, 1, '']|select|list }} {{ [1, 2, 3]|select('in', [1, 3])|list }} {{ [4, 6]|select('divisibleby', 4)|list }}
{{ 1 is number }} {{ true is number }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is sequence }} {{ 'a' is iterable }} {{ 1 is iterable }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ none is none }} {{ 1 is none }}
{{ 4 is divisibleby 2 }} {{ 3 is odd }} {{ 3 is not even }} {{ 1 is eq 1 }} {{ 'a' is in 'abc' }} {{ raise_exception is callable }} {{ true is true }} {{ 1 is true }} {{ false is false }}
{{ 'a\\nb\\n\\nc'|indent(2) }} {{ 'a\\nb'|indent(3, true) }} {{ 'X'|lower }} {{ 'some words'|title }} {{ 'sOME'|capitalize }} {% for k, v in {'b': 1, 'A': 2}|dictsort %}{{ k }}{{ v }}{% endfor %} {% for k, v in {'a': 1}|items %}{{ k }}{{ v }}{% endfor %} {{ 'aa'|replace('a', 'b') }} {{ 3|string + 'x' }} {{ '<'|safe }} {{ 'a' ~ ('<'|safe) ~ 1 }} {{ ''|safe or 'x' }} {{ '<'|safe == '<' }} {{ none|map('upper')|list }} {{ none|selectattr('a')|list }}
{% set x = 1 %}{% for i in range(3) %}{{ x }}{% set x = i %}{{ x }} {% endfor %}{{ x }}
{% set ns = namespace(n=0, s='') %}{% for i in range(2, 10, 3) %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }} {{ ns.s }} {{ ns.x is defined }}
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}
{% for i in [1, 2, 3, 4] if i % 2 == 0 %}{{ loop.index }}:{{ i }} {% else %}none{% endfor %} {% for i in [] %}x{% else %}none{% endfor %}
{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %} {% for a, b in [[1, 2], [3, 4]] %}{{ a + b }} {% endfor %} {% set a, b = 1, 2 %}{{ a }}{{ b }} {% for i in 1, 2 %}{{ i }}{% endfor %}
{% macro f(a, b=2, c='x') %}[{{ a }}{{ b }}{{ c }}{{ y }}]{% endmacro %}{% set y = 'Y' %}{{ f(1) }}{{ f(1, c='z') }}{{ f(1, 3)|upper }}{{ f() }}
{% macro g(n) %}{{ n }}{% if n > 0 %}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(5) }}
{% set text %}  a {{ 1 + 1 }} {% endset %}[{{ text }}] {% if x is not defined %}no x{% elif 1 %}one{% else %}two{% endif %} {% if false %}a{% elif true %}b{% endif %}
{% raw %}{{ not this }}{% endraw %} {# a comment #} {%- if true -%}   tight   {%- endif -%}   x {{- 1 -}}   y
{% generation %}said{% endgeneration %} {{ messages[0] == messages[-1] }} {{ messages == messages }} {{ 'a' 'b' }} {{ [1, 2,] }} {{ (1, 2)|length }} {{ ()|length }} {{ (3) }}
{{ range(4)|list }} {{ range(1, 3)|list }} {{ range(5, 0, -2)|list }} {{ dict(a=1, b=2) }} {{ [1] + [2] }} {{ 1 != 2 }} {{ 3 >= 3 }} {{ 2.0 ** 3 }} {{ 10 // 3.0 }} {{ 7.5 % 2 }} {{ 1_000 }} {{ none is defined }}
""".strip().split("\n"),
    )
    def test_expressions(self, template):
        for messages in (CONVERSATIONS["several turns"], CONVERSATIONS["one turn"]):
            assert ours(template, messages) == theirs(template, messages)

    @pytest.mark.parametrize(
        "template",
        [
            "a\n{% if true %}\n  b\n{% endif %}\nc\n",
            "  {% if true %}  \n b{% endif %}\n\n\nc\n\n",
            "a   {%- if true %}  b  {%- endif -%}\n\n  c",
            "x\n   {%+ if true %}y{% endif +%}\nz\n",
            "x\n   {# one #}\n   {#- two -#}   \n  y {# three +#}\nz",
            "{{ 1 }}\n{{ 2 -}}\n\n{{- 3 }}\r\n{{ 4 }}\r5",
            "\t {% raw -%}  {% x %} {%- endraw %}\n b\n  {%- raw %} c {% endraw -%}  \nd",
            "{% for m in messages %}\n    {{ m.role }}\n    {%- if loop.last %}!\n    {% endif %}\n{% endfor %}\nend",
            "{ {a} {{ {'a': {'b': 1}} }} } % } {{ '{% x %}' }} {{ '}}' }}",
            "\n\n{% if true %}\n{% set a = 1 %}\n{% endif %}\n\n",
        ],
    )
    def test_whitespace(self, template):
        assert ours(template, [USER, ANSWER]) == theirs(template, [USER, ANSWER])

    @pytest.mark.parametrize(
        "template, message",
        [
            ("{{ missing.x }}", "line 1: 'missing' is undefined"),
            ("a\n\n{{ 1 + 'a' }}", "line 3: '+' is not for an int and a string"),
            ("{{ messages[0].x.y }}", "'x' is undefined"),
            ("{% if %}{% endif %}", "line 1: wants an expression, found the end of the tag"),
            ("{% if 1 %}", "'{% endif %}' is missing"),
            ("{% for x in 1 %}{% endfor %}", "an int cannot be looped over"),
            ("{% endif %}", "'endif' belongs to nothing here"),
            ("{{ 1", "this tag has no end ('}}')"),
            ("{{ 'a }}", "this string has no end"),
            ("{# a", "this comment has no end"),
            ("{{ 1 $ 2 }}", "'$' is no part of an expression"),
            ("{% include 'x' %}", "a 'include' block is not known to nibble's template engine"),
            ("{% extends 'x' %}", "a 'extends' block is not known"),
            ("{{ 'a'|frobnicate }}", "a filter 'frobnicate' is not known"),
            ("{{ 'a' is frobnicated }}", "a test 'frobnicated' is not known"),
            ("{{ 'a'.encode() }}", "'encode' is undefined"),
            ("{{ 1 / 0 }}", "division by zero"),
            ("{{ 'É'.lower() }}", "letters beyond ASCII"),
            ("{{ ('<'|safe) + '>' }}", "'+' is not for a safe text and a string"),
            ("{{ f(*messages) }}", "arguments with '*' are not known"),
            ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested more than"),
            ("{{ 1" + " + 1" * 100000 + " }}", "more than 200 operators"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deep"),
            ("{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
             "runs too long"),
            ("{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}", "the text is too long"),
            ("{{ range(10000000) }}", "more than 100000 numbers"),
            ("{{ 'x' * 99999999999 }}", "the text is too long"),
            ("{{ 9223372036854775807 + 1 }}", "is too large"),
            ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "writes too much"),
        ],
    )  # fmt: skip
    def test_errors(self, template, message):
        result = ours(template, [USER, ANSWER])
        assert result.startswith("error: chat template: line ") and message in result


@pytest.fixture(scope="module")
def sft(shared):
    return shared / "chat" / "v1_sft_demo.jsonl"


def as_text(message):
    content = message["content"]
    return {"role": message["role"], "content": content if isinstance(content, str) else "".join(part["value"] for part in content)}


def test_500_conversations(run_nibble, smollm2_q4_1, sft, shared):
    """Text as transformers renders it, ids as llama.cpp tokenizes it, and what counts is what the assistant says."""
    template, vocabulary = shared_template("SmolLM2", shared, smollm2_q4_1), Vocabulary(smollm2_q4_1)
    result = run_nibble("tokenize", smollm2_q4_1, "--chat", sft)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    rows = [[as_text(message) for message in json.loads(row)["messages"]] for row in sft.read_text().splitlines()]
    assert len(lines) == len(rows) == 500
    for line, messages in zip(lines, rows):
        text = theirs(template, messages)
        assert line["text"] == text
        assert line["ids"] == vocabulary.encode(text.encode(), True)
        said = "".join(
            vocabulary_text(smollm2_q4_1)[i] for i, trained in zip(line["ids"], line["trained"]) if trained
        )
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert said == byte_level("".join(answer + "<|im_end|>" for answer in answers))


def test_answers_are_found_in_text_that_does_not_come_back(run_nibble, sft, shared, tmp_path):
    """Of Phi-3, by its name, llama.cpp drops the spaces behind special tokens."""
    folder = lay_folder(tmp_path / "model", shared, "SmolLM2-135M", "phi3", {"vocab_size": 32064})
    write_empty_weights(folder)
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for id, text in enumerate(("<|user|>", "<|end|>", "<|system|>"), 32003):
        config["added_tokens_decoder"][str(id)] = {"content": text, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    model = with_template(convert(run_nibble, folder, tmp_path / "model.gguf"), template, tmp_path, "Phi-3 mini")
    vocabulary = Vocabulary(model)
    rows = sft.read_text().splitlines()[:50]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    result = run_nibble("tokenize", model, "--chat", tmp_path / "rows.jsonl")
    assert result.returncode == 0, result.stderr
    for line, row in zip(map(json.loads, result.stdout.splitlines()), rows):
        messages = [as_text(message) for message in json.loads(row)["messages"]]
        assert line["ids"] == vocabulary.encode(theirs(template, messages).encode(), True)
        said = b"".join(piece(model, i) for i, trained in zip(line["ids"], line["trained"]) if trained)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert said.decode() == "".join(" " + answer.lstrip() + "<|end|>" for answer in answers)


def piece(model, id):
    """The bytes of a sentencepiece token."""
    text = vocabulary_text(model)[id]
    byte = re.fullmatch("<0x(..)>", text)
    return bytes.fromhex(byte[1]) if byte else text.replace("▁", " ").encode()


_TOKENS = {}


def vocabulary_text(path):
    if path not in _TOKENS:
        _TOKENS[path] = gguf.GGUFReader(path).get_field("tokenizer.ggml.tokens").contents()
    return _TOKENS[path]


def byte_level(text):
    """A text in the letters that byte-level BPE has for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in letters)}
    return "".join(letters[byte] for byte in text.encode())


def test_verify(run_nibble, smollm2_q4_1, sft):
    result = run_nibble("verify", smollm2_q4_1, "--chat", sft, "--json")
    found = json.loads(result.stdout)
    assert result.returncode == 0 and found["problems"] == []
    assert found["conversations"] == found["texts"] == 500
    assert 0 < found["trained_tokens"] < found["tokens"]


DEEP = []
for _ in range(500):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"text": "x"}], "line 1: this row has none of 'messages'"),
        ([{"messages": [USER]}], "line 1: no message of this row is an assistant's"),
        ([{"messages": [USER, ANSWER]}, {"messages": [{"role": "user"}, ANSWER]}], "line 2: message 1: 'content' is missing"),
        ([{"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER]}], "is of type 'image'"),
        ([{"conversations": [{"from": "alien", "value": "x"}]}], "turn 1: 'from' is 'alien'"),
        ([{"messages": {"role": "user"}}], "'messages' wants a list, found object"),
        (["x"], "wants a JSON object, found string"),
        ([{"messages": [USER, ANSWER], "tools": 5}], "line 1: 'tools' wants a list, found number"),
        ([{"messages": [USER, ANSWER], "tools": "look it up"}], "line 1: 'tools' is a string that is no JSON"),
        ([{"messages": [USER, ANSWER], "tools": ["x"]}], "line 1: 'tools' wants objects, found string"),
        ([{"messages": [USER, ANSWER], "tools": DEEP}], "line 1: is nested more than 64 levels deep"),
        ([{"messages": [USER, ANSWER], "tools": json.dumps(DEEP)}], "line 1: 'tools': is nested more than 64 levels deep"),
        ([{"instruction": "Q", "output": "A", "history": [["Q"]]}], "line 1: a turn of 'history' wants a question"),
    ],
)
def test_bad_rows(run_nibble, smollm2_q4_1, tmp_path, rows, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_nibble("verify", smollm2_q4_1, "--chat", path)
    assert result.returncode == 1 and message in result.stderr, result.stderr


def test_other_forms_of_rows(run_nibble, smollm2_q4_1, tmp_path):
    """ShareGPT, alpaca and prompt with response say the same as messages."""
    same = [
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q\nmore"}, {"role": "assistant", "content": "A"}]},
        {"system": "S", "conversations": [{"from": "human", "value": "Q\nmore"}, {"from": "gpt", "value": "A"}]},
        {"system": "S", "instruction": "Q", "input": "more", "output": "A"},
        {"system": "S", "prompt": "Q\nmore", "response": "A"},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "Q\n"}, {"type": "text", "value": "more"}]},
                      {"role": "assistant", "content": "A", "loss_weight": 1.0}]},
    ]  # fmt: skip
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(same))
    result = run_nibble("tokenize", smollm2_q4_1, "--chat", path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 5 and all({**line, "place": ""} == {**lines[0], "place": ""} for line in lines)
    assert lines[1]["place"].endswith("rows.json: conversation 2")


def test_turns_before_an_instruction(run_nibble, smollm2_q4_1, tmp_path):
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "QAqa")]
    same = [
        {"messages": turns}, {"conversations": turns},
        {"instruction": "q", "input": None, "output": "a", "history": [["Q", "A"]]},
    ]  # fmt: skip
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(same))
    result = run_nibble("tokenize", smollm2_q4_1, "--chat", path)
    assert result.returncode == 0, result.stderr
    lines = [{**json.loads(line), "place": ""} for line in result.stdout.splitlines()]
    assert len(lines) == 3 and lines[1] == lines[0] == lines[2]


def test_tools_may_be_a_text(run_nibble, smollm2_q4_1, tmp_path):
    template = (
        "{% for t in tools %}{{ t.function.name }};{% endfor %}"
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    model = with_template(smollm2_q4_1, template, tmp_path)
    path = tmp_path / "rows.json"
    both = [WEATHER], json.dumps([WEATHER])
    path.write_text(json.dumps([{"messages": [USER, ANSWER], "tools": tools} for tools in both]))
    result = run_nibble("tokenize", model, "--chat", path)
    assert result.returncode == 0, result.stderr
    one, two = (json.loads(line)["text"] for line in result.stdout.splitlines())
    assert one == two and WEATHER["function"]["name"] + ";" in one


def test_a_template_that_hides_earlier_answers(run_nibble, smollm2_q4_1, tmp_path):
    """Qwen3's leaves out what an earlier answer thought, so each answer is trained after the text that leads to it."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and not loop.last %}(hidden){% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = with_template(smollm2_q4_1, template, tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [USER, THOUGHT, USER, ANSWER]}) + "\n")
    lines = [json.loads(line) for line in run_nibble("tokenize", model, "--chat", path).stdout.splitlines()]
    assert [line["text"].count("(hidden)") for line in lines] == [0, 1]
    assert all(line["trained"][-2:] == [1, 0] for line in lines)


def test_an_answer_without_an_end(run_nibble, smollm2_q4_1, tmp_path):
    model = with_template(smollm2_q4_1, "{% for m in messages %}{{ m.content }}\n{% endfor %}", tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [USER, ANSWER]}) + "\n")
    result = run_nibble("verify", model, "--chat", path)
    assert result.returncode == 1 and "no token that ends a generation follows this answer" in result.stdout


def with_template(model, template, folder, name="a model"):
    """The model's metadata with another template, without its tensors."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(folder / "template.gguf", "llama")
    writer.add_name(name)
    for name, field in reader.fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = template if name == "tokenizer.chat_template" else field.contents()
        kinds = field.types
        writer.add_key_value(name, value, kinds[0], kinds[1] if len(kinds) > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "template.gguf"


# At most 127 characters: llama-quantize's limit for a text of --override-kv.
SHORT = "{% for m in messages %}{{m.role[0]}}:{{m.content}}{{eos_token}}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


@pytest.fixture(scope="module")
def chat_run(run_nibble, stories260k, tmp_path_factory):
    """stories260K with a chat template, trained for a few steps on conversations."""
    folder = tmp_path_factory.mktemp("chat_run")
    model = folder / "chat.gguf"
    result = run_nibble("quantize", stories260k, model, "COPY", "--override-kv", f"tokenizer.chat_template=str:{SHORT}")
    assert result.returncode == 0, result.stderr
    rows = [{"prompt": f"What did Lily do on day {i}?", "response": f"She went to the park {i} times."} for i in range(400)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(
        f"model: {model}\noutput: {folder / 'run'}\nquant: {{type: Q4_0}}\n"
        f"data: {{format: chat, files: [{folder / 'rows.jsonl'}], sequence_length: 64}}\n"
        "loss: {kind: mix, ce_weight: 0.5}\nbatch_tokens: 128\nmax_tokens: 2560\nevaluate_every: 10\n"
    )
    result = run_nibble("train", folder / "config.yaml")
    assert result.returncode == 0, result.stderr
    return folder


def test_training_on_conversations(run_nibble, chat_run):
    metrics = [json.loads(line) for line in (chat_run / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row["held_out_ce"] for row in metrics if row.get("held_out_ce", -1) >= 0]
    assert evaluated[-1] < evaluated[0]
    result = run_nibble("export", chat_run / "run", chat_run / "trained.gguf", "--ollama")
    assert result.returncode == 0, result.stderr
    assert run_nibble("verify", chat_run / "trained.gguf", "--against", chat_run / "run").returncode == 0


def go_template(modelfile):
    return modelfile.split('TEMPLATE """')[1].split('"""')[0]


def rendered_by_go(template, messages):
    """What Go's text/template makes of the actions that nibble writes: a range, its ifs by role, contents, texts."""
    inside, generation = template.removeprefix("{{ range .Messages }}").rsplit("{{ end }}{{ end }}", 1)
    pieces = re.split(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}', inside)[1:]
    by_role = dict(zip(pieces[::2], pieces[1::2]))
    text = "".join(by_role[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + generation
    return text.replace('{{ "{{" }}', "{{")


def test_ollama(run_nibble, chat_run):
    result = run_nibble("export", chat_run / "run", chat_run / "trained.gguf", "--ollama")
    assert "ollama create trained -f" in result.stderr
    modelfile = (chat_run / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./trained.gguf\n") and 'PARAMETER stop "</s>"' in modelfile
    for messages in ([USER], [SYSTEM, USER, ANSWER, USER]):
        assert rendered_by_go(go_template(modelfile), messages) == theirs(SHORT, messages, answer=True)


def test_a_system_message_wants_a_template(run_nibble, stories260k):
    result = run_nibble("generate", stories260k, "-p", "Why?", "--system", "Be brief.")
    assert result.returncode == 1 and "has no chat template, which --system is for" in result.stderr


def test_generate_uses_the_template(run_nibble, chat_run):
    ask = ["generate", chat_run / "chat.gguf", "-n", "8", "--json", "-p"]
    ids = {
        how: json.loads(run_nibble(*ask, *more).stdout)["models"][0]["ids"]
        for how, more in {
            "chat": ["Why?"], "raw": ["Why?", "--raw"], "by hand": [theirs(SHORT, [{"role": "user", "content": "Why?"}], answer=True), "--raw"],
            "system": ["Why?", "--system", SYSTEM["content"]],
            "system by hand": [theirs(SHORT, [SYSTEM, {"role": "user", "content": "Why?"}], answer=True), "--raw"],
        }.items()
    }  # fmt: skip
    assert ids["chat"] == ids["by hand"] != ids["raw"]
    assert ids["system"] == ids["system by hand"]
