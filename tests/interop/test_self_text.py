"""A model that writes its own training text: data.files names self."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

CONFIG = """
model: {model}
output: {output}
quant: {{type: Q4_0}}
data: {{files: [{files}], sequence_length: 64, held_out: 0.1}}
self: {{tokens: 1500, temperature: 0.9}}
batch_tokens: 128
max_tokens: 1024
evaluate_every: 0
checkpoint_every: 2
{more}
"""


@pytest.fixture
def train(run_nibble, stories260k, tmp_path, one_thread):
    def run(name, *arguments, files="self", more="", command="train"):
        config = tmp_path / f"{name}.yaml"
        config.write_text(CONFIG.format(model=stories260k, output=tmp_path / name, files=files, more=more))
        return run_nibble(command, config, *arguments)

    return run


def test_trains_on_what_it_wrote(train, tmp_path):
    result = train("own")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "own" / "self.jsonl").read_text().splitlines()]
    assert f"self.jsonl: {len(rows)} texts that the model wrote at temperature 0.9" in result.stderr
    assert len({row["text"] for row in rows}) == len(rows) > 20
    # It is a model of children's stories.
    words = " ".join(row["text"] for row in rows).split()
    assert sum(word in ("was", "the", "and", "to", "a", "she", "he") for word in words) > len(words) / 10
    metrics = [json.loads(line) for line in (tmp_path / "own" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 8 and metrics[-1]["held_out_loss"] < metrics[0]["held_out_loss"]
    assert "files: [self]" in (tmp_path / "own" / "config.yaml").read_text()


def test_a_resumed_run_keeps_its_text(train, tmp_path):
    assert train("own").returncode == 0
    text = (tmp_path / "own" / "self.jsonl").read_bytes()
    result = train("own", "--resume")
    assert result.returncode == 0 and "texts that the model wrote" not in result.stderr, result.stderr
    assert (tmp_path / "own" / "self.jsonl").read_bytes() == text
    result = train("own", "--resume", "--set", "self.temperature=0.5")
    assert result.returncode == 2 and "self: differs from that of the run in" in result.stderr
    assert train("own").returncode == 0  # anew, from the same seed
    assert (tmp_path / "own" / "self.jsonl").read_bytes() == text


def test_beside_other_text(train, shared, tmp_path):
    stories = tmp_path / "stories.txt"
    stories.write_text((shared / "text" / "tinystories" / "valid_v1_nosep.txt").read_text()[:20000])
    result = train("both", files=f"self, {stories}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "both" / "self.jsonl").exists()


def test_a_whole_run(train, shared, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((shared / "text" / "tinystories" / "valid_v1_nosep.txt").read_text()[:8000])
    result = train("whole", command="run", more=f"compare: {{text: {text}, ctx: 64}}\nbaselines: [ggml]")
    assert result.returncode == 0, result.stderr
    assert "files: [self]" in (tmp_path / "whole" / "config.yaml").read_text()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def serve():
    """Puts llama.cpp with a model behind OpenAI's API, without what rounds its activations: the address."""
    servers = {}

    def start(model):
        if model in servers:
            return servers[model][1]
        port = free_port()
        command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_ctx", "512",
                   "--type_k", "0", "--type_v", "0", "--flash_attn", "false"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        servers[model] = server, f"http://127.0.0.1:{port}/v1"
        for _ in range(600):
            assert server.poll() is None, command
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        return servers[model][1]

    yield start
    for server, _ in servers.values():
        server.kill()
        server.wait()


def texts_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_server_writes_what_nibble_would(train, tmp_path, serve, stories260k):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\nThe little dog\nTom and Lily went\n")
    greedy = ["--set", f"self.prompts={prompts}", "--set", "self.temperature=0", "--set", "self.tokens=400"]
    result = train("own", *greedy)
    assert result.returncode == 0, result.stderr
    result = train("server", *greedy, "--set", f"self.endpoint={serve(stories260k)}", "--set", "self.at_once=3")
    assert result.returncode == 0, result.stderr
    ours, theirs = (texts_of(tmp_path / name / "self.jsonl") for name in ("own", "server"))
    assert len(ours) > 6 and theirs == ours
    # Drawn, texts are apart, and the same again.
    drawn = ["--set", f"self.prompts={prompts}", "--set", f"self.endpoint={serve(stories260k)}", "--set", "self.at_once=2"]
    assert train("drawn", *drawn).returncode == 0
    texts = texts_of(tmp_path / "drawn" / "self.jsonl")
    assert len({row["text"] for row in texts}) == len(texts) > 6


def test_a_server_answers_conversations(run_nibble, tmp_path, serve, smollm2_q4_1):
    rows, config = tmp_path / "chats.jsonl", tmp_path / "chat.yaml"
    questions = [{"messages": [{"role": "user", "content": f"Say {word}."}]} for word in ("yes", "no")]
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions))
    config.write_text(f"""
model: {smollm2_q4_1}
output: {tmp_path / "chat"}
quant: {{type: Q4_0, initial: rtn}}
data: {{files: [self], format: chat, sequence_length: 128, held_out: 0.3}}
self: {{tokens: 260, temperature: 0.5, prompts: {rows}, endpoint: "{serve(smollm2_q4_1)}"}}
loss: {{kind: ce}}
batch_tokens: 128
max_tokens: 128
""")
    result = run_nibble("train", config)
    assert result.returncode == 0, result.stderr
    for row in texts_of(tmp_path / "chat" / "self.jsonl"):
        question, answer = row["messages"]
        assert question["role"] == "user" and question["content"] in ("Say yes.", "Say no.")
        assert answer.keys() == {"role", "content"} and answer["role"] == "assistant" and answer["content"]


def test_what_is_wrong_with_a_server(train, tmp_path, serve, stories260k):
    prompts = tmp_path / "prompts.txt"
    llama_server = serve(stories260k)
    prompts.write_text("Once\n")
    with_prompts = ["--set", f"self.prompts={prompts}"]

    def complaint(url, *arguments, status=1):
        result = train("wrong", "--set", f"self.endpoint={url}", *arguments)
        assert result.returncode == status and not (tmp_path / "wrong" / "self.jsonl").exists(), result.stderr
        return result.stderr

    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    assert re.search(f"{nowhere}/completions: .*onnect", complaint(nowhere, *with_prompts))
    assert "/v2/completions: answers with status 404: " in complaint(llama_server[:-1] + "2", *with_prompts)
    assert "wants an address like http://127.0.0.1:8080/v1, found file:///etc" in complaint("file:///etc", *with_prompts, status=2)
    assert "self.prompts: is missing: a server goes on from prompts only" in complaint(llama_server, status=2)


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers in turn what the server's list says, the last one for ever."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


def choice(**fields):
    return json.dumps({"choices": [fields]})


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([(503, json.dumps({"error": {"message": "Loading model"}})), (200, choice(text=" " + "cat " * 400, finish_reason="length"))],
         "texts that the model wrote"),
        ([(401, json.dumps({"error": "no such key"}))], "/completions: answers with status 401: no such key"),
        ([(200, "<html>")], "/completions: answer is not JSON, at byte offset 0"),
        ([(200, "[" * 5000)], "/completions: answer is nested deeper than 32 levels"),
        ([(200, "{}")], "the answer has no list of choices"),
        ([(200, choice(text=7, finish_reason="stop"))], "the answer's choice has no string 'text'"),
        ([(200, choice(text="x"))], "the answer's choice has no string 'finish_reason'"),
    ],
)
def test_answers_of_every_kind(train, tmp_path, monkeypatch, answers, wanted):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.answers, server.asked = list(answers), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        result = train("scripted", "--set", f"self.prompts={prompts}", "--set", "self.at_once=1", "--set", "self.model=m",
                       "--set", f"self.endpoint=http://127.0.0.1:{server.server_port}/v1")
    finally:
        server.shutdown()
    assert wanted in result.stderr
    assert (result.returncode == 0) == (wanted == "texts that the model wrote")
    path, key, body = server.asked[0]
    assert (path, key) == ("/v1/completions", "Bearer sk-1")
    # What samples otherwise than by the model's own probabilities is off.
    assert body.pop("seed") >= 0 and 0 < body.pop("max_tokens") < 64
    assert body == {"prompt": "Once", "model": "m", "temperature": 0.9, "top_p": 1, "top_k": 0, "min_p": 0,
                    "repeat_penalty": 1, "stream": False}
