"""nibble's tokenizers and Hugging Face's `tokenizers`, one thread each, on the two megabytes of mixed text of
tests/interop/test_convert_folder.py. Prints a table.

    python tests/bench/tokenizer_rates.py [--turns N]

Ids are compared first. Counted is processor time, in turns, medians: of nibble what COPIES more copies of the text take (so
that loading and starting fall away; writing the ids is in it), of the library the same copies in one call, without offsets
(encode_batch_fast).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "interop"))

import tokenizers  # noqa: E402

from test_convert import lay_folder  # noqa: E402
from test_convert_folder import mixed_text, write_empty_weights  # noqa: E402
from test_unigram import FORMS, tokenizer_json, train  # noqa: E402

NIBBLE = os.environ.get("NIBBLE", ROOT / "build" / "nibble")
SHARED = ROOT.parent / "shared" / "data"
COPIES = 4
MODELS = {
    "SmolLM2 (49,152)": ("SmolLM2-135M", "smollm2", {}),
    "Mistral v0.3 (32,768, spaces as marks)": ("Mistral-7B-Instruct-v0.3", "mistral json", {}),
    "Qwen3 (151,643)": ("Qwen3-4B", "qwen", {}),
    "cl100k (100,352)": ("SmolLM2-135M", "cl100k", {"vocab_size": 100352}),
    "Unigram (8,000, trained on the encyclopedia)": ("SmolLM2-135M", "unigram", {"vocab_size": 8000}),
}


def nibble(*arguments):
    done = subprocess.run([NIBBLE, *arguments], stdout=subprocess.PIPE, check=True)
    return done.stdout


def nibble_seconds(model, text):
    before = os.times()
    nibble("tokenize", model, text, "--no-special")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def library_seconds(tokenizer, text):
    before = time.process_time()
    tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return time.process_time() - before


def rates(folder, turns, config, tokenizer, changes):
    """Megabytes a second of nibble and of the library."""
    unigram = tokenizer == "unigram"
    lay_folder(folder, SHARED, config, "smollm2" if unigram else tokenizer, changes)
    write_empty_weights(folder)
    if unigram:
        train(SHARED, folder / "unigram.model", changes["vocab_size"])
        written = tokenizer_json(folder / "unigram.model", *FORMS["transformers' converter"][1:])
        (folder / "tokenizer.json").write_text(json.dumps(written))
    model, once, more = folder / "model.gguf", folder / "once", folder / "more"
    nibble("convert", folder, model, "-q")
    text = mixed_text(SHARED)
    once.write_text(text)
    more.write_text(text * (1 + COPIES))
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = json.loads(nibble("tokenize", model, once, "--no-special", "--json"))["ids"]
    assert ids == library.encode(text, add_special_tokens=False).ids
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(nibble_seconds(model, more) - nibble_seconds(model, once))
        theirs.append(library_seconds(library, text * COPIES))
    megabytes = COPIES * len(text.encode()) / 1e6
    return megabytes / statistics.median(ours), megabytes / statistics.median(theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    print("| tokenizer | nibble, MB/s | tokenizers, MB/s | ratio |\n| --- | --- | --- | --- |")
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = rates(pathlib.Path(folder) / "model", turns, *model)
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)


main()
