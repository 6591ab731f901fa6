#include "model/tokenizer.h"

#include "base/error.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_spm.h"
#include "model/tokenizer_unigram.h"

namespace nibble {

std::unique_ptr<Tokenizer> Tokenizer::from_metadata(const GgufMetadata& metadata) {
  return with_frame("tokenizer", [&]() -> std::unique_ptr<Tokenizer> {
    const std::string& model = metadata.get_string("tokenizer.ggml.model");
    if (model == "gpt2") return std::make_unique<BpeTokenizer>(metadata);
    if (model == "llama") return std::make_unique<SpmTokenizer>(metadata);
    if (model == "t5") return std::make_unique<UnigramTokenizer>(metadata);
    fail("tokenizer.ggml.model is '", model,
         "'; nibble knows 'gpt2' (byte-level BPE), 'llama' (sentencepiece) and 't5' (Unigram)");
  });
}

}  // namespace nibble
