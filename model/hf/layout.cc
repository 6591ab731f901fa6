#include "model/hf/layout.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/hf/config.h"
#include "model/hf/json_fields.h"
#include "model/hf/wanted_tensors.h"

namespace nibble {

GgufFile hf_layout(const std::string& path) {
  const bool is_folder = std::filesystem::is_directory(path);
  const std::string config_path = is_folder ? path + "/config.json" : path;
  const auto json = read_json_file(config_path);
  check(json.has_value(), config_path, ": no such file");
  return with_frame(config_path, [&] {
    constexpr uint32_t kMostlyF16 = 1;
    const HfConfig config = read_hf_config(*json);
    const WantedTensors wanted(config);
    std::vector<GgufTensor> tensors;
    for (const WantedTensors::Target& target : wanted.targets()) {
      if (!target.required) continue;
      GgufTensor& tensor = tensors.emplace_back();
      tensor.name = target.name;
      tensor.shape = target.shape();
      tensor.type = target.takes_matrix_type() ? GgmlType::kF16 : GgmlType::kF32;
    }
    GgufMetadata metadata = hf_model_metadata(config, kMostlyF16);
    const std::string architecture(config.architecture->name);
    metadata.set("general.architecture", architecture);
    // Which a file of its own counts from its tokenizer.
    metadata.set(architecture + ".vocab_size", static_cast<uint32_t>(config.sizes.vocab_size));
    return GgufFile::layout(path, std::move(metadata), std::move(tensors));
  });
}

}  // namespace nibble
