// What llama.cpp will take of memory to run a model: weights, keys and values of the context, and
// the buffer of its computations (source: llama.cpp src/llama-kv-cache.cpp, src/llama-context.cpp).
#pragma once

#include <cstdint>

#include "io/gguf.h"
#include "quant/mix/plan.h"

namespace nibble {

struct ServingOptions {
  int64_t context = 4096;             // tokens
  GgmlType kv_type = GgmlType::kF16;  // of keys and values
  int64_t batch = 512;  // positions that go through the model together (llama.cpp's n_ubatch)
};

/// Bytes.
struct MemoryNeed {
  int64_t weights = 0, kv_cache = 0, compute = 0;
  int64_t total() const { return weights + kv_cache + compute; }
};

/// source: the model that the plan is for; its data is not looked at. Throws Error for metadata
/// that lacks a length.
MemoryNeed memory_need(const GgufFile& source, const Plan& plan, const ServingOptions& options);

/// How many of the model's layers, from the last, a device of `bytes` of memory takes with their
/// keys and values, as llama.cpp's --n-gpu-layers counts: the output is one more. All where the
/// whole model fits.
int64_t layers_that_fit(const GgufFile& source, const Plan& plan, const ServingOptions& options,
                        int64_t bytes);

}  // namespace nibble
