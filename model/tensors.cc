#include "model/tensors.h"

#include <algorithm>
#include <span>
#include <unordered_map>

#include "base/error.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

/// Trailing sizes of 1 say nothing: [64] and [64 x 1] are one shape.
std::vector<int64_t> without_trailing_ones(std::vector<int64_t> shape) {
  while (shape.size() > 1 && shape.back() == 1) shape.pop_back();
  return shape;
}

std::unique_ptr<Weight> decode(const GgufTensor& tensor, torch::Device device) {
  std::vector<int64_t> sizes(tensor.shape.rbegin(), tensor.shape.rend());
  auto weight = std::make_unique<Weight>();
  weight->name = tensor.name;
  weight->source = tensor.type;
  weight->value = torch::empty(sizes, torch::kFloat32);
  decode_tensor(tensor.type, tensor.data,
                {weight->value.data_ptr<float>(), static_cast<size_t>(tensor.num_weights())});
  weight->value = weight->value.to(device);
  return weight;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += concat(i ? " x " : "", shape[i]);
  return text + "]";
}

void check_tensors(const GgufFile& file, const std::vector<TensorSpec>& specs) {
  with_frame(file.path(), [&] {
    std::unordered_map<std::string, const TensorSpec*> by_name;
    for (const TensorSpec& spec : specs) {
      by_name[spec.name] = &spec;
      check(!spec.required || file.find_tensor(spec.name), "tensor '", spec.name, "' ",
            shape_text(spec.shape), " is missing");
    }
    for (const GgufTensor& tensor : file.tensors()) {
      const auto found = by_name.find(tensor.name);
      check(found != by_name.end(), "tensor '", tensor.name,
            "': this architecture has no such tensor");
      const TensorSpec& spec = *found->second;
      check(without_trailing_ones(tensor.shape) == without_trailing_ones(spec.shape), "tensor '",
            tensor.name, "': has shape ", shape_text(tensor.shape), ", the metadata wants ",
            shape_text(spec.shape));
    }
  });
}

bool is_matmul_weight(const std::string& name, size_t num_dimensions) {
  return num_dimensions >= 2 && name != "token_embd.weight" && !is_router_weight(name) &&
         !name.ends_with(".ssm_conv1d.weight");
}

bool is_router_weight(const std::string& name) {
  return name.ends_with(".ffn_gate_inp.weight") || name.ends_with(".ffn_gate_inp_shexp.weight");
}

std::vector<std::unique_ptr<Weight>> load_weights(
    const GgufFile& file, const std::vector<TensorSpec>& specs, torch::Device device,
    const std::function<bool(const std::string&)>& wanted) {
  check_tensors(file, specs);
  return with_frame(file.path(), [&] {
    std::vector<std::unique_ptr<Weight>> weights;
    for (const GgufTensor& tensor : file.tensors()) {
      if (!wanted(tensor.name)) continue;
      with_frame(concat("tensor '", tensor.name, "'"),
                 [&] { weights.push_back(decode(tensor, device)); });
      file.release(tensor);
    }
    return weights;
  });
}

}  // namespace nibble
