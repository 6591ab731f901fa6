#include "quant/fake/quantizer.h"

#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "quant/fake/on_grid.h"
#include "quant/fake/pieces.h"
#include "quant/fake/torch_device.h"
#include "quant/format/kernels.h"
#include "quant/format/level_spacing.h"

namespace nibble {
namespace {

void check_float32(const torch::Tensor& tensor, const std::string& name, const char* what,
                   torch::Device device) {
  check(tensor.defined() && tensor.scalar_type() == torch::kFloat32 && tensor.is_contiguous() &&
            tensor.device() == device,
        "tensor '", name, "': ", what, " must be contiguous float32 on device ", device.str());
}

/// Sixteen running sums, so that the loop vectorizes with a fixed order of additions.
double squared_norm_of(const float* values, int64_t count) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] += values[i + lane] * values[i + lane];
  double sum = 0;
  for (float lane : lanes) sum += lane;
  for (; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return sum;
}

double total(const std::vector<double>& sums) {
  double sum = 0;
  for (double value : sums) sum += value;
  return sum;
}

constexpr std::pair<ScaleMode, std::string_view> kScaleModes[] = {{ScaleMode::kDynamic, "dynamic"},
                                                                  {ScaleMode::kLearned, "learned"},
                                                                  {ScaleMode::kFrozen, "frozen"}};

}  // namespace

std::string_view scale_mode_name(ScaleMode mode) {
  for (const auto& [value, name] : kScaleModes)
    if (value == mode) return name;
  return "";
}

ScaleMode parse_scale_mode(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& [value, known] : kScaleModes) {
    if (known == name) return value;
    names.emplace_back(known);
  }
  fail_usage("no scale mode '", name, "'; dynamic, learned or frozen", did_you_mean(name, names));
}

FakeQuantizer::FakeQuantizer(std::string name, const Format& format, ScaleMode mode,
                             torch::Tensor weights, const torch::Tensor& importance,
                             EncodeMethod initial)
    : name_(std::move(name)), format_(&format), mode_(mode), weights_(std::move(weights)) {
  check_mode();
  check_shapes();
  if (mode_ == ScaleMode::kDynamic || format.num_scales == 0) return;
  if (importance.defined()) check_float32(importance, name_, "importance", torch::kCPU);
  const torch::Tensor scales = with_frame("tensor '" + name_ + "'", [&] {
    return chosen_scales(format, weights_.cpu(), importance, initial);
  });
  initial_scales_ = scales.to(weights_.device());
  scale_ratios_ = torch::ones_like(initial_scales_);
}

FakeQuantizer::FakeQuantizer(std::string name, const Format& format, ScaleMode mode,
                             torch::Tensor weights, torch::Tensor scale_ratios,
                             torch::Tensor initial_scales)
    : name_(std::move(name)),
      format_(&format),
      mode_(mode),
      weights_(std::move(weights)),
      scale_ratios_(std::move(scale_ratios)),
      initial_scales_(std::move(initial_scales)) {
  check_mode();
  check_shapes();
  const bool wanted = mode_ != ScaleMode::kDynamic && format.num_scales > 0;
  check(scale_ratios_.defined() == wanted && initial_scales_.defined() == wanted, "tensor '", name_,
        "': ", wanted ? "no scales for " : "scales given for ", format.name, " in ",
        scale_mode_name(mode_), " mode");
  if (!wanted) return;
  check_like_weights(scale_ratios_, "scale ratios");
  check_like_weights(initial_scales_, "initial scales");
  const int64_t scales = num_blocks() * format.num_scales;
  check(scale_ratios_.numel() == scales && initial_scales_.numel() == scales, "tensor '", name_,
        "': ", scale_ratios_.numel(), " ratios and ", initial_scales_.numel(),
        " initial scales, wanted ", scales);
}

void FakeQuantizer::check_like_weights(const torch::Tensor& tensor, const char* what) const {
  check_float32(tensor, name_, what, weights_.device());
}

void FakeQuantizer::check_mode() const {
  if (!format_->has_byte_scales || mode_ == ScaleMode::kDynamic) return;
  fail_usage("tensor '", name_, "': scales of ", format_->name, " cannot be ",
             scale_mode_name(mode_),
             ", as bytes are too coarse for it; set quant.scales to dynamic");
}

void FakeQuantizer::check_shapes() const {
  check(weights_.defined(), "tensor '", name_, "': no weights");
  check_like_weights(weights_, "weights");
  check(weights_.dim() >= 2 && weights_.numel() > 0, "tensor '", name_, "': ", weights_.dim(),
        " dimensions, wanted rows of weights");
  check(row_length() % format_->block_size == 0, "tensor '", name_, "': row length ", row_length(),
        " is no multiple of ", format_->name, "'s block of ", format_->block_size);
}

void FakeQuantizer::scales_of_blocks(const torch::Tensor& of_ratios, int64_t begin, int64_t end,
                                     float* out) const {
  const int64_t first = begin * format_->num_scales, count = (end - begin) * format_->num_scales;
  const float* ratios = of_ratios.const_data_ptr<float>() + first;
  const float* initial = initial_scales_.const_data_ptr<float>() + first;
  for (int64_t i = 0; i < count; ++i) out[i] = initial[i] * std::max(ratios[i], 0.0f);
}

void FakeQuantizer::materialize(torch::Tensor& out) {
  if (is_stored()) {
    check(out.defined() && out.sizes().vec() == sizes(), "tensor '", name_,
          "': W^ has another shape than the stored blocks");
    torch::Tensor rows = out.view({-1, out.size(-1)});
    return materialize_rows(0, rows);
  }
  check_like_weights(out, "W^");
  check(out.sizes() == weights_.sizes(), "tensor '", name_, "': W^ has another shape than W");
  if (weights_.is_cuda()) return materialize_on_cuda(out);
  float* weights = weights_.mutable_data_ptr<float>();
  float* values = out.mutable_data_ptr<float>();
  const Format& format = *format_;
  if (is_dynamic()) {
    const int64_t length = row_length(), row_blocks = length / format.block_size;
    for_each_piece(num_rows(), 1, [&](int64_t, int64_t row, int64_t) {
      thread_local std::vector<std::byte> codes;
      codes.resize(row_blocks * format.block_bytes);
      format.encode(weights + row * length, nullptr, codes.data(), length, EncodeMethod::kRtn);
      format.decode(codes.data(), values + row * length, row_blocks);
    });
    return;
  }
  const int64_t piece_blocks = blocks_in_piece(format);
  for_each_piece(num_blocks(), piece_blocks, [&](int64_t, int64_t begin, int64_t end) {
    thread_local std::vector<float> scales;
    scales.resize(piece_blocks * format.num_scales);
    if (has_scales()) scales_of_blocks(scale_ratios_, begin, end, scales.data());
    const int64_t first = begin * format.block_size;
    if (followed_ratios_.defined()) {
      thread_local std::vector<float> before;
      before.resize(scales.size());
      scales_of_blocks(followed_ratios_, begin, end, before.data());
      format.follow(weights + first, before.data(), scales.data(), end - begin);
    }
    format.fake_quantize(weights + first, scales.data(), values + first, end - begin);
  });
  followed_ratios_ = torch::Tensor();
}

void FakeQuantizer::materialize_on_cuda(torch::Tensor& out) {
  const c10::DeviceGuard guard(weights_.device());
  void* stream = cuda_stream(weights_.device());
  float* weights = weights_.mutable_data_ptr<float>();
  float* values = out.mutable_data_ptr<float>();
  with_frame(concat("tensor '", name_, "'"), [&] {
    if (is_dynamic()) {
      torch::Tensor blocks = torch::empty({num_blocks() * format_->block_bytes},
                                          weights_.options().dtype(torch::kUInt8));
      auto* bytes = reinterpret_cast<std::byte*>(blocks.mutable_data_ptr<uint8_t>());
      cuda_encode(format_->type, weights, bytes, num_blocks(), EncodeMethod::kRtn, stream);
      cuda_decode(format_->type, bytes, values, DeviceFloat::kFloat32, num_blocks(), stream);
      return;
    }
    TrainedScales scales{nullptr};
    if (has_scales())
      scales = {initial_scales_.const_data_ptr<float>(), scale_ratios_.const_data_ptr<float>()};
    if (followed_ratios_.defined())
      cuda_follow(
          format_->type, weights,
          {initial_scales_.const_data_ptr<float>(), followed_ratios_.const_data_ptr<float>()},
          scales, num_blocks(), stream);
    cuda_fake_quantize(format_->type, weights, scales, values, num_blocks(), stream);
  });
  followed_ratios_ = torch::Tensor();
}

void FakeQuantizer::backward_on_cuda(torch::Tensor& grad_out, torch::Tensor& grad_ratios) const {
  const c10::DeviceGuard guard(weights_.device());
  const TrainedScales scales = {initial_scales_.const_data_ptr<float>(),
                                scale_ratios_.const_data_ptr<float>()};
  float* grads = grad_out.mutable_data_ptr<float>();
  with_frame(concat("tensor '", name_, "'"), [&] {
    cuda_fake_quantize_backward(
        format_->type, weights_.const_data_ptr<float>(), scales, grads, grads,
        grad_ratios.defined() ? grad_ratios.mutable_data_ptr<float>() : nullptr, num_blocks(),
        estimator_, cuda_stream(weights_.device()));
  });
}

FakeQuantizer::Gradients FakeQuantizer::backward(torch::Tensor grad_out,
                                                 torch::Tensor grad_ratios) {
  check(!is_stored(), "tensor '", name_, "': stored codes have no gradient");
  check_like_weights(grad_out, "the gradient");
  check(grad_out.sizes() == weights_.sizes(), "tensor '", name_,
        "': the gradient has another shape than W");
  // Without scale parameters nothing is clamped by a learned range: straight through.
  const bool on_cpu = weights_.is_cpu();
  if (!has_scales()) return {grad_out, {}, on_cpu ? nibble::squared_norm(grad_out) : 0.0};

  const bool learned = mode_ == ScaleMode::kLearned;
  if (!learned) grad_ratios = torch::Tensor();
  if (learned && !grad_ratios.defined()) grad_ratios = torch::empty_like(scale_ratios_);
  if (learned && estimator_.follows) followed_ratios_ = scale_ratios_.clone();
  if (!on_cpu) {
    backward_on_cuda(grad_out, grad_ratios);
    return {grad_out, grad_ratios, 0.0};
  }
  const Format& format = *format_;
  const float* weights = weights_.const_data_ptr<float>();
  const float* initial = initial_scales_.const_data_ptr<float>();
  float* grads = grad_out.mutable_data_ptr<float>();
  float* ratio_grads = learned ? grad_ratios.mutable_data_ptr<float>() : nullptr;
  const int64_t piece_blocks = blocks_in_piece(format);
  std::vector<double> sums((num_blocks() + piece_blocks - 1) / piece_blocks);
  for_each_piece(num_blocks(), piece_blocks, [&](int64_t piece, int64_t begin, int64_t end) {
    thread_local std::vector<float> scales, scale_grads;
    const int64_t count = (end - begin) * format.num_scales;
    scales.resize(count);
    scale_grads.resize(count);
    scales_of_blocks(scale_ratios_, begin, end, scales.data());
    float* grad = grads + begin * format.block_size;
    format.fake_quantize_backward(weights + begin * format.block_size, scales.data(), grad, grad,
                                  scale_grads.data(), end - begin, estimator_);
    sums[piece] = squared_norm_of(grad, (end - begin) * format.block_size);
    if (!learned) return;
    const int64_t first = begin * format.num_scales;
    for (int64_t i = 0; i < count; ++i)
      ratio_grads[first + i] = scale_grads[i] * initial[first + i];
    sums[piece] += squared_norm_of(ratio_grads + first, count);
  });
  return {grad_out, grad_ratios, total(sums)};
}

std::vector<std::byte> FakeQuantizer::blocks() const {
  if (is_stored()) {
    std::vector<std::byte> bytes(stored_.numel());
    for_each_piece(num_blocks(), blocks_in_piece(*format_),
                   [&](int64_t, int64_t begin, int64_t end) {
                     trained_blocks(begin, end, bytes.data() + begin * format_->block_bytes);
                   });
    return bytes;
  }
  if (!weights_.is_cpu()) {
    const auto on_cpu = [](const torch::Tensor& tensor) {
      return tensor.defined() ? tensor.cpu() : tensor;
    };
    return FakeQuantizer(name_, *format_, mode_, weights_.cpu(), on_cpu(scale_ratios_),
                         on_cpu(initial_scales_))
        .blocks();
  }
  const Format& format = *format_;
  const float* weights = weights_.const_data_ptr<float>();
  std::vector<std::byte> bytes(num_blocks() * format.block_bytes);
  const int64_t row_blocks = row_length() / format.block_size;
  for_each_piece(num_rows(), 1, [&](int64_t, int64_t row, int64_t) {
    const float* in = weights + row * row_length();
    std::byte* out = bytes.data() + row * row_blocks * format.block_bytes;
    if (is_dynamic()) {
      format.encode(in, nullptr, out, row_length(), EncodeMethod::kRtn);
      return;
    }
    std::vector<float> scales(row_blocks * format.num_scales), snapped(scales.size());
    if (has_scales()) {
      scales_of_blocks(scale_ratios_, row * row_blocks, (row + 1) * row_blocks, scales.data());
      format.snap(scales.data(), snapped.data(), row_blocks);
    }
    format.encode_with(in, snapped.data(), out, row_blocks);
  });
  return bytes;
}

double FakeQuantizer::level_distance() const {
  const Format& format = *format_;
  if (!format.steps_of) return 0;
  const std::vector<std::byte> all = blocks();
  std::vector<float> steps(num_blocks() * (format.block_size / format.group_size));
  format.steps_of(all.data(), steps.data(), num_blocks());
  double sum = 0;
  for (const float step : steps) sum += double{step} * step;
  return level_spacing(format.type) * std::sqrt(sum / static_cast<double>(steps.size()));
}

uint64_t content_hash(const torch::Tensor& on_any_device) {
  const torch::Tensor values = on_any_device.cpu();
  check_float32(values, "", "hashed values", torch::kCPU);
  return content_hash(std::span(values.const_data_ptr<float>(), values.numel()));
}

double squared_norm(const torch::Tensor& values) {
  check_float32(values, "", "values", torch::kCPU);
  const float* data = values.const_data_ptr<float>();
  std::vector<double> sums((values.numel() + kPieceWeights - 1) / kPieceWeights);
  for_each_piece(values.numel(), kPieceWeights, [&](int64_t piece, int64_t begin, int64_t end) {
    sums[piece] = squared_norm_of(data + begin, end - begin);
  });
  return total(sums);
}

double squared_norm_of_all(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> defined;
  for (const torch::Tensor& tensor : tensors)
    if (tensor.defined() && tensor.numel() > 0) defined.push_back(tensor);
  if (defined.empty()) return 0.0;
  return at::stack(at::_foreach_norm(defined)).to(torch::kFloat64).square().sum().item<double>();
}

}  // namespace nibble
