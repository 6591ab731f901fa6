// Greedy or sampled continuation of a prompt.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/model.h"
#include "model/tokenizer.h"

namespace nibble {

struct GenerateOptions {
  int64_t max_tokens = 64;
  double temperature = 0.0;  // 0: greedy
  uint64_t seed = 0;
};

/// The continuation's ids, without the prompt; stops at an end-of-generation token (left out).
std::vector<int32_t> generate(Model& model, const Tokenizer& tokenizer,
                              const std::vector<int32_t>& prompt, const GenerateOptions& options,
                              const std::function<void(int32_t)>& on_token = {});

}  // namespace nibble
