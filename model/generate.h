// Greedy or sampled continuation of prompts.
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

struct GenerateTask {
  std::vector<int32_t> prompt;
  GenerateOptions options;
};

/// Continues texts without end, up to `at_once` of them together, which takes little more time than
/// one: next(n) says what text n is, take() gets their continuations in the order of n, until it
/// returns false. Others that were begun are dropped, whatever their length: what is taken does not
/// depend on which of them ended first.
void generate_many(Model& model, const Tokenizer& tokenizer, int64_t at_once,
                   const std::function<GenerateTask(int64_t)>& next,
                   const std::function<bool(const std::vector<int32_t>&)>& take);

}  // namespace nibble
