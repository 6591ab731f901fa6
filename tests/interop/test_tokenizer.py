"""Token ids against the real llama.cpp's, id for id, on whole texts and on text that is hardly text."""

import ctypes
import json
import random
import re
import subprocess

import pytest
from conftest import built_library

llama_cpp = pytest.importorskip("llama_cpp")

LIBRARY = built_library("nibble_chat_c")
SILENT = llama_cpp.llama_log_callback(lambda *_: None)

NASTY = {
    "empty": b"",
    "spaces": b"  a   b \t \n\n  \r\n c    ",
    "emoji": "🙂 👩‍👩‍👧 🇩🇪 e\u0301 \u00ad\ufeff\u200b".encode(),
    "scripts": "漢字かな交じり文 한국어 Русский العربية हिन्दी ½ ² Ⅷ ١٢٣".encode(),
    "spaces beyond ASCII": "a\u00a0b\u1680c\u180ed\u2003e\u2028f\u205fg\u3000h\u0085i".encode(),
    "control characters": bytes(range(32)) + b"\x7f x" + bytes(range(31, -1, -1)),
    "not UTF-8": b"\xff\xfe a\x80b \xc3 \xe2\x96 \xf0\x9f\x99 \xed\xa0\x80 \xc0\x80\xe2",
    "contractions": b"don't DON'T we'LL I'd 'tis ''s '",
    "special tokens": b"<s>a</s> <unk><|im_start|>user\nx<|im_end|> <|endoftext|><|im_start",
    "the space's own mark": "▁ ▁▁a ▁b".encode(),
}


def every_character():
    """Each code point that UTF-8 may hold, with a space after every third."""
    points = (chr(c) + (" " if c % 3 == 0 else "") for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    return "".join(points).encode()


def random_bytes():
    draw = random.Random(1)
    common = b" aA1'\n\xe2\x96\x81\xc3"
    data = bytes(draw.choice([draw.randrange(256), draw.choice(common)]) for _ in range(100_000))
    # Code points beyond U+10FFFF make llama.cpp throw; nibble takes them for broken bytes.
    return bytes(byte for byte in data if byte < 0xF4)


class Vocabulary:
    def __init__(self, path):
        llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model

    def __del__(self):
        llama_cpp.llama_model_free(self.model)

    def encode(self, data, special):
        ids = (llama_cpp.llama_token * (2 * len(data) + 16))()
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), special, special)
        assert count >= 0
        return ids[:count]


    def ends_of_generation(self, count):
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        return {id for id in range(count) if llama_cpp.llama_vocab_is_eog(vocabulary, id)}


@pytest.fixture(scope="module", params=["smollm2", "stories260k", "gpt-2"])
def model(request, shared):
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2_q4_1")
    if request.param == "stories260k":
        return request.getfixturevalue("stories260k")
    return shared / "ggml-vocab" / "ggml-vocab-gpt-2.gguf"


@pytest.fixture(scope="module")
def vocabulary(model):
    return Vocabulary(model)


@pytest.fixture
def expect_equal(run_nibble, model, vocabulary, tmp_path):
    def expect(data):
        path = tmp_path / "text"
        path.write_bytes(data)
        for special in (True, False):
            flags = [] if special else ["--no-special", "--no-parse-special"]
            result = run_nibble("tokenize", model, path, "--json", *flags)
            assert result.returncode == 0, result.stderr
            ours, theirs = json.loads(result.stdout)["ids"], vocabulary.encode(data, special)
            if ours != theirs:
                first = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), -1)
                pytest.fail(f"{len(ours)} ids, llama.cpp {len(theirs)}; the first to differ is {first}")

    return expect


@pytest.mark.parametrize(
    "text", ["wikitext-2-raw/wiki.test.raw", "tinystories/valid_v1_nosep.txt", "calibration/groups_merged_419k.txt"]
)
def test_whole_texts(expect_equal, shared, text):
    expect_equal((shared / "text" / text).read_bytes())


@pytest.mark.parametrize("name", NASTY)
def test_nasty_text(expect_equal, name):
    expect_equal(NASTY[name])


def test_every_character(expect_equal):
    expect_equal(every_character())


def test_random_bytes(expect_equal):
    expect_equal(random_bytes())


# One name for each set of expressions.
PRE_TOKENIZERS = """default gpt-2 smollm llama-bpe dbrx chatglm-bpe glm4 qwen2 qwen35 ufakzeka laguna minicpm5 bailingmoe
    seed-coder tekken gpt-4o falcon deepseek-coder deepseek-v3 bloom viking""".split()
CASES = """HelloWorld fooBAR ÀÉî Ünï 12345 1234567 a/b//\n/ x 'S 'LL It's ITS'VE\n\n\tx  y\r\n\r\n ,.!? (a|b) `c` $5+3=8 ~^
    。，、 日本語テキスト カタカナ 가나다 e\u0301a\u0300 ½½ ١٢٣٤""".encode()


@pytest.fixture(scope="module")
def gpt2_vocabulary(shared):
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(shared / "ggml-vocab" / "ggml-vocab-gpt-2.gguf").fields
    return [fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers(run_nibble, gpt2_vocabulary, shared, tmp_path, name):
    """GPT-2's vocabulary under each pre-tokenizer's name."""
    import gguf

    tokens, types, merges = gpt2_vocabulary
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    text = (shared / "text" / "calibration" / "groups_merged_419k.txt").read_bytes()
    data = b"\n".join([*NASTY.values(), CASES, text[:100_000]])
    (tmp_path / "text").write_bytes(data)
    result = run_nibble("tokenize", tmp_path / "vocabulary.gguf", tmp_path / "text", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ids"] == Vocabulary(tmp_path / "vocabulary.gguf").encode(data, True)


# Families whose tokens llama.cpp takes for something else than their files say.
EXCEPTIONS = {
    "gpt-oss": ("gpt-oss 20b", ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>"]),
    "solar": ("solar open", ["<|end|>", "<|calls|>", "<|flush|>"]),
    "phi without calls": ("phi 2", ["<|end|>", "<|return|>", "<s>", "</s>", "<unk>"]),
    "phi-3": ("My Phi-3 mini", ["<|end|>", "<|user|>", "<s>", "</s>", "<unk>"]),
    "gemma 4": ("gemma 4", ["</s>", "<turn|>", "<|tool_response>", "<eos>"]),
}


@pytest.mark.parametrize("family", EXCEPTIONS)
@pytest.mark.skipif(not LIBRARY, reason="libnibble_chat_c.so is not built")
def test_exceptions(run_nibble, gpt2_vocabulary, tmp_path, family):
    import gguf

    name, special = EXCEPTIONS[family]
    tokens, types, merges = gpt2_vocabulary
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(name)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *special])
    writer.add_token_types([*types, *[3] * len(special)])
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    vocabulary = Vocabulary(path)
    text = "".join(f"{token} \n a {token}{token}\t" for token in [*special, "<|endoftext|>"]).encode()
    (tmp_path / "text").write_bytes(text)
    for flags, parses in (([], True), (["--no-special", "--no-parse-special"], False)):
        result = run_nibble("tokenize", path, tmp_path / "text", "--json", *flags)
        assert json.loads(result.stdout)["ids"] == vocabulary.encode(text, parses)
    ends = (ctypes.c_ubyte * (len(tokens) + len(special)))()
    LIBRARY.nibble_ends_of_generation(str(path).encode(), ends)
    ours = {id for id, end in enumerate(ends) if end}
    assert ours == vocabulary.ends_of_generation(len(ends)) and ours


def test_ids_as_llama_tokenize_prints_them(run_nibble, llama_bin, llama_env, stories260k, tmp_path):
    text = tmp_path / "text"
    text.write_text("Once upon a time, there was a little girl.")
    theirs = subprocess.run(
        [llama_bin("llama-tokenize"), "-m", stories260k, "-f", text, "--ids", "--log-disable"],
        env=llama_env, check=True, capture_output=True, text=True,
    )
    ours = run_nibble("tokenize", stories260k, text)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout.strip() == theirs.stdout.strip()


@pytest.mark.parametrize("arguments", [[], ["--temp", "0.8", "--seed", "3"]])
def test_generate_continues(run_nibble, stories260k, arguments):
    run = ["generate", stories260k, "-p", "Once upon a time", "-n", "24", "--json", *arguments]
    first, second = (run_nibble(*run) for _ in range(2))
    assert first.returncode == 0, first.stderr
    model = json.loads(first.stdout)["models"][0]
    assert 0 < len(model["ids"]) <= 24
    assert model["ids"] == json.loads(second.stdout)["models"][0]["ids"]


def test_generate_equals_llama_completion(run_nibble, run_llama, stories260k):
    prompt = "Once upon a time"
    ours = run_nibble("generate", stories260k, "-p", prompt, "-n", "32", "--json")
    assert ours.returncode == 0, ours.stderr
    text = (prompt + json.loads(ours.stdout)["models"][0]["text"]).strip()
    # Eight tokens more, since it can lose the last ones; all of our 32 must be there.
    theirs, _ = run_llama(
        "llama-completion", "-m", stories260k, "-p", prompt, "-n", "40", "--temp", "0", "-no-cnv",
        "-fa", "off", "-ctk", "f32", "-ctv", "f32", until=re.escape(text),
    )
    assert theirs.strip().startswith(text)
