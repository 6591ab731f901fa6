#include "model/tensors.h"

#include <algorithm>
#include <span>
#include <unordered_map>

#include "base/error.h"
#include "model/made_weight.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

/// Trailing sizes of 1 say nothing: [64] and [64 x 1] are one shape.
std::vector<int64_t> without_trailing_ones(std::vector<int64_t> shape) {
  while (shape.size() > 1 && shape.back() == 1) shape.pop_back();
  return shape;
}

std::vector<int64_t> sizes_of(const GgufTensor& tensor) {
  return {tensor.shape.rbegin(), tensor.shape.rend()};
}

torch::Tensor decoded(const GgufTensor& tensor) {
  torch::Tensor values = torch::empty(sizes_of(tensor), torch::kFloat32);
  decode_tensor(tensor.type, tensor.data,
                {values.data_ptr<float>(), static_cast<size_t>(tensor.num_weights())});
  return values;
}

torch::Tensor decoded_on_use(std::shared_ptr<const GgufFile> file, const GgufTensor& tensor,
                             torch::Device device) {
  const auto make = [file = std::move(file), &tensor](int64_t first, torch::Tensor& out) {
    const auto stride = static_cast<size_t>(row_bytes(tensor.type, tensor.row_length()));
    const auto begin = static_cast<size_t>(first), rows = static_cast<size_t>(out.size(0));
    decode_tensor(tensor.type, tensor.data.subspan(begin * stride, rows * stride),
                  {out.mutable_data_ptr<float>(), static_cast<size_t>(out.numel())});
    if ((begin + rows) * stride == tensor.data.size()) file->release(tensor);
  };
  return made_weight(sizes_of(tensor), device, make);
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
         !name.ends_with(".ssm_conv1d.weight") && !name.ends_with(".bias");
}

bool is_made_on_use(const std::string& name, size_t num_dimensions) {
  return is_matmul_weight(name, num_dimensions) || name == "token_embd.weight";
}

bool is_router_weight(const std::string& name) {
  return name.ends_with(".ffn_gate_inp.weight") || name.ends_with(".ffn_gate_inp_shexp.weight");
}

std::vector<std::unique_ptr<Weight>> load_weights(
    const GgufFile& file, const std::vector<TensorSpec>& specs, torch::Device device,
    const std::function<bool(const std::string&)>& wanted, bool on_use) {
  check_tensors(file, specs);
  const auto kept =
      on_use ? std::make_shared<const GgufFile>(GgufFile::open(file.path())) : nullptr;
  return with_frame(file.path(), [&] {
    std::vector<std::unique_ptr<Weight>> weights;
    for (const GgufTensor& tensor : file.tensors()) {
      if (!wanted(tensor.name)) continue;
      with_frame(concat("tensor '", tensor.name, "'"), [&] {
        const bool made = on_use && is_made_on_use(tensor.name, tensor.shape.size());
        const torch::Tensor value = made ? decoded_on_use(kept, kept->tensor(tensor.name), device)
                                         : decoded(tensor).to(device);
        weights.push_back(std::make_unique<Weight>(Weight{tensor.name, value, tensor.type}));
      });
      file.release(tensor);
    }
    return weights;
  });
}

}  // namespace nibble
