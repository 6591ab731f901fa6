"""Decoding and fake quantization of every block format on one thread: million weights a second, beside ggml's decode and as
a share of memcpy's bytes a second. Each is the fastest of several repetitions, which all benchmarks take in random turns:
what else uses the memory would make any one of them a matter of luck.

    NIBBLE_GGML_BASE=libggml-base.so python tests/bench/format_rates.py nibble_bench [REPETITIONS]
"""

import json
import subprocess
import sys

WEIGHTS = 1 << 24  # kNumWeights of format_bench.cc


def measure(program, repetitions):
    """{benchmark: seconds}"""
    result = subprocess.run(
        [program, "--benchmark_filter=^(memcpy|decode|ggml_decode|fake_quantize|fake_quantize_backward)", "--benchmark_format=json",
         f"--benchmark_repetitions={repetitions}", "--benchmark_min_time=0.02", "--benchmark_enable_random_interleaving=true"],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    runs = json.loads(result.stdout)["benchmarks"]
    failed = [run["name"] for run in runs if run.get("error_occurred")]
    if failed:
        sys.exit(f"wrong results: {', '.join(sorted(set(failed)))}")
    turns = [run for run in runs if run["run_type"] == "iteration"]
    sizes = {run["run_name"]: run["bytes_per_second"] * run["real_time"] / 1e3 for run in turns}
    fastest = {run["run_name"]: run["real_time"] / 1e3 for run in runs if run.get("aggregate_name") == "fastest"}
    return {name: (seconds, sizes[name]) for name, seconds in fastest.items()}


def main():
    taken = measure(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9)
    copied = taken["memcpy"][1] / taken["memcpy"][0]
    print(f"memcpy: {copied / 1e9:.1f} GB/s read and written\n")
    print("| format | decode | ggml's decode | ratio | share | fake quant | share | its backward | share |\n|" + " --- |" * 9)

    def rate(name):
        return f"{WEIGHTS / taken[name][0] / 1e6:.0f}" if name in taken else ""

    def share(name):
        return f"{taken[name][1] / taken[name][0] / copied:.0%}".replace("%", " %") if name in taken else ""

    for name in sorted(name.removeprefix("decode/") for name in taken if name.startswith("decode/")):
        ours, theirs = taken[f"decode/{name}"][0], taken.get(f"ggml_decode/{name}", (None,))[0]
        ratio = f"{theirs / ours:.2f}" if theirs else ""
        cells = [name, rate(f"decode/{name}"), rate(f"ggml_decode/{name}"), ratio, share(f"decode/{name}")]
        for what in (f"fake_quantize/{name}", f"fake_quantize_backward/{name}"):
            cells += [rate(what), share(what)]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
