#include "export/modelfile.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/io/temporary_folder.h"
#include "tests/model/tokenizer_metadata.h"

namespace nibble {
namespace {

/// ChatML, of a model whose EOS is another token than what ends a turn.
GgufMetadata chatml() {
  GgufMetadata metadata =
      bpe_metadata("gpt-2", byte_tokens({"<|endoftext|>", "<|im_start|>", "<|im_end|>"}), {});
  std::vector<int32_t> types(259, 1);
  std::fill(types.begin() + 256, types.end(), 3);
  metadata.set("general.architecture", std::string("llama"));
  metadata.set("tokenizer.ggml.token_type", ints(types));
  metadata.set("tokenizer.ggml.eos_token_id", uint32_t{256});
  metadata.set("tokenizer.chat_template",
               std::string("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
                           "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
                           "<|im_start|>assistant\n{% endif %}"));
  return metadata;
}

std::string modelfile_of(const GgufMetadata& metadata) {
  const TemporaryFolder folder;
  const std::string path = folder.file("m.gguf");
  GgufWriter(path, metadata, {}).finish();
  std::string note;
  return modelfile(GgufFile::open(path), "m.gguf", note);
}

TEST(Modelfile, StopsAtWhatTheTemplatePutsBehindAnAnswer) {
  const std::string text = modelfile_of(chatml());
  EXPECT_NE(text.find("PARAMETER stop \"<|im_end|>\"\n"), std::string::npos) << text;
  EXPECT_NE(text.find("PARAMETER stop \"<|endoftext|>\"\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("<|im_start|>\"\n"), std::string::npos) << text;
}

TEST(Modelfile, SamplingIsSaidInOllamasNames) {
  GgufMetadata metadata = chatml();
  metadata.set("general.sampling.top_k", int32_t{20});
  metadata.set("general.sampling.penalty_repeat", 1.5f);
  metadata.set("general.sampling.penalty_last_n", int32_t{64});
  const std::string text = modelfile_of(metadata);
  for (const char* line : {"top_k 20\n", "repeat_penalty 1.5\n", "repeat_last_n 64\n"})
    EXPECT_NE(text.find(std::string("PARAMETER ") + line), std::string::npos) << text;
}

}  // namespace
}  // namespace nibble
