"""compressed-tensors' own packing, in a process of its own as it imports torch.

python compressed_tensors_child.py FOLDER OUT SCHEME: packs the blocks' matrices of FOLDER's model.safetensors as the JSON
SCHEME (QuantizationArgs) says, into OUT/packed; what the library unpacks from that, as float32, into OUT/unpacked.
"""

import json
import pathlib
import shutil
import sys

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file


def parameters(weight, arguments):
    """Scale and zero point of each group by the library's own rule; of mxfp4 a power of two that reaches the largest."""
    size = weight.shape[1] if arguments.strategy == "channel" else arguments.group_size
    groups = weight.float().reshape(weight.shape[0], -1, size)
    if arguments.type == "float":
        return torch.exp2(torch.ceil(torch.log2(groups.abs().amax(-1) / 6))), None
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    return scale.to(weight.dtype), zero.to(torch.int8)


def main(folder, out, scheme):
    folder, out = pathlib.Path(folder), pathlib.Path(out)
    arguments = QuantizationArgs(**json.loads(scheme))
    name = "mxfp4-pack-quantized" if arguments.type == "float" else "pack-quantized"
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format=name)
    compressor = BaseCompressor.get_value_from_registry(name)
    packed, unpacked = {}, {}
    for key, weight in load_file(folder / "model.safetensors").items():
        if "_proj.weight" not in key:
            packed[key], unpacked[key] = weight, weight.float()
            continue
        module = key.removesuffix("weight")
        scale, zero = parameters(weight, arguments)
        state = {"weight": weight, "weight_scale": scale}
        if zero is not None:
            state["weight_zero_point"] = zero
        state = {part: data.contiguous() for part, data in compressor.compress(state, scheme).items()}
        packed |= {module + part: data for part, data in state.items()}
        # In float32 the product is exact but for its own rounding.
        state["weight_scale"] = state["weight_scale"].float() if arguments.type == "int" else state["weight_scale"]
        unpacked[key] = compressor.decompress(state, scheme)["weight"].float()
    config = json.loads((folder / "config.json").read_text())
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme}, quant_method="compressed-tensors", format=name,
        quantization_status="compressed", ignore=["lm_head"],
    )
    for kind, tensors, added in [("packed", packed, {"quantization_config": quantization.to_dict()}), ("unpacked", unpacked, {})]:
        shutil.copytree(folder, out / kind)
        save_file(tensors, out / kind / "model.safetensors", metadata={"format": "pt"})
        (out / kind / "config.json").write_text(json.dumps({**config, **added}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
