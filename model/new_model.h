// A model that is not trained yet: a GGUF file of random weights, from which training starts as
// from any other file.
//
// The initialization of torchtitan's llama3, without its truncation: matrices N(0, 0.02), those
// that write into the residual stream N(0, 0.02 / sqrt(2 layers)), the token embedding N(0, 1), the
// output, tied or not, N(0, 1 / sqrt(width)), norms 1. Weights depend on options and seed alone.
#pragma once

#include <cstdint>
#include <string>

#include "io/gguf.h"

namespace nibble {

struct NewModelOptions {
  std::string architecture = "llama";
  int64_t width = 0, feed_forward = 0, layers = 0;
  int64_t heads = 0, kv_heads = 0;  // heads divides width, kv_heads divides heads
  int64_t context = 512;            // tokens
  int64_t vocab_size = 0;
  bool tied = false;  // the output is the token embedding

  bool operator==(const NewModelOptions&) const = default;
};

/// Writes `path`, all F32. tokenizer: tokenizer.ggml.* keys with a list of vocab_size tokens.
/// name: general.name. Throws Error (usage) for options that no model can have.
void write_new_model(const std::string& path, const NewModelOptions& options,
                     const GgufMetadata& tokenizer, const std::string& name, uint64_t seed);

}  // namespace nibble
