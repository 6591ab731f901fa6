"""peft, in a process of its own as it imports torch.

python peft_child.py FOLDER ADAPTER MERGED SETTINGS: random LoRA weights of the JSON SETTINGS (LoraConfig) for FOLDER's
model, saved in ADAPTER, and what merge_and_unload() makes of them in MERGED, all float32.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers

torch.set_num_threads(1)
folder, adapter, merged, settings = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **json.loads(settings)))
generator = torch.Generator().manual_seed(3)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        elif "modules_to_save" in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
model.save_pretrained(adapter)
model.merge_and_unload().save_pretrained(merged)
for file in pathlib.Path(folder).glob("tokenizer*"):
    (pathlib.Path(merged) / file.name).write_bytes(file.read_bytes())
