// A tokenizer for a new model, trained by the sentencepiece library on the run's own text: BPE with
// byte fallback and the settings of Llama's tokenizer (digits apart, runs of spaces are pieces, no
// normalization), but for the space before a text's start, which would set a program's first line
// apart from all others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "training/trainer.h"

namespace nibble {

/// The fewest tokens that a vocabulary can have: <unk>, <s>, </s>, the 256 bytes and one piece.
inline constexpr int64_t kMinVocabSize = 260;

/// What the tokenizer is trained on: documents from the front of the order in which the run reads
/// them, a few megabytes at most and at most half of what it is sure to train on (a tenth of the
/// text at least); the held-out part is at the other end.
std::vector<std::string> tokenizer_sample(const DataOptions& options, uint64_t seed);

/// Trains on texts, line by line (a line's end is a byte token; lines of more than 4,192 bytes are
/// left out, as sentencepiece does). Returns the library's own model file (tokenizer.model). Equal
/// texts give equal bytes. Throws Error with the library's reason, say text too small for so many
/// tokens.
std::string train_tokenizer(const std::vector<std::string>& texts, int64_t vocab_size);

/// tokenizer.ggml.* of such a file, as llama.cpp's "llama" tokenizer wants them. A BOS is added
/// before a text, no EOS after it.
GgufMetadata tokenizer_metadata(const std::string& model);

}  // namespace nibble
