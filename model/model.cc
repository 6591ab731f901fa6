#include "model/model.h"

#include <algorithm>

#include "model/activation_rounding.h"
#include "model/experts.h"
#include "model/layers.h"
#include "model/llama.h"
#include "model/made_weight.h"
#include "model/tensors.h"

namespace nibble {

torch::Tensor Weight::matrix(int64_t expert) const {
  return expert < 0 ? values_of(value.detach()) : matrix_of(value.detach(), expert);
}

Weight* Model::find_weight(const std::string& name) {
  for (Weight* weight : weights())
    if (weight->name == name) return weight;
  return nullptr;
}

torch::Tensor Model::logits(const Batch& batch) {
  const torch::Tensor states = hidden(batch);
  return logits_of(states.flatten(0, 1)).unflatten(0, {states.size(0), states.size(1)});
}

torch::Tensor Model::logits_of(const torch::Tensor& states) {
  return soft_cap(linear(states, output_weight(), {}, compute_dtype()), shape().logit_cap);
}

void Model::keep_matrices_cast() {
  for (Weight* weight : weights())
    if (is_matmul_weight(weight->name, weight->value.dim()) && !is_made(weight->value))
      weight->value = weight->value.to(compute_dtype());
}

std::vector<torch::Tensor> Model::project(const torch::Tensor& x,
                                          const std::vector<const Weight*>& weights,
                                          const std::vector<int64_t>& counts) const {
  if (observer_) show_observer(x, weights, counts);
  const auto multiplied = [&](const std::vector<const Weight*>& by) {
    const torch::Tensor rounded = round_activations(x, by[0]->activations);
    std::vector<torch::Tensor> values;
    for (const Weight* weight : by) values.push_back(weight->value);
    if (by[0]->is_stack()) return project_experts(rounded, counts, values, compute_dtype());
    return nibble::project(rounded, values,
                           is_router_weight(by[0]->name) ? torch::kFloat32 : compute_dtype());
  };
  const auto alike = [&](const Weight* weight) {
    return weight->activations == weights[0]->activations;
  };
  if (std::all_of(weights.begin(), weights.end(), alike)) return multiplied(weights);
  std::vector<torch::Tensor> results;
  for (const Weight* weight : weights) results.push_back(multiplied({weight})[0]);
  return results;
}

void Model::show_observer(const torch::Tensor& x, const std::vector<const Weight*>& weights,
                          const std::vector<int64_t>& counts) const {
  if (!weights[0]->is_stack()) return observer_(x, weights, kNoExpert);
  int64_t first = 0;
  for (size_t expert = 0; expert < counts.size(); first += counts[expert++])
    observer_(x.narrow(0, first, counts[expert]), weights, static_cast<int64_t>(expert));
}

int64_t Model::num_parameters() {
  int64_t total = 0;
  for (const Weight* weight : weights()) total += weight->value.numel();
  return total;
}

void check_model(const GgufFile& file) {
  check_tensors(file, llama_tensors(read_llama_options(file)));
}

ModelShape model_shape(const GgufFile& file) { return read_llama_options(file).shape; }

ActivationBytes activation_bytes(const GgufFile& file, torch::Dtype dtype) {
  return llama_activation_bytes(read_llama_options(file), dtype);
}

std::unique_ptr<Model> load_model(const GgufFile& file, torch::Device device,
                                  const ModelPart& part) {
  return load_llama(file, device, part);
}

std::unique_ptr<Model> copy_model(Model& model) { return model.copy(); }

}  // namespace nibble
