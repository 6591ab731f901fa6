// Which of llama.cpp's named pre-tokenizers (tokenizer.ggml.pre) cuts text as a tokenizer.json
// says. llama.cpp's converter recognizes whole tokenizers, by the hash of one text's ids; here the
// expressions themselves are compared, so that a tokenizer with other tokens is known too. Where
// several names cut alike, it is the one of the model that the expressions came with.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace nibble {

/// Of a byte-level BPE tokenizer.json. Throws where no name fits.
std::string pre_tokenizer_name(const nlohmann::json& tokenizer);

}  // namespace nibble
