// Tensors in a scratch file, and what goes into or comes out of blocks at each position of each
// batch. All float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/scratch_file.h"
#include "model/model.h"

namespace nibble {

/// offset: in bytes.
inline void write_tensor(ScratchFile& file, int64_t offset, const torch::Tensor& tensor) {
  const torch::Tensor here = tensor.detach().cpu().contiguous();
  file.write_at(offset, std::as_bytes(std::span(here.const_data_ptr<float>(), here.numel())));
}

/// On the CPU.
inline torch::Tensor read_tensor(const ScratchFile& file, int64_t offset, at::IntArrayRef sizes) {
  torch::Tensor tensor = torch::empty(sizes, torch::kFloat32);
  file.read_at(offset,
               std::as_writable_bytes(std::span(tensor.mutable_data_ptr<float>(), tensor.numel())));
  return tensor;
}

/// [N, D] for each batch of N positions and each of any number of blocks.
class BlockStates {
 public:
  /// `batches` must outlive it.
  BlockStates(const std::string& folder, const std::vector<Batch>& batches, int64_t width)
      : file_(folder), batches_(batches), width_(width) {
    for (const Batch& batch : batches) positions_ = std::max(positions_, batch.tokens.numel());
  }

  void put(size_t batch, const torch::Tensor& states, int64_t block = 0) {
    write_tensor(file_, offset(batch, block), states);
  }
  torch::Tensor get(size_t batch, int64_t block = 0) const {
    return read_tensor(file_, offset(batch, block), {batches_[batch].tokens.numel(), width_});
  }

 private:
  int64_t offset(size_t batch, int64_t block) const {
    const int64_t index =
        block * static_cast<int64_t>(batches_.size()) + static_cast<int64_t>(batch);
    return index * positions_ * width_ * static_cast<int64_t>(sizeof(float));
  }

  ScratchFile file_;
  const std::vector<Batch>& batches_;
  int64_t positions_ = 0, width_;
};

}  // namespace nibble
