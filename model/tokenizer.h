// Text <-> token ids, from a GGUF file's tokenizer.ggml.* metadata, id for id as llama.cpp does it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"

namespace nibble {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// By tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (sentencepiece) or "t5" (Unigram).
  /// Throws when the metadata names another, or is missing or inconsistent.
  static std::unique_ptr<Tokenizer> from_metadata(const GgufMetadata& metadata);

  /// add_special: adds BOS/EOS as tokenizer.ggml.add_bos_token / add_eos_token say. parse_special:
  /// the text of control tokens ("<|im_start|>") becomes these tokens.
  virtual std::vector<int32_t> encode(std::string_view text, bool add_special,
                                      bool parse_special) const = 0;
  /// The text of ids; control tokens are left out unless `special`. Bytes that are not UTF-8 stay
  /// as they are.
  virtual std::string decode(const std::vector<int32_t>& ids, bool special = false) const = 0;

  /// Where each id ends in decode(ids, special = true), in bytes.
  virtual std::vector<size_t> byte_ends(const std::vector<int32_t>& ids) const = 0;

  virtual int64_t vocab_size() const = 0;
  virtual int32_t bos() const = 0;  // -1 when there is none
  virtual int32_t eos() const = 0;  // -1 when there is none
  virtual bool add_bos() const = 0;
  /// Tokens that end a generation: eos, eot, eom.
  virtual bool is_end_of_generation(int32_t id) const = 0;
};

}  // namespace nibble
