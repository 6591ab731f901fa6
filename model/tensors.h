// From a GGUF file's tensors to named float32 weights, as an architecture's tensor table wants
// them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"

namespace nibble {

/// One tensor that an architecture knows, with its numbers filled in.
struct TensorSpec {
  std::string name;            // GGUF's: "blk.3.attn_q.weight"
  std::vector<int64_t> shape;  // ggml order: shape[0] is the row length
  bool required = true;
};

/// Throws Error naming file and tensor when a required one is missing, one has another shape than
/// its spec, or one has no spec. Decodes nothing.
void check_tensors(const GgufFile& file, const std::vector<TensorSpec>& specs);

/// Decodes every tensor of `file` that is wanted to float32 on `device`, in file order, after
/// check_tensors(). on_use: matrices are made from the file whenever they are used
/// (model/made_weight.h), which is opened once more for that.
std::vector<std::unique_ptr<Weight>> load_weights(
    const GgufFile& file, const std::vector<TensorSpec>& specs, torch::Device device,
    const std::function<bool(const std::string&)>& wanted, bool on_use);

/// Whether a tensor is a matrix that activations are multiplied with and nothing else, which may
/// then lie in the compute dtype: not the embedding table, a router, experts' biases or a
/// convolution's kernel.
bool is_matmul_weight(const std::string& name, size_t num_dimensions);
/// Whether load_weights() can leave it in the file: the embedding table too.
bool is_made_on_use(const std::string& name, size_t num_dimensions);
/// Whether it says which experts a position goes to, or what the shared one counts.
bool is_router_weight(const std::string& name);

/// "[576 x 49152]", in ggml order.
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace nibble
