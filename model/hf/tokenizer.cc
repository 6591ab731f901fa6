#include "model/hf/tokenizer.h"

#include <filesystem>

#include "base/error.h"
#include "model/hf/json_fields.h"
#include "model/hf/special_tokens.h"
#include "model/hf/tokenizer_files.h"
#include "model/hf/unigram.h"
#include "model/hf/vocabulary.h"

namespace nibble {
namespace {

// llama.cpp's converter knows granite's small models and SmolLM by it: they add no BOS.
constexpr int64_t kVocabWithoutBos = 49152;

constexpr const char* kUnknownKey = "tokenizer.ggml.unknown_token_id";

void append(GgufMetadata& metadata, const GgufMetadata& more) {
  for (const auto& [key, value] : more.pairs()) metadata.set(key, value);
}

/// llama.cpp ends a text where the metadata of a Unigram tokenizer is silent, as T5 wants it.
void set_unigram_defaults(const TokenizerFiles& files, GgufMetadata& metadata) {
  const std::string bos = "tokenizer.ggml.add_bos_token", eos = "tokenizer.ggml.add_eos_token";
  const bool llama = !files.tokenizer && files.tokenizer_class().starts_with("LlamaTokenizer");
  if (!metadata.contains(bos))
    metadata.set(bos, llama && metadata.contains("tokenizer.ggml.bos_token_id"));
  if (!metadata.contains(eos)) metadata.set(eos, false);
}

GgufMetadata vocabulary_of(const TokenizerFiles& files, const HfConfig& config,
                           const std::string& pre) {
  const int64_t size = config.sizes.vocab_size;
  const bool phi = config.architecture->name == "phi3";
  std::error_code error;
  // As llama.cpp's converter chooses where there are both.
  const bool sentencepiece = std::filesystem::exists(files.path("tokenizer.model"), error) &&
                             !(phi && files.tokenizer_class() == "GPT2Tokenizer");
  const bool merged = (config.is_llama || phi || config.architecture->is_gemma) &&
                      files.tokenizer && with_frame(files.path("tokenizer.json"), [&] {
                        return is_merged_sentencepiece(*files.tokenizer);
                      });
  const bool unigram = files.tokenizer && is_unigram(*files.tokenizer);
  check(pre.empty() || !(sentencepiece || merged || unigram),
        "a sentencepiece tokenizer has no pre-tokenizer (--pre ", pre, ")");
  if (unigram) return unigram_vocabulary(files, size);
  if (sentencepiece)
    return sentencepiece_vocabulary(files, size,
                                    phi ? AddedTokens::kAsMarked : AddedTokens::kMissing);
  if (merged) return merged_sentencepiece_vocabulary(files, size);
  const bool tekken = std::filesystem::exists(files.path("tekken.json"), error);
  check(files.tokenizer || !tekken, files.folder,
        ": has tekken.json only; nibble reads tokenizer.json or tokenizer.model");
  return bpe_vocabulary(files, size, pre);
}

}  // namespace

GgufMetadata hf_tokenizer_metadata(const std::string& folder, const HfConfig& config,
                                   const nlohmann::json& json, const std::string& pre) {
  const TokenizerFiles files = read_tokenizer_files(folder);
  const bool llama = config.is_llama;
  GgufMetadata metadata;
  if (llama && files.config)
    with_frame(files.path("tokenizer_config.json"), [&] {
      if (const auto adds = bool_field(*files.config, "add_prefix_space"))
        metadata.set("tokenizer.ggml.add_space_prefix", *adds);
    });
  const GgufMetadata vocabulary = vocabulary_of(files, config, pre);
  append(metadata, vocabulary);
  append(metadata, special_tokens(files, json, config.sizes.vocab_size));
  if (metadata.get_string("tokenizer.ggml.model") == "t5") {
    metadata.set(kUnknownKey, *vocabulary.find(kUnknownKey));
    set_unigram_defaults(files, metadata);
  }
  append(metadata, chat_templates(files));
  if (config.architecture->is_gemma) metadata.set("tokenizer.ggml.add_space_prefix", false);
  if (llama && config.sizes.vocab_size == kVocabWithoutBos)
    metadata.set("tokenizer.ggml.add_bos_token", false);
  return metadata;
}

}  // namespace nibble
