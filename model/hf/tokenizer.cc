#include "model/hf/tokenizer.h"

#include <filesystem>

#include "base/error.h"
#include "model/hf/json_fields.h"
#include "model/hf/special_tokens.h"
#include "model/hf/tokenizer_files.h"
#include "model/hf/vocabulary.h"

namespace nibble {
namespace {

// llama.cpp's converter knows granite's small models and SmolLM by it: they add no BOS.
constexpr int64_t kVocabWithoutBos = 49152;

void append(GgufMetadata& metadata, const GgufMetadata& more) {
  for (const auto& [key, value] : more.pairs()) metadata.set(key, value);
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
  check(pre.empty() || !(sentencepiece || merged),
        "a sentencepiece tokenizer has no pre-tokenizer (--pre ", pre, ")");
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
  append(metadata, vocabulary_of(files, config, pre));
  append(metadata, special_tokens(files, json, config.sizes.vocab_size));
  append(metadata, chat_templates(files));
  if (config.architecture->is_gemma) metadata.set("tokenizer.ggml.add_space_prefix", false);
  if (llama && config.sizes.vocab_size == kVocabWithoutBos)
    metadata.set("tokenizer.ggml.add_bos_token", false);
  return metadata;
}

}  // namespace nibble
