"""Training of a mixture of experts of which steps reach only some: a run that was stopped and goes on."""

import json
import signal
import subprocess
import time

import numpy as np
from safetensors.numpy import load_file

from conftest import PROGRAM
from generated_llama import write_llama


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(run_nibble, stories260k, shared, tmp_path):
    model, config = tmp_path / "model.gguf", tmp_path / "run.yaml"
    write_llama(model, stories260k, width=64, wide=96, layers=2, heads=4, context=256, dtype=np.float32, experts=16)
    text = shared / "text" / "tinystories" / "valid_v1_nosep.txt"
    config.write_text(
        f"""model: {model}
quant: {{type: Q4_0, initial: rtn}}
data: {{files: ["{text}"], sequence_length: 16, max_bytes: 200000}}
loss: {{kind: kl, load_balance: 0.01}}
batch_tokens: 16
max_tokens: 4800
evaluate_every: 0
"""
    )
    assert run_nibble("train", config, "--set", f"output={tmp_path / 'whole'}").returncode == 0
    stopped = ["train", config, "--set", f"output={tmp_path / 'stopped'}"]
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    process = subprocess.Popen(
        [PROGRAM, *map(str, stopped)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 20):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 1  # stopped before its end
    assert run_nibble(*stopped, "--resume").returncode == 0
    whole, resumed = (
        load_file(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("whole", "stopped")
    )
    assert list(whole) == list(resumed)
    for checkpoint in (whole, resumed):
        del checkpoint["checksum"]  # of the header too, which says how long it took
    assert [name for name in whole if whole[name].tobytes() != resumed[name].tobytes()] == []
    steps = [json.loads(line) for line in metrics.read_text().splitlines()][1:]
    # Of three stacks of 16 experts in each of two layers, the first and the last are never reached.
    assert all(2 * 3 * 2 <= step["unreached"] < 2 * 3 * 16 for step in steps)
