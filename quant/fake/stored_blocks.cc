// FakeQuantizer where codes are stored and scales alone train. W^ is what the blocks decode to with
// their trained scales in them, so parity with what is exported needs no second thought.
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"
#include "quant/fake/pieces.h"
#include "quant/fake/quantizer.h"

namespace nibble {
namespace {

const std::byte* bytes_of(const torch::Tensor& blocks) {
  return reinterpret_cast<const std::byte*>(blocks.const_data_ptr<uint8_t>());
}

void check_blocks(const std::string& name, const Format& format, const torch::Tensor& blocks) {
  check(blocks.defined() && blocks.is_cpu() && blocks.scalar_type() == torch::kUInt8 &&
            blocks.is_contiguous() && blocks.dim() > 0 && blocks.numel() > 0,
        "tensor '", name, "': stored blocks must be contiguous bytes on the CPU");
  check(blocks.size(-1) % format.block_bytes == 0, "tensor '", name, "': rows of ", blocks.size(-1),
        " bytes are no multiple of ", format.name, "'s block of ", format.block_bytes);
}

}  // namespace

FakeQuantizer::FakeQuantizer(std::string name, const Format& format, torch::Tensor blocks,
                             bool learns)
    : name_(std::move(name)),
      format_(&format),
      mode_(ScaleMode::kFrozen),
      stored_(std::move(blocks)) {
  check_blocks(name_, format, stored_);
  if (format.num_scales == 0 || format.has_byte_scales) return;
  std::vector<int64_t> sizes = stored_.sizes().vec();
  sizes.back() = sizes.back() / format.block_bytes * format.num_scales;
  initial_scales_ = torch::empty(sizes);
  read_initial_scales();
  if (!learns) {
    initial_scales_ = torch::Tensor();
    return;
  }
  mode_ = ScaleMode::kLearned;
  scale_ratios_ = torch::ones(sizes);
}

void FakeQuantizer::copy_blocks(const torch::Tensor& blocks) {
  check_blocks(name_, *format_, blocks);
  check(is_stored() && blocks.sizes() == stored_.sizes(), "tensor '", name_,
        "': stored blocks of another shape");
  stored_.copy_(blocks);
  if (has_scales()) read_initial_scales();
}

void FakeQuantizer::read_initial_scales() {
  format_->scales_of(bytes_of(stored_), initial_scales_.mutable_data_ptr<float>(), num_blocks());
  check(at::isfinite(initial_scales_).all().item<bool>(), "tensor '", name_,
        "': a stored scale is not finite");
}

std::vector<int64_t> FakeQuantizer::sizes() const {
  if (!is_stored()) return weights_.sizes().vec();
  std::vector<int64_t> sizes = stored_.sizes().vec();
  sizes.back() = sizes.back() / format_->block_bytes * format_->block_size;
  return sizes;
}

void FakeQuantizer::trained_blocks(int64_t begin, int64_t end, std::byte* out) const {
  std::memcpy(out, bytes_of(stored_) + begin * format_->block_bytes,
              (end - begin) * format_->block_bytes);
  if (!has_scales()) return;
  thread_local std::vector<float> scales;
  scales.resize((end - begin) * format_->num_scales);
  scales_of_blocks(scale_ratios_, begin, end, scales.data());
  format_->set_scales(scales.data(), out, end - begin);
}

void FakeQuantizer::materialize_rows(int64_t first, torch::Tensor& out) const {
  const int64_t row_blocks = stored_.size(-1) / format_->block_bytes;
  check(out.is_cpu() && out.scalar_type() == torch::kFloat32 && out.is_contiguous() &&
            out.dim() == 2 && out.size(1) == row_blocks * format_->block_size && first >= 0 &&
            (first + out.size(0)) * row_blocks <= num_blocks(),
        "tensor '", name_, "': W^ must be contiguous float32 rows of the stored blocks");
  float* values = out.mutable_data_ptr<float>();
  const int64_t before = first * row_blocks;
  for_each_piece(out.size(0) * row_blocks, blocks_in_piece(*format_),
                 [&](int64_t, int64_t begin, int64_t end) {
                   thread_local std::vector<std::byte> blocks;
                   blocks.resize((end - begin) * format_->block_bytes);
                   trained_blocks(before + begin, before + end, blocks.data());
                   format_->decode(blocks.data(), values + begin * format_->block_size,
                                   end - begin);
                 });
}

void FakeQuantizer::add_scale_gradients(const torch::Tensor& grad_out,
                                        torch::Tensor& grad_ratios) const {
  check(is_stored() && has_scales(), "tensor '", name_, "': has no stored blocks that train");
  check(grad_out.defined() && grad_out.is_cpu() && grad_out.scalar_type() == torch::kFloat32 &&
            grad_out.is_contiguous(),
        "tensor '", name_, "': the gradient must be contiguous float32 on the CPU");
  check(grad_out.sizes().vec() == sizes(), "tensor '", name_,
        "': the gradient has another shape than W^");
  if (!grad_ratios.defined()) grad_ratios = torch::zeros_like(scale_ratios_);
  const Format& format = *format_;
  const std::byte* blocks = bytes_of(stored_);
  const float* grads = grad_out.const_data_ptr<float>();
  const float* initial = initial_scales_.const_data_ptr<float>();
  float* sums = grad_ratios.mutable_data_ptr<float>();
  for_each_piece(num_blocks(), blocks_in_piece(format), [&](int64_t, int64_t begin, int64_t end) {
    thread_local std::vector<float> scales, scale_grads;
    const int64_t first = begin * format.num_scales, count = (end - begin) * format.num_scales;
    scales.resize(count);
    scale_grads.resize(count);
    scales_of_blocks(scale_ratios_, begin, end, scales.data());
    format.scale_gradients(blocks + begin * format.block_bytes, scales.data(),
                           grads + begin * format.block_size, scale_grads.data(), end - begin);
    for (int64_t i = 0; i < count; ++i) sums[first + i] += scale_grads[i] * initial[first + i];
  });
}

}  // namespace nibble
