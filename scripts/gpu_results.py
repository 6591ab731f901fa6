"""The page of a GPU machine's results: gpu_results.py RESULTS_DIR OUT_DIR, from what scripts/gpu left in RESULTS_DIR."""

import json
import pathlib
import re
import subprocess
import sys
import time

# What is aimed at: shares of the copy's bandwidth, and a quantized step's time over a plain one's.
DECODE_GOAL, FAKE_QUANT_GOAL, STEP_GOAL = 0.90, 0.80, 1.05


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def read_json(path):
    return json.loads(path.read_text()) if path.exists() and path.stat().st_size else None


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def tests(results):
    log = results / "tests.log"
    if not log.exists():
        return "Not run.\n"
    text = log.read_text(errors="replace")
    count = lambda word: sum(int(n) for n in re.findall(rf"\[  {word} *\] (\d+) tests?", text))
    return f"{count('PASSED')} passed, {count('FAILED')} failed, {count('SKIPPED')} skipped.\n"


def sanitizer(results):
    log = results / "sanitizer.log"
    if not log.exists():
        return "Not run.\n"
    lines = re.findall(r"^==\s+\w+check .*|ERROR SUMMARY.*|RACECHECK SUMMARY.*", log.read_text(errors="replace"), re.M)
    return "```\n" + "\n".join(line.strip("= ") for line in lines) + "\n```\n"


def kernels(results):
    report = read_json(results / "kernels.json")
    if report is None:
        return "Not run.\n"
    # name/manual_time -> bytes per second and seconds
    measured, failed = {}, []
    for row in report["benchmarks"]:
        name = row["name"].removesuffix("/manual_time")
        if row.get("error_occurred"):
            failed.append(f"{name}: {row['error_message']}")
        else:
            measured[name] = (row["bytes_per_second"], row["real_time"] * 1e-3)
    if "cuda_copy" not in measured:
        return "\n".join(failed) + "\n"
    copy = measured["cuda_copy"][0]
    share = lambda name: f"{measured[name][0] / copy:.1%}" if name in measured else "-"

    def both(name):
        passes = [measured.get(f"cuda_fake_quantize{part}/{name}") for part in ("", "_backward")]
        if None in passes:
            return "-"
        return f"{sum(rate * seconds for rate, seconds in passes) / sum(seconds for _, seconds in passes) / copy:.1%}"

    names = dict.fromkeys(name.split("/")[1] for name in measured if "/" in name)
    rows = [
        [name, *(share(f"cuda_decode/{name}/{kind}") for kind in ("float32", "float16", "bfloat16")),
         share(f"cuda_fake_quantize/{name}"), share(f"cuda_fake_quantize_backward/{name}"), both(name)]
        for name in names
    ]
    speed = lambda key: f"{2**27 / measured[key][1] / 1e9:.1f}" if key in measured else "-"
    encoders = [
        [name, *(speed(f"cuda_encode_{method}/{name}") for method in ("rtn", "ggml", "search"))]
        for name in names
        if f"cuda_encode_rtn/{name}" in measured
    ]
    return (
        f"A device-to-device copy of 512 MB moves {copy / 1e9:.0f} GB/s (read and written). Shares of that; goals: decode "
        f"{DECODE_GOAL:.0%}, fake quantization forward and backward together {FAKE_QUANT_GOAL:.0%}.\n\n"
        + table(["format", "decode float32", "float16", "bfloat16", "forward", "backward", "both"], rows)
        + "\nEncoders, 10^9 weights a second:\n\n" + table(["format", "rtn", "ggml", "search"], encoders)
        + "".join(f"\n{line}\n" for line in failed)
    )


def training(results):
    rows = []
    for path in sorted(results.glob("training_*.json")):
        report = read_json(path)
        if report is None:
            continue
        step, plain = report["quantized"], report["unquantized"]
        rows.append([
            report["type"], report["tokens"], f"{step['seconds'] * 1e3:.2f}", f"{plain['seconds'] * 1e3:.2f}",
            f"{report['ratio']:.3f}", f"{step['tokens_per_second']:.0f}",
            f"{1e3 * (step['parts']['materialize'] + step['parts']['quant_backward']):.2f}",
        ])
    header = ["type", "tokens a step", "quantized, ms", "plain, ms", "ratio", "tokens/s", "of it quantization, ms"]
    return f"Goal: ratio at most {STEP_GOAL}.\n\n" + table(header, rows) if rows else "Not run.\n"


def models(results):
    parts = []
    for path in sorted(results.glob("run_*.json")):
        report = read_json(path)
        if report is None:
            continue
        kind = path.stem.removeprefix("run_")
        rows = [
            [m["name"], f"{m['bpw']:.2f}", f"{m['ppl']:.3f}", f"{m['mean_kld']:.4f} ± {m['mean_kld_err']:.4f}",
             f"{m['same_top']:.1%}"]
            for m in report["models"]
        ]
        text = f"### {kind}\n\nBase: {report['base']}, PPL {report['base_ppl']:.3f}; {report['tokens']} tokens scored.\n\n"
        text += table(["model", "bpw", "PPL", "mean KLD", "same top"], rows)
        metrics = results / f"metrics_{kind}.jsonl"
        if metrics.exists():
            last = json.loads(metrics.read_text().splitlines()[-1])
            text += f"\n{last['tokens']} tokens in {last['seconds']:.0f} s.\n"
        verified = read_json(results / f"verify_{kind}.json")
        if verified:
            text += (
                f"\n`nibble verify`: {'passed' if verified['passed'] else 'FAILED'}; {verified['weights']} weights, "
                f"{verified['weights_compared']} against the checkpoint, {verified['weights_on_gpu']} decoded by the GPU.\n"
            )
        parts.append(text)
    return "\n".join(parts) or "Not run.\n"


def main():
    results, out = map(pathlib.Path, sys.argv[1:3])
    name, driver, memory = (results / "gpu.txt").read_text().strip().split(", ")
    root = pathlib.Path(__file__).resolve().parents[1]
    commit = first_line(["git", "-C", str(root), "rev-parse", "--short", "HEAD"])
    torch = first_line([sys.executable, "-c", "import torch; print(torch.__version__)"])
    short = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("nvidia", "")).strip("_")
    page = out / f"{short}_{time.strftime('%Y%m')}.md"
    page.write_text(
        f"# {name}, {time.strftime('%B %Y')}\n\n"
        f"`scripts/gpu` at commit {commit}; {memory}, driver {driver}, Torch {torch}.\n\n"
        f"## Tests\n\n{tests(results)}\n## compute-sanitizer\n\n{sanitizer(results)}\n"
        f"## Kernels\n\n{kernels(results)}\n## Training step\n\nSmolLM2-135M, bfloat16 matmuls, KL distillation, learned "
        f"scales, against the same step without quantization.\n\n{training(results)}\n## Models\n\n{models(results)}"
    )
    print(page)


main()
