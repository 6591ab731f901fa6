"""Unigram tokenizers of folders: token ids against the real llama.cpp's, `tokenizers`' and sentencepiece's, keys against
those that llama.cpp's converter writes of a T5 model.

The tokenizers are trained by sentencepiece and by `tokenizers`, and stand in a folder in every form that their own and
transformers' converters give them.
"""

import base64
import json
import subprocess
import sys
import unicodedata

import gguf_table
import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from test_chat import as_text
from test_convert import convert, converter, lay_folder, run_converter, torch_env  # noqa: F401
from test_convert_folder import mixed_text, write_empty_weights
from test_tokenizer import NASTY, Vocabulary, every_character, random_bytes

SIZE = 4000
TRAINED = {
    "published": {},  # sentencepiece's defaults, which T5 and XGLM have
    "as written": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "no prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "user_defined_symbols": ["\n", "<|sep|>"]},
    "bytes": {"byte_fallback": True, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
MERGE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# Which model, normalizers ("map" is the model's own) and pre-tokenizer.
FORMS = {
    "transformers' converter": ("published", ["map", STRIP, MERGE], METASPACE),
    "t5": ("published", ["map"], {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}),
    "xglm": ("published", ["map", {**MERGE, "content": " "}], {**METASPACE, "add_prefix_space": True}),
    "llama": ("as written", [{"type": "Prepend", "prepend": "▁"}, MARK], None),
    "marks alone": ("no prefix", ["map", MARK], None),
    "no prefix": ("no prefix", ["map"], {**METASPACE, "prepend_scheme": "never"}),
    "no split": ("as written", [], {**METASPACE, "split": False}),
    "tokenizers' own": ("as written", [{"type": "Nmt"}, {"type": "NFKC"}, {**MERGE, "content": " "}], METASPACE),
    "lower case": ("as written", [{"type": "Lowercase"}, {"type": "NFC"}], METASPACE),
    "words": ("as written", [], {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}),
}


def train(shared, path, vocab_size=SIZE, **options):
    sentencepiece.SentencePieceTrainer.train(
        input=str(shared / "text" / "wikitext-2-raw" / "wiki.test.raw"), model_prefix=str(path.with_suffix("")),
        model_type="unigram", vocab_size=vocab_size, minloglevel=2, num_threads=2, **options,
    )  # fmt: skip


@pytest.fixture(scope="session")
def trained(shared, tmp_path_factory):
    """The path of a model's file by its name in TRAINED."""
    folder = tmp_path_factory.mktemp("trained")

    def path_of(name):
        path = folder / f"{name}.model"
        if not path.exists():
            train(shared, path, **TRAINED[name])
        return path

    return path_of


def proto_of(path):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def tokenizer_json(path, normalizers, pre_tokenizer, **model):
    proto = proto_of(path)
    character_map = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    steps = [{"type": "Precompiled", "precompiled_charsmap": character_map} if step == "map" else step for step in normalizers]
    added = [
        {"id": id, "content": piece.piece, "special": piece.type != piece.USER_DEFINED, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for id, piece in enumerate(proto.pieces)
        if piece.type in (piece.UNKNOWN, piece.CONTROL, piece.USER_DEFINED)
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "decoder": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None, "pre_tokenizer": pre_tokenizer,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[piece.piece, piece.score] for piece in proto.pieces], **model},
    }  # fmt: skip


@pytest.fixture
def folder(shared, tmp_path):
    """A llama's folder without a tokenizer."""
    folder = lay_folder(tmp_path / "model", shared, "SmolLM2-135M", "smollm2", {"vocab_size": SIZE + 100})
    write_empty_weights(folder)
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.fixture
def ids_of(run_nibble, tmp_path):
    def ids(model, data, *flags):
        (tmp_path / "text").write_bytes(data)
        result = run_nibble("tokenize", model, tmp_path / "text", "--json", *flags)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["ids"]

    return ids


@pytest.mark.parametrize("name", TRAINED)
def test_ids_are_llama_cpps_and_sentencepieces(run_nibble, ids_of, trained, folder, shared, name):
    (folder / "tokenizer.model").write_bytes(trained(name).read_bytes())
    path = convert(run_nibble, folder, folder / "model.gguf")
    vocabulary = Vocabulary(path)
    texts = {**NASTY, "every character": every_character(), "random": random_bytes()}
    for text in ("wikitext-2-raw/wiki.test.raw", "calibration/groups_merged_419k.txt"):
        texts[text] = (shared / "text" / text).read_bytes()
    for text, data in texts.items():
        assert ids_of(path, data) == vocabulary.encode(data, True), text
        assert ids_of(path, data, "--no-special", "--no-parse-special") == vocabulary.encode(data, False), text

    # The library sums in float32: of ways to cut a text that are nearly as good it may take another one.
    library = sentencepiece.SentencePieceProcessor(model_file=str(trained(name)))
    lines = mixed_text(shared).split("\n")[:5000]
    if name == "no prefix":  # where a line's end is a token
        lines = ["\n".join(lines[i : i + 10]) for i in range(0, len(lines), 10)]
    lines = [line for line in lines if line.strip() and not falls_back(library, line)]
    others = [line for line in lines if vocabulary.encode(line.encode(), False) != library.encode(line)]
    assert len(lines) > 300 and len(others) <= len(lines) // 1000, others[:3]


def falls_back(library, line):
    """Whether the library has bytes in the place of characters beyond ASCII, for which llama.cpp has the unknown token."""
    return any(library.is_byte(id) and int(library.id_to_piece(id)[3:5], 16) >= 0x80 for id in library.encode(line))


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_those_of_the_tokenizers_library(run_nibble, ids_of, trained, folder, shared, form):
    name, normalizers, pre_tokenizer = FORMS[form]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(trained(name), normalizers, pre_tokenizer)))
    path = convert(run_nibble, folder, folder / "model.gguf")
    text = mixed_text(shared)
    if form == "t5":  # of all spaces the one that its map leaves
        text = text.replace("\x85", "")
    if form == "words":  # where the library takes a mark in the text for the one that it adds
        text = text.replace("▁", "")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids_of(path, text.encode(), "--no-special") == library.encode(text, add_special_tokens=False).ids
    data = text.encode()[:100_000] + b"".join(NASTY.values())
    assert ids_of(path, data) == Vocabulary(path).encode(data, True)


@pytest.mark.parametrize("steps", [["Nmt", "NFKC"], ["NFC"], ["NFD"], ["NFKD", "Lowercase"]], ids=" ".join)
def test_characters_become_what_the_tokenizers_library_makes_of_them(run_nibble, trained, folder, steps):
    """The library, which reads such maps itself, with the map that stands in the file, and with the normalizers."""
    normalizers = [{"type": step} for step in steps]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(trained("as written"), normalizers, METASPACE)))
    path = convert(run_nibble, folder, folder / "model.gguf")
    ours = tokenizers.normalizers.Precompiled(bytes(gguf_table.read(path)[0]["tokenizer.ggml.precompiled_charsmap"][1]))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).normalizer
    points = [chr(point) for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
    others = [point for point in points if ours.normalize_str(point) != theirs.normalize_str(point)]
    # Of two versions of Unicode the one that does not know a character leaves it as it is.
    assert len(others) < 250 and all(point in (ours.normalize_str(point), theirs.normalize_str(point)) for point in others)
    assert sum(theirs.normalize_str(point) != point for point in points) > 1000


def test_decomposed_text_has_the_ids_of_composed(run_nibble, ids_of, trained, folder, shared):
    form = tokenizer_json(trained("published"), [{"type": "Nmt"}, {"type": "NFKC"}, STRIP, MERGE], METASPACE)
    (folder / "tokenizer.json").write_text(json.dumps(form))
    path = convert(run_nibble, folder, folder / "model.gguf")
    text = "Zürich, naïve façade, Ǖ ǭ ṩ, 한국어의 각, ガギグ ﾊﾟﾋﾞ Ａ１ ﬁ ½ „Ω“" + mixed_text(shared)[:200_000]
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for normal_form in ("NFC", "NFD"):
        data = unicodedata.normalize(normal_form, text)
        assert ids_of(path, data.encode(), "--no-special") == library.encode(data, add_special_tokens=False).ids


def test_of_a_tokenizer_that_the_tokenizers_library_trained(run_nibble, ids_of, folder, shared):
    library = tokenizers.Tokenizer(tokenizers.models.Unigram())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    library.train([str(shared / "text" / "wikitext-2-raw" / "wiki.test.raw")], trainer)
    library.save(str(folder / "tokenizer.json"))
    path = convert(run_nibble, folder, folder / "model.gguf")
    text = mixed_text(shared)
    assert ids_of(path, text.encode(), "--no-special") == library.encode(text, add_special_tokens=False).ids


def test_bytes_of_ascii_fall_back_and_the_rest_is_named(run_nibble, ids_of, trained, folder):
    form = tokenizer_json(trained("bytes"), [{"type": "Prepend", "prepend": "▁"}, MARK], None, byte_fallback=True)
    (folder / "tokenizer.json").write_text(json.dumps(form))
    result = run_nibble("convert", folder, folder / "model.gguf")
    assert result.returncode == 0 and "become '<unk>', since llama.cpp has no byte fallback" in result.stderr, result.stderr
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "tabs\tand\nlines of\x0b\x7fcode {`^~}\n\n"
    assert "<0x0A>" in library.encode(text).tokens
    assert ids_of(folder / "model.gguf", text.encode(), "--no-special") == library.encode(text, add_special_tokens=False).ids
    unknown = ids_of(folder / "model.gguf", "🙂🙂".encode(), "--no-special")
    assert unknown[-1] == 0 and unknown == Vocabulary(folder / "model.gguf").encode("🙂🙂".encode(), False)


def test_keys_are_those_of_llama_cpps_converter_for_t5(run_nibble, torch_env, converter, trained, folder, tmp_path):  # noqa: F811
    """Which of all models writes a Unigram tokenizer; it leaves open what T5's own defaults are."""
    t5 = tmp_path / "t5"
    make = """import sys, transformers as t
t.T5ForConditionalGeneration(t.T5Config(vocab_size=int(sys.argv[2]), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2,
decoder_start_token_id=0)).save_pretrained(sys.argv[1])"""
    subprocess.run([sys.executable, "-c", make, str(t5), str(SIZE + 100)], env=torch_env, check=True, capture_output=True)
    for path in (t5, folder):
        (path / "tokenizer.model").write_bytes(trained("published").read_bytes())
    run_converter(converter, torch_env, t5, tmp_path / "theirs.gguf", "f32")
    convert(run_nibble, folder, tmp_path / "ours.gguf")
    ours, theirs = (
        {key: value for key, value in gguf_table.read(tmp_path / file)[0].items() if key.startswith("tokenizer.")}
        for file in ("ours.gguf", "theirs.gguf")
    )
    special = [key for key in ours | theirs if key.endswith(("_token_id", "add_bos_token", "add_eos_token"))]
    for key in special:  # T5's and SmolLM2's config.json differ in these
        ours.pop(key, None), theirs.pop(key, None)
    assert len(theirs) == 8 and ours == theirs


def test_chat_is_trained_as_llama_cpp_reads_it(run_nibble, trained, folder, shared, tmp_path):
    """With line ends that become spaces, runs of spaces that become one, and characters that are unknown."""
    form = tokenizer_json(trained("published"), ["map", STRIP, MERGE], METASPACE)
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:\n{% endif %}"
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    (folder / "tokenizer.json").write_text(json.dumps(form))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    path = convert(run_nibble, folder, folder / "model.gguf")
    rows = (shared / "chat" / "v1_sft_demo.jsonl").read_text().splitlines()[:50]
    turns = [("user", "Wie?"), ("assistant", "So:\n\n  🙂 x\ty  "), ("user", "Ａ1"), ("assistant", "ﬁn")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, json.dumps({"messages": messages})]))
    assert run_nibble("verify", path, "--chat", tmp_path / "rows.jsonl").returncode == 0
    result = run_nibble("tokenize", path, "--chat", tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    vocabulary, library = Vocabulary(path), sentencepiece.SentencePieceProcessor(model_file=str(trained("published")))
    for line, row in zip(lines, (tmp_path / "rows.jsonl").read_text().splitlines(), strict=True):
        texts = [as_text(message) for message in json.loads(row)["messages"]]
        text = "<s>" + "".join(f"{message['role']}:\n{message['content']}</s>\n" for message in texts)
        assert line["ids"] == vocabulary.encode(text.encode(), True)
    said = [i for i, is_trained in zip(lines[-1]["ids"], lines[-1]["trained"]) if is_trained]
    # The space before an answer belongs to it, since a word begins with its space.
    assert library.decode(said) == "So:  ⁇  x y fin" and said.count(library.eos_id()) == 2


REFUSED = {
    "normalizer 'StripAccents'": {"normalizer": {"type": "StripAccents"}},
    "normalizer 'Replace'; nibble knows": {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}},
    "normalizer 'NFKC' comes after another": {"normalizer": {"type": "Sequence", "normalizers": [MARK, {"type": "NFKC"}]}},
    "pre-tokenizer 'ByteLevel'": {"pre_tokenizer": {"type": "ByteLevel"}},
    "spaces are not replaced": {"pre_tokenizer": None},
    "has another mark": {"pre_tokenizer": {**METASPACE, "replacement": "_"}},
    "character 1 is not of base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A!"}},
    "a character map of 3 bytes": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "key 'unk_id'": {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}},
    "token 0 is not a text and its score": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a"]]}},
    "has 5000 tokens, the model 4100": {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[str(i), -1.0] for i in range(5000)]}
    },
}


@pytest.mark.parametrize("complaint", REFUSED)
def test_what_gguf_cannot_say_is_refused(run_nibble, trained, folder, complaint):
    form = tokenizer_json(trained("as written"), [], METASPACE)
    (folder / "tokenizer.json").write_text(json.dumps({**form, **REFUSED[complaint]}))
    result = run_nibble("convert", folder, folder / "model.gguf")
    assert result.returncode == 1 and complaint in result.stderr and "tokenizer.json" in result.stderr, result.stderr
    assert not (folder / "model.gguf").exists()
