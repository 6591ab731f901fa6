"""nibble and llama.cpp's tools on the same file with the same threads, timed in turns; what they write or print is
compared before it is timed. Prints a table, or with --json one object, of medians, their ratio and its goal.

    python tests/bench/against_llama.py [--json] [--threads N] [--repeats N] [quantize | perplexity]...

The model is generated: a llama of 336 million F16 weights (Gaussian, seeded) with SmolLM2's tokenizer. Files lie on a
tmpfs, so that no disk is timed.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "interop"))
import gguf_table  # noqa: E402  (beside the tests that they are for)
from generated_llama import write_llama  # noqa: E402

SITE_PACKAGES = pathlib.Path(sysconfig.get_path("purelib"))
TMPFS = pathlib.Path("/dev/shm")
# Times llama-quantize's that are to be reached: by method and type, and of the ten in one pass.
GOALS = {
    "ggml": {**dict.fromkeys(["Q8_0", "Q4_0", "Q5_0", "Q1_0", "Q2_0", "TQ2_0"], 0.7),
             **dict.fromkeys(["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"], 0.35), "IQ4_NL": 0.25, "IQ4_XS": 0.25},
    "search": dict.fromkeys(["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"], 1.0),
}
TEN_TYPES = ["Q2_K", "Q3_K_M", "Q4_0", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"]
TEN_GOAL = 0.35
QUANTIZE_TYPES = ["Q8_0", "Q4_0", "Q5_0", "Q1_0", "Q2_0", "TQ2_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


def write_model(path, options, dtype):
    write_llama(path, options.tokenizer, width=1024, wide=3072, layers=21, heads=16, context=2048, dtype=dtype)


def run(command, threads):
    """(seconds, what it printed)."""
    environment = {
        **os.environ, "LD_LIBRARY_PATH": str(SITE_PACKAGES / "lib"), "OMP_NUM_THREADS": str(threads),
    }
    begin = time.perf_counter()
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if result.returncode != 0:
        sys.exit(f"{command[0]} failed: {result.stderr[-1000:]}")
    return seconds, result.stdout + result.stderr


def in_turns(commands, options):
    """{name: a program's commands} -> {name: median seconds of them all}; one turn before counts for nothing."""
    times = {name: [] for name in commands}
    for turn in range(options.repeats + 1):
        for name, steps in commands.items():
            seconds = sum(run(command, options.threads)[0] for command in steps)
            if turn > 0:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def row_of(what, seconds, goal=None):
    return {
        "what": what, "nibble_seconds": seconds["nibble"], "llama_seconds": seconds["llama.cpp"],
        "ratio": seconds["nibble"] / seconds["llama.cpp"], "goal": goal,
    }


def check_same(what, ours, theirs, bytes_too):
    """Stops where the files' tensors differ in type or, if wanted, in bytes."""
    mine, their = gguf_table.read(ours)[1], gguf_table.read(theirs)[1]
    if {name: tensor.type for name, tensor in mine.items()} != {name: tensor.type for name, tensor in their.items()}:
        sys.exit(f"{what}: the files' tensor types differ")
    if bytes_too and any(mine[name] != tensor for name, tensor in their.items()):
        sys.exit(f"{what}: the files' bytes differ")


def bench_quantize(options, folder, llama):
    model = folder / "f16.gguf"
    write_model(model, options, np.float16)
    for type_name in QUANTIZE_TYPES:
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        for method in ("ggml", "search"):
            commands = {
                "nibble": [[options.nibble, "quantize", "-q", "--pure", "--method", method, model, ours, type_name,
                            options.threads]],
                "llama.cpp": [[llama("llama-quantize"), "--pure", model, theirs, type_name, options.threads]],
            }
            for (command,) in commands.values():
                run(command, options.threads)
            check_same(type_name, ours, theirs, bytes_too=method == "ggml")
            yield row_of(f"quantize {type_name}, {method}", in_turns(commands, options), GOALS[method].get(type_name))
        ours.unlink()
        theirs.unlink()
    yield ten_types_row(options, folder, llama, model)
    model.unlink()


def ten_types_row(options, folder, llama, model):
    """Ten file types in one pass over the model against llama-quantize ten times."""
    many, theirs = folder / "many", folder / "theirs.gguf"
    ours = [options.nibble, "quantize", "-q", "--method", "ggml", model, many, "--types", ",".join(TEN_TYPES),
            options.threads]
    alone = {name: [llama("llama-quantize"), model, theirs, name, options.threads] for name in TEN_TYPES}
    run(ours, options.threads)
    for name, command in alone.items():
        run(command, options.threads)
        check_same(name, many / f"{model.stem}-{name}.gguf", theirs, bytes_too=True)
    seconds = in_turns({"nibble": [ours], "llama.cpp": list(alone.values())}, options)
    shutil.rmtree(many)
    theirs.unlink()
    return row_of("quantize to ten types, ggml", seconds, TEN_GOAL)


def perplexity_in(text):
    return float(re.search(r"PPL[ =]+([\d.]+) \+/-", text)[1])


def bench_perplexity(options, folder, llama):
    text = folder / "text.txt"
    text.write_text("\n".join(path.read_text() for path in sorted(ROOT.glob("docs/*.md"))))
    for name, dtype in (("F16", np.float16), ("F32", np.float32)):
        model = folder / f"{name}.gguf"
        write_model(model, options, dtype)
        sizes = ["--ctx", "512", "--chunks", "4"]
        commands = {
            "nibble": [[options.nibble, "perplexity", model, text, *sizes]],
            "llama.cpp": [[llama("llama-perplexity"), "-m", model, "-f", text, "-c", "512", "--chunks", "4", "-t",
                           options.threads, "-ub", "512", "-b", "2048"]],
        }
        values = {}
        while len(values) < 2:  # llama.cpp's log can lose its last lines when the program ends
            values = {}
            for program, (command,) in commands.items():
                printed = run(command, options.threads)[1]
                if "PPL" in printed and "+/-" in printed:
                    values[program] = perplexity_in(printed)
        # llama.cpp keeps keys and values in float16.
        if abs(values["nibble"] / values["llama.cpp"] - 1) > 1e-3:
            sys.exit(f"{name}: the perplexities differ: {values}")
        yield row_of(f"perplexity {name}, 2,048 tokens", in_turns(commands, options))
        model.unlink()


BENCHES = {"quantize": bench_quantize, "perplexity": bench_perplexity}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=" or ".join(BENCHES) + "; all without a name")
    parser.add_argument("--nibble", default=ROOT / "build" / "nibble", help="the program")
    parser.add_argument("--tokenizer", default=ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf",
                        help="GGUF file whose tokenizer the model gets")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in options.benches:
        if name not in BENCHES:
            parser.error(f"no benchmark '{name}'; there are {', '.join(BENCHES)}")

    def llama(tool):
        path = SITE_PACKAGES / "bin" / tool
        if not path.exists():
            sys.exit(f"no {tool}: scripts/test installs llama.cpp's tools")
        return path

    folder = pathlib.Path(tempfile.mkdtemp(dir=TMPFS if TMPFS.is_dir() else None, prefix="nibble-bench-"))
    rows = []
    try:
        for name in options.benches or BENCHES:
            for row in BENCHES[name](options, folder, llama):
                rows.append(row)
                if not options.json:
                    goal = f"   goal {row['goal']:.2f}" if row["goal"] else ""
                    print(f"{row['what']:32} nibble {row['nibble_seconds']:7.2f} s   llama.cpp "
                          f"{row['llama_seconds']:7.2f} s   ratio {row['ratio']:.2f}{goal}", flush=True)
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps({"threads": options.threads, "repeats": options.repeats, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
