"""nibble convert against transformers (what the models compute), llama.cpp's own converter (keys and bytes) and llama.cpp
(what it makes of the file).

Small random models are made by transformers from the families' real configurations, narrower and with fewer layers, with
the families' real tokenizers. The Python that has torch, and llama.cpp's converter, are what scripts/peers installs.
"""

import filecmp
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest

from left_out import ALPHA_AND_BETA, ALPHA_WITH_BETA, EXPERTS, GPT_OSS, HYBRID, ONES, SHARED_EXPERT, ZEROS
from published_configs import PICTURES, PUBLISHED
from small_models import MODELS, SMALL, tokenizer_files
from test_model import BROKEN, TOLERANCE, bos_of, largest_difference, llama_log_probs

CHILD = pathlib.Path(__file__).with_name("transformers_child.py")
CTX = 64
# What each family would compute without: a change of the GGUF file's tensors, or of its keys.
PARTS = {
    "llama3": {"rope scaling": (r"rope_freqs", ONES)},
    "llama with biases": {
        f"{name} bias": (rf"blk\.\d+\.{name}\.bias", ZEROS)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    },
    "qwen2": {f"{name} bias": (rf"blk\.\d+\.{name}\.bias", ZEROS) for name in ("attn_q", "attn_k", "attn_v")},
    "qwen3": {f"{name}": (rf"blk\.\d+\.{name}\.weight", ONES) for name in ("attn_q_norm", "attn_k_norm")},
    "gemma2": {
        f"{name}": (rf"blk\.\d+\.{name}\.weight", ONES) for name in ("post_attention_norm", "ffn_norm", "post_ffw_norm")
    },
    "phi4": {"long divisors": (r"rope_factors_long", ONES)},
    "phi3": {"short divisors": (r"rope_factors_short", ONES)},
    "mixtral": EXPERTS,
    "qwen3moe": {
        **EXPERTS,
        **{f"{name}": (rf"blk\.\d+\.{name}\.weight", ONES) for name in ("attn_q_norm", "attn_k_norm")},
    },
    "gemma3": {
        f"{name}": (rf"blk\.\d+\.{name}\.weight", ONES)
        for name in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    },
    "qwen35": {**HYBRID, **ALPHA_AND_BETA},
    "qwen35moe": {**HYBRID, **ALPHA_AND_BETA, **EXPERTS, **SHARED_EXPERT},
    "qwen3next": {**HYBRID, **ALPHA_WITH_BETA, **EXPERTS, **SHARED_EXPERT},
    "gpt-oss": {**EXPERTS, **GPT_OSS},
}


@pytest.fixture(scope="session")
def torch_env():
    """The environment in which this Python imports torch (scripts/peers)."""
    stubs = pathlib.Path(sys.prefix) / "cuda-stubs"
    env = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", "import torch, transformers"], env=env, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip(f"Python has no torch that works: {found.stderr.strip().splitlines()[-1]}")
    return env


@pytest.fixture(scope="session")
def converter():
    """llama.cpp's converter, out of llama-cpp-python's source package."""
    folder = pathlib.Path(os.environ.get("LLAMA_CPP_SOURCE", pathlib.Path(sys.prefix) / "llama.cpp"))
    path = folder / "convert_hf_to_gguf.py"
    if not path.exists():
        pytest.skip(f"no {path}: run scripts/peers")
    return path


@functools.cache
def transformers_process(environment):
    return subprocess.Popen([sys.executable, CHILD], env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_child(env, *arguments):
    """One command of transformers_child.py."""
    process = transformers_process(tuple(sorted(env.items())))
    print(json.dumps([str(argument) for argument in arguments]), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    assert answer, f"{CHILD} ended with status {process.wait()}"
    assert json.loads(answer) == "done", json.loads(answer)


def lay_folder(folder, shared, config, tokenizer, changes):
    folder.mkdir(parents=True)
    given = PUBLISHED.get(config) or json.loads((shared / "hf" / config / "config.json").read_text())
    if text := given.get("text_config"):
        changes = {"text_config": {**text, **changes}}
    else:
        changes = {**SMALL, **changes}
    (folder / "config.json").write_text(json.dumps({**given, **changes}))
    if "vision_config" in given:
        (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    for file, source in tokenizer_files(tokenizer).items():
        if isinstance(source, tuple):
            name, otherwise = source
            (folder / file).write_text(json.dumps({**json.loads((shared / "hf" / name).read_text()), **otherwise}))
        elif isinstance(source, dict) or callable(source):
            (folder / file).write_text(json.dumps(source() if callable(source) else source))
        else:
            shutil.copy(shared / "hf" / source, folder / file)
    return folder


@pytest.fixture(scope="session")
def make_model(shared, torch_env, tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            config, tokenizer, changes, dtype, shard_size = MODELS[name]
            # A name that llama.cpp's converter reads a size and a version from.
            folder = tmp_path_factory.mktemp("models") / f"{name.replace(' ', '-')}-tiny-1B-Instruct-v0.3"
            lay_folder(folder, shared, config, tokenizer, changes)
            run_child(torch_env, "make", folder, list(MODELS).index(name) + 1, dtype, shard_size)
            made[name] = folder
        return made[name]

    return make


def convert(run_nibble, folder, out, *arguments):
    result = run_nibble("convert", folder, out, "-q", *arguments)
    assert result.returncode == 0, result.stderr
    return out


def text_of(shared):
    return shared / "text" / "wikitext-2-raw" / "wiki.test.raw"


def transformers_log_probs(torch_env, model, tokens, folder, dtype="float32"):
    asked, answer = folder / "tokens.npy", folder / "log_probs.npy"
    np.save(asked, tokens)
    run_child(torch_env, "log_probs", model, asked, answer, dtype)
    return np.load(answer)


def reference_dtype(name):
    """What transformers computes in: delta nets divide by norms that can be next to 0, and mixtures make more of it, so that
    transformers in float32 is up to 1.1e-3 off itself in float64."""
    return "float64" if name in ("qwen35", "qwen35moe", "qwen3next") else "float32"


# Of a router's logits; sums in another order move them by some 1e-6. At this margin one position in some hundreds is
# near a tie: a logit's density around the least chosen one is of the order of 1.
MARGIN, MOST_TIES = 1e-4, 2


class Converted:
    """A model in float32 GGUF, what transformers computes with the folder that it came of, and where its tensors lie."""

    def __init__(self, name, folder, path, shared, torch_env):
        self.folder, self.path, self._text, self._torch_env = folder, path, text_of(shared), torch_env
        self._dtype = reference_dtype(name)
        reader = gguf.GGUFReader(path)  # takes nine seconds for 150,000 tokens
        self.bos = bos_of(reader.fields)
        self.architecture = reader.fields["general.architecture"].contents()
        self.tensors = {t.name: t for t in reader.tensors}
        self._tokens = self._log_probs = None
        self._ties = {}
        config = json.loads((folder / "config.json").read_text())
        self.has_experts = "num_experts_per_tok" in config

    def near_ties(self, tokens, folder=None):
        """Where rounding could have a router choose another expert: few, of which nothing is said. Of the first tokens
        asked for."""
        folder = folder or self.folder
        if folder not in self._ties:
            asked, answer = self.path.with_name("asked.npy"), self.path.with_name("margins.npy")
            np.save(asked, tokens)
            run_child(self._torch_env, "router_margins", folder, asked, answer)
            self._ties[folder] = ties = np.load(answer) < MARGIN
            assert ties.sum() <= MOST_TIES, f"{ties.sum()} of {ties.size}"
        return self._ties[folder]

    def transformers_log_probs(self, tokens):
        """Of the first tokens asked for; the others must be the same."""
        if self._tokens is None:
            self._tokens = tokens
            self._log_probs = transformers_log_probs(self._torch_env, self.folder, tokens, self.path.parent, self._dtype)
        assert np.array_equal(tokens, self._tokens)
        return self._log_probs

    def difference(self, run_nibble, tmp_path, path=None, log_probs=None):
        """Largest |ln p(nibble on path) - ln p| to what `log_probs` says, transformers if nothing else."""
        return largest_difference(run_nibble, path or self.path, self._text, tmp_path, chunks=2, ctx=CTX, bos=self.bos,
                                  log_probs=log_probs or self.transformers_log_probs,
                                  excluded=self.near_ties if self.has_experts else None)


@pytest.fixture(scope="session")
def converted(run_nibble, make_model, shared, torch_env, tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            path = convert(run_nibble, make_model(name), tmp_path_factory.mktemp("f32") / "f32.gguf", "--outtype", "f32")
            made[name] = Converted(name, make_model(name), path, shared, torch_env)
        return made[name]

    return make


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_transformers(run_nibble, converted, name, tmp_path):
    model = converted(name)
    assert model.difference(run_nibble, tmp_path) < TOLERANCE


# Of all our float32 comparisons the loosest that a family is held to; these reach 1e-4.
LLAMA_CPP_TOLERANCE = 5e-3


# Those with GELU.
GELU = ["gemma2", "gemma3", "gemma3 4b", "gemma3 27b"]


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_llama_cpp(run_nibble, converted, name, tmp_path):
    model = converted(name)
    found = model.difference(
        run_nibble, tmp_path, log_probs=lambda tokens: llama_log_probs(model.path, tokens, tmp_path, name in GELU))
    assert found < LLAMA_CPP_TOLERANCE


@pytest.mark.parametrize("name", GELU)
def test_log_probs_of_gemma_are_those_of_llama_cpp_but_for_its_gelu(run_nibble, converted, torch_env, name, tmp_path):
    """On a CPU ggml looks GELU up in a float16 table, to 0.05 % of each value. Transformers, whose log-probabilities are
    nibble's, comes closer to llama.cpp with such a table; what is left are values that fall on another side of a float16's
    border. Which ones do depends on the processor's sums, so differences are root mean squares and not the largest one."""
    model = converted(name)
    asked, answer = tmp_path / "tokens.npy", tmp_path / "log_probs.npy"
    differences = {}

    def of_llama_cpp(tokens):
        np.save(asked, tokens)
        theirs = llama_log_probs(model.path, tokens, tmp_path)
        rows = theirs[:, CTX // 2 : CTX - 1]
        kept = rows > rows.max(-1, keepdims=True) - 15.9  # as largest_difference() does
        for command in ("log_probs", "log_probs_half_gelu"):
            run_child(torch_env, command, model.folder, asked, answer)
            differences[command] = np.sqrt(np.square(np.load(answer)[:, CTX // 2 : CTX - 1] - rows)[kept].mean())
        return theirs

    assert model.difference(run_nibble, tmp_path, log_probs=of_llama_cpp) < 0.1
    assert 2 * differences["log_probs_half_gelu"] < differences["log_probs"]


@pytest.mark.parametrize("name, part", [(name, part) for name, parts in PARTS.items() for part in parts])
def test_no_part_can_be_left_out(run_nibble, converted, name, part, tmp_path):
    model = converted(name)
    pattern, instead = PARTS[name][part]
    dropped = [tensor for tensor in model.tensors.values() if re.match(pattern, tensor.name)]
    assert dropped
    broken = shutil.copy(model.path, tmp_path / "broken.gguf")
    with open(broken, "r+b") as file:
        for tensor in dropped:
            file.seek(tensor.data_offset)
            file.write(instead(tensor.data).tobytes())
    assert model.difference(run_nibble, tmp_path, path=broken) > BROKEN


# What transformers computes when config.json says otherwise.
SETTINGS = {
    "smollm3": {"layers without rotary positions": {"no_rope_layers": [1] * 5}},
    "gemma3 27b": {"the scale of scores": {"query_pre_attn_scalar": 32}},
    "gpt-oss": {"the limits of gate and up": {"swiglu_limit": 1e9}, "the gate's slope": {"swiglu_alpha": 1.0}},
}


@pytest.mark.parametrize("name, setting", [(name, setting) for name, settings in SETTINGS.items() for setting in settings])
def test_no_setting_of_the_configuration_can_be_left_out(run_nibble, converted, torch_env, name, setting, tmp_path):
    model, folder = converted(name), tmp_path / "model"
    folder.mkdir()
    for file in model.folder.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **SETTINGS[name][setting]}))
    found = model.difference(
        run_nibble, tmp_path, log_probs=lambda tokens: transformers_log_probs(torch_env, folder, tokens, tmp_path))
    assert found > 10 * TOLERANCE


# name: the keys of its GGUF file that are changed.
KEYS = {
    "gemma3": ["attention.sliding_window=int:4096", "rope.scaling.factor=float:1", "rope.freq_base=float:10000"],
    "gemma2": ["attention.sliding_window=int:4096", "attn_logit_softcapping=float:50", "final_logit_softcapping=float:30"],
    "granite": ["attention.scale=float:0.25", "embedding_scale=float:1", "residual_scale=float:1", "logit_scale=float:1"],
    "mixtral": ["expert_used_count=int:1"],
    "qwen3moe": ["expert_used_count=int:1"],
    "gpt-oss": ["expert_used_count=int:1", "attention.sliding_window=int:4096", "rope.scaling.factor=float:1",
                "rope.scaling.original_context_length=int:512", "rope.freq_base=float:10000"],
    "phi4": ["rope.scaling.attn_factor=float:1", "rope.scaling.original_context_length=int:4096"],
    "qwen35": ["rope.dimension_count=int:16", "rope.freq_base=float:10000"],
    "qwen35moe": ["rope.dimension_count=int:16", "expert_used_count=int:1"],
    "qwen3next": ["rope.dimension_count=int:16", "rope.freq_base=float:10000", "expert_used_count=int:1"],
}


@pytest.mark.parametrize("name, key", [(name, key) for name, keys in KEYS.items() for key in keys])
def test_no_key_can_be_left_out(run_nibble, converted, name, key, tmp_path):
    model, broken = converted(name), tmp_path / "broken.gguf"
    result = run_nibble("quantize", model.path, broken, "COPY", "--override-kv", f"{model.architecture}.{key}")
    assert result.returncode == 0, result.stderr
    assert model.difference(run_nibble, tmp_path, path=broken) > BROKEN


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe", "qwen35moe", "qwen3next"])
def test_stacked_experts_give_the_same_file(run_nibble, make_model, torch_env, name, tmp_path):
    """As transformers 5 has them in memory, gate and up in one, and as the hub has them."""
    folder, stacked = make_model(name), tmp_path / make_model(name).name
    files = [file for file in folder.iterdir() if ".safetensors" not in file.name]
    stacked.mkdir()
    for file in files:
        shutil.copy(file, stacked)
    run_child(torch_env, "make_stacked", folder, stacked, MODELS[name][3])
    a, b = (
        contents_of(convert(run_nibble, source, tmp_path / f"{i}.gguf", "--outtype", "f16"))
        for i, source in enumerate((folder, stacked))
    )
    assert a[0] == b[0] and sorted(a[1]) == sorted(b[1])
    from safetensors import safe_open

    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    names = [safe_open(file, "numpy").keys() for file in folder.glob("*.safetensors")]
    assert sum(".experts.3." in name and not name.startswith("mtp.") for file in names for name in file) == 3 * layers
    names = safe_open(stacked / "model.safetensors", "numpy").keys()
    assert sum(name.endswith(".experts.gate_up_proj") for name in names) == layers


def test_a_missing_expert_is_named(run_nibble, make_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(make_model("qwen3moe"), tmp_path / "model")
    missing = "model.layers.1.mlp.experts.7.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    del tensors[missing]
    save_file(tensors, folder / "model.safetensors")
    result = run_nibble("convert", folder, tmp_path / "out.gguf")
    assert result.returncode == 1 and f"tensor '{missing}' is missing" in result.stderr


def contents_of(path):
    """Keys with their types and values, tensors with their bytes."""
    reader = gguf.GGUFReader(path)
    fields = {
        name: ([kind.name for kind in field.types[:2]], field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    return fields, [(t.name, t.shape.tolist(), t.tensor_type.name, t.data.tobytes()) for t in reader.tensors]


def run_converter(converter, torch_env, folder, out, outtype, *arguments, has_mtp=False):
    mtp = ["--no-mtp"] if not has_mtp and "linear_num_key_heads" in (folder / "config.json").read_text() else []
    result = subprocess.run(
        [sys.executable, converter, folder, "--outfile", out, "--outtype", outtype, *mtp, *arguments],
        env=torch_env, capture_output=True, text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]


# Of each stored type (float32, float16, bfloat16) every type asked for, and every family once.
@pytest.mark.parametrize(
    "name, outtype",
    [(name, outtype) for name in ("llama", "mistral", "llama3") for outtype in ("f32", "f16", "bf16")]
    + [("llama with biases", "bf16"), ("qwen2", "f16"), ("qwen3", "bf16"), ("gemma3", "f16"),
       ("smollm3", "bf16"), ("phi4", "bf16"), ("phi3", "f16"), ("gemma2", "f16"), ("gemma3 4b", "bf16"), ("granite", "bf16"),
       ("mixtral", "bf16"), ("mixtral", "f16"), ("qwen3moe", "f16"),
       ("qwen35", "f16"), ("qwen35 with vision", "bf16"), ("qwen35moe", "bf16"), ("qwen3next", "f16"), ("qwen3next", "bf16"),
       ("gpt-oss", "f16"), ("gpt-oss", "bf16")],
)
def test_keys_and_bytes_are_those_of_llama_cpps_converter(
    run_nibble, torch_env, converter, make_model, name, outtype, tmp_path
):
    run_converter(converter, torch_env, make_model(name), tmp_path / "theirs.gguf", outtype)
    convert(run_nibble, make_model(name), tmp_path / "ours.gguf", "--outtype", outtype)
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def assert_same_file(ours, theirs):
    if filecmp.cmp(ours, theirs, shallow=False):
        return
    (ours, a), (theirs, b) = contents_of(ours), contents_of(theirs)
    assert list(ours) == list(theirs)
    for key in ours:
        assert ours[key] == theirs[key], key
    assert [row[:3] for row in a] == [row[:3] for row in b]
    assert [row[0] for row, other in zip(a, b) if not are_same_bytes(*row[::3], other[3])] == []


def test_parts_are_those_of_llama_cpps_converter(run_nibble, torch_env, make_model, converter, tmp_path):
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    split = ["--split-max-size", "50K"]
    run_converter(converter, torch_env, make_model("llama"), tmp_path / "theirs" / "model.gguf", "f16", *split)
    convert(run_nibble, make_model("llama"), tmp_path / "ours" / "model.gguf", "--outtype", "f16", *split)
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert len(names) > 2 and sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    assert filecmp.cmpfiles(tmp_path / "ours", tmp_path / "theirs", names, shallow=False)[0] == names
    convert(run_nibble, make_model("llama"), tmp_path / "whole.gguf", "--outtype", "f16")
    answer = json.loads(run_nibble("diff", tmp_path / "ours" / names[0], tmp_path / "whole.gguf", "--full", "--json").stdout)
    assert answer["overall"]["relative_error"] == 0 and not answer["only_in_a"] and not answer["only_in_b"]


def are_same_bytes(name, ours, theirs):
    """But for the decays, -exp of what is stored: torch's vectorized exp may differ from the C library's in the last bit."""
    if not name.endswith(".ssm_a"):
        return ours == theirs
    return np.abs(np.frombuffer(ours, np.int32) - np.frombuffer(theirs, np.int32)).max() <= 1


@pytest.mark.parametrize(
    "name, tensors",
    [("qwen35", "15 tensors mtp.*"), ("qwen35 with vision", "the tower that sees"), ("gpt-oss", "truncate: false is left out")])
def test_what_is_left_out_is_named(run_nibble, make_model, tmp_path, name, tensors):
    result = run_nibble("convert", make_model(name), tmp_path / "ours.gguf")
    assert result.returncode == 0 and tensors in result.stderr, result.stderr


def test_the_size_label_is_of_one_expert(run_nibble, torch_env, converter, make_model, tmp_path):
    """Where the folder's name says no size."""
    folder = shutil.copytree(make_model("qwen3moe"), tmp_path / "somebody")
    run_converter(converter, torch_env, folder, tmp_path / "theirs.gguf", "f16")
    labels = [
        gguf.GGUFReader(path).fields["general.size_label"].contents()
        for path in (convert(run_nibble, folder, tmp_path / "ours.gguf", "--outtype", "f16"), tmp_path / "theirs.gguf")
    ]
    assert labels[0] == labels[1] and labels[0].startswith("12x")


def test_auto_keeps_the_stored_type(run_nibble, torch_env, converter, make_model, tmp_path):
    for name, wanted in [("llama", "F32"), ("mistral", "F16"), ("llama3", "BF16")]:
        result = run_nibble("convert", make_model(name), tmp_path / "auto.gguf", "--json")
        assert json.loads(result.stdout)["type"] == wanted
        run_converter(converter, torch_env, make_model(name), tmp_path / "theirs.gguf", "auto")
        theirs = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
        # Its converter narrows float32 to float16; ours does not.
        assert theirs["token_embd.weight"] == ("F16" if wanted == "F32" else wanted)


@pytest.mark.parametrize(
    "name", ["llama3", "mixtral", "qwen2", "qwen3", "qwen3moe", "gemma3", "smollm3", "phi4", "gemma2", "granite", "qwen35",
             "qwen35moe", "qwen3next", "gpt-oss"])
def test_a_run_on_a_folder_ends_in_a_file_that_llama_cpp_runs(run_nibble, make_model, shared, tmp_path, name):
    text = tmp_path / "text.txt"
    text.write_text(text_of(shared).read_text()[:60_000])
    config = tmp_path / "run.yaml"
    # How many experts are used, where there are some.
    mixture = {"mixtral": 2, "qwen3moe": 4, "qwen35moe": 4, "qwen3next": 4, "gpt-oss": 4}.get(name)
    config.write_text(
        f"""name: tiny
model: {make_model(name)}
output: {tmp_path / "run"}
quant: {{type: Q4_K_M, initial: rtn}}
data: {{files: ["{text}"], sequence_length: {CTX}}}
loss: {{kind: kl{", load_balance: 0.01" if mixture else ""}}}
batch_tokens: {CTX}
max_tokens: {2 * CTX}
baselines: [ggml{", imatrix, gptq, awq" if mixture else ""}]
compare: {{text: "{text}", ctx: {CTX}, chunks: 2}}
"""
    )
    result = run_nibble("run", config)
    assert result.returncode == 0, result.stderr
    trained = list((tmp_path / "run").glob("*-trained.gguf"))
    assert len(trained) == 1 and trained[0].name.startswith(make_model(name).name)
    tokens = np.arange(2 * CTX, dtype=np.int32).reshape(2, CTX)
    assert np.isfinite(llama_log_probs(trained[0], tokens, tmp_path)).all()
    if not mixture:
        return
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(trained[0]).tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "F32" and types["blk.0.ffn_up_exps.weight"] not in ("F32", "F16")
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    # As many experts as are used, where all are equally busy.
    assert steps and all(0.9 * mixture < step["load_balance"] < 2 * mixture for step in steps)


def test_a_load_balance_wants_experts(run_nibble, make_model, shared, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {make_model('qwen2')}\ndata: {{files: ['{text_of(shared)}']}}\n")
    result = run_nibble("train", config, "--dry-run", "--set", "loss.load_balance=0.001")
    assert result.returncode == 2 and "loss.load_balance: has no effect" in result.stderr, result.stderr
    assert "has no experts" in result.stderr


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt-oss"])
def test_caches_of_windows_are_those_that_llama_cpp_allocates(run_nibble, run_llama, converted, name):
    """Layers with a window keep what a batch and the window before it have."""
    path = converted(name).path
    _, log = run_llama("llama-completion", "-m", path, "-c", 4096, "-n", 1, "-p", "a", "-no-cnv", "-v", "-ub", 512,
                       until="compute buffer size is")
    taken = sum(float(size) for size in re.findall(r"KV buffer size += +([\d.]+) MiB", log)[-2:])
    said = json.loads(run_nibble("recommend", path, "--ctx", 4096, "--json").stdout)["types"][0]["kv_bytes"]
    assert abs(said / 2**20 - taken) < 0.011  # two numbers of two decimals


def test_caches_of_qwen35_are_those_that_llama_cpp_allocates(run_nibble, run_llama, converted):
    """Keys and values of its one layer that attends, and the states of the others, which do not grow with the context."""
    path = converted("qwen35").path
    _, log = run_llama("llama-completion", "-m", path, "-c", 4096, "-n", 1, "-p", "a", "-no-cnv", "-v",
                       until="compute buffer size is")
    taken = sum(float(re.findall(rf"{kind} buffer size += +([\d.]+) MiB", log)[-1]) for kind in ("KV", "RS"))
    said = json.loads(run_nibble("recommend", path, "--ctx", 4096, "--json").stdout)["types"][0]["kv_bytes"]
    assert abs(said / 2**20 - taken) < 0.011  # two numbers of two decimals
