"""The type that llama_model_quantize gives each tensor, in a process of its own (llama.cpp aborts on some errors).

python llama_plan_child.py < JOBS > ANSWERS: JOBS is a JSON list of [path, file type's number, has an imatrix, pure]; an
answer is {tensor: type, upper case} or, where llama_model_quantize refuses, null. No weight is read or encoded.
"""

import ctypes
import json
import re
import sys

import llama_cpp

# "[   1/  48] token_embd.weight - [ 64, 512, 1, 1], type = f32, size = 0.12 MiB -> 0.03 MiB (q8_0)"; kept: no arrow.
TENSOR = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\S+), size = [^(\n]*(?:\((\w+)\))?$", re.MULTILINE)


def planner():
    log = []

    @llama_cpp.llama_log_callback
    def keep(level, text, data):
        log.append(text)

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    one = (ctypes.c_float * 1)(1)
    # Any importance matrix makes llama_model_quantize choose as with one; only encoding looks into it.
    importance = (llama_cpp.llama_model_imatrix_data * 2)()
    importance[0].name, importance[0].data, importance[0].size = b"any", one, 1

    def plan(path, file_type, has_imatrix, pure, callback=keep):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.pure, params.dry_run = file_type, pure, True
        if has_imatrix:
            params.imatrix = importance
        log.clear()
        if llama_cpp.llama_model_quantize(path.encode(), b"", ctypes.byref(params)) != 0:
            return None
        found = TENSOR.findall(b"".join(log).decode())
        return {name: (new or old).upper() for name, old, new in found}

    return plan


def main():
    plan = planner()
    json.dump([plan(*job) for job in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
