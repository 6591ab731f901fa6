// Tokenizer metadata made by hand, for tests.
#pragma once

#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/tokenizer_pre.h"

namespace nibble {

inline GgufArray strings(std::vector<std::string> values) {
  return {GgufValueType::kString, std::move(values)};
}
inline GgufArray ints(std::vector<int32_t> values) {
  return {GgufValueType::kInt32, std::move(values)};
}
inline GgufArray floats(std::vector<float> values) {
  return {GgufValueType::kFloat32, std::move(values)};
}

/// The 256 characters of GPT-2's alphabet, then `more`.
inline std::vector<std::string> byte_tokens(const std::vector<std::string>& more) {
  std::vector<std::string> tokens;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool itself = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    append_utf8(itself ? byte : next++, tokens.emplace_back());
  }
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

inline GgufMetadata bpe_metadata(const std::string& pre, std::vector<std::string> tokens,
                                 std::vector<std::string> merges) {
  GgufMetadata metadata;
  metadata.set("tokenizer.ggml.model", std::string("gpt2"));
  metadata.set("tokenizer.ggml.pre", pre);
  metadata.set("tokenizer.ggml.tokens", strings(std::move(tokens)));
  metadata.set("tokenizer.ggml.merges", strings(std::move(merges)));
  metadata.set("tokenizer.ggml.add_bos_token", false);
  return metadata;
}

/// <unk>, <s>, </s>, the 256 byte tokens, then `pieces` with scores -1, -2, ...
inline GgufMetadata spm_metadata(const std::vector<std::string>& pieces) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  std::vector<float> scores = {0, 0, 0};
  constexpr char kHex[] = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back({'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'});
    types.push_back(6);
    scores.push_back(0);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    tokens.push_back(pieces[i]);
    types.push_back(1);
    scores.push_back(-1.0f - static_cast<float>(i));
  }
  GgufMetadata metadata;
  metadata.set("tokenizer.ggml.model", std::string("llama"));
  metadata.set("tokenizer.ggml.tokens", strings(tokens));
  metadata.set("tokenizer.ggml.token_type", ints(types));
  metadata.set("tokenizer.ggml.scores", floats(scores));
  return metadata;
}

}  // namespace nibble
