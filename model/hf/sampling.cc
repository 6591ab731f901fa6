#include "model/hf/sampling.h"

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

struct Key {
  const char *hf, *gguf;
  bool is_integer;
};
// In the order of llama.cpp's converter.
constexpr Key kKeys[] = {
    {"top_k", "top_k", true},
    {"top_p", "top_p", false},
    {"min_p", "min_p", false},
    {"xtc_probability", "xtc_probability", false},
    {"xtc_threshold", "xtc_threshold", false},
    {"temperature", "temp", false},
    {"penalty_last_n", "penalty_last_n", true},
    {"penalty_repeat", "penalty_repeat", false},
    {"repetition_penalty", "penalty_repeat", false},
    {"mirostat", "mirostat", true},
    {"mirostat_tau", "mirostat_tau", false},
    {"mirostat_eta", "mirostat_eta", false},
};

}  // namespace

GgufMetadata sampling_metadata(const std::string& folder) {
  GgufMetadata metadata;
  const std::string path = folder + "/generation_config.json";
  const auto config = read_json_file(path);
  if (!config) return metadata;
  with_frame(path, [&] {
    for (const Key& key : kKeys) {
      const std::string name = concat("general.sampling.", key.gguf);
      if (metadata.contains(name)) continue;
      if (key.is_integer) {
        if (const auto value = int_field(*config, key.hf))
          metadata.set(name, static_cast<int32_t>(*value));
      } else if (const auto value = number_field(*config, key.hf)) {
        metadata.set(name, static_cast<float>(*value));
      }
    }
  });
  return metadata;
}

}  // namespace nibble
