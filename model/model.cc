#include "model/model.h"

#include "base/error.h"
#include "model/layers.h"
#include "model/llama.h"

namespace nibble {

Weight* Model::find_weight(const std::string& name) {
  for (Weight* weight : weights())
    if (weight->name == name) return weight;
  return nullptr;
}

torch::Tensor Model::logits(const Batch& batch) {
  const torch::Tensor states = hidden(batch);
  const torch::Tensor flat =
      linear(states.flatten(0, 1), output_weight(), torch::Tensor(), compute_dtype());
  return flat.view({states.size(0), states.size(1), flat.size(1)});
}

int64_t Model::num_parameters() {
  int64_t total = 0;
  for (const Weight* weight : weights()) total += weight->value.numel();
  return total;
}

std::unique_ptr<Model> load_model(const GgufFile& file, torch::Device device) {
  const std::string architecture =
      with_frame(file.path(), [&] { return file.metadata().get_string("general.architecture"); });
  if (architecture == "llama") return load_llama(file, device);
  Error error(concat("unknown architecture '", architecture, "'; nibble has llama"));
  error.push(file.path());
  throw error;
}

std::unique_ptr<Model> copy_model(Model& model) { return model.copy(); }

}  // namespace nibble
