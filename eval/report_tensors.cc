#include "eval/report_tensors.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/error.h"
#include "quant/format/registry.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

constexpr int64_t kSlabWeights = 1 << 20;

/// `count` weights of a tensor from `first`, both multiples of its block size.
std::vector<float> decode_slab(const GgufTensor& tensor, int64_t first, int64_t count) {
  const int64_t begin = row_bytes(tensor.type, first), size = row_bytes(tensor.type, count);
  std::vector<float> out(static_cast<size_t>(count));
  decode_tensor(tensor.type, tensor.data.subspan(begin, size), out);
  return out;
}

bool is_quantized(const GgufTensor& tensor) { return ggml_type_info(tensor.type).block_size > 1; }

const GgufTensor& matching(const GgufFile& file, const GgufTensor& wanted) {
  const GgufTensor& tensor = file.tensor(wanted.name);
  if (tensor.shape != wanted.shape)
    fail(file.path(), ": tensor '", wanted.name, "' has another shape than in the trained file");
  return tensor;
}

/// Calls visit(first, count) on slabs of whole rows.
void for_each_slab(const GgufTensor& tensor,
                   const std::function<void(int64_t first, int64_t count)>& visit) {
  const int64_t rows = std::max<int64_t>(1, kSlabWeights / tensor.row_length());
  for (int64_t row = 0; row < tensor.num_rows(); row += rows)
    visit(row * tensor.row_length(), std::min(rows, tensor.num_rows() - row) * tensor.row_length());
}

/// Steps, offsets and codes of a run of blocks in a format of one scale and at most one minimum.
struct Codes {
  std::vector<float> weights;
  std::vector<double> step, offset;  // per block
  std::vector<int> codes;            // per weight
};

Codes decode_codes(const GgufTensor& tensor, int64_t first, int64_t count) {
  const Format& format = require_format(tensor.type);
  const int64_t num_blocks = count / format.block_size;
  std::vector<float> scales(static_cast<size_t>(num_blocks * format.num_scales));
  format.scales_of(tensor.data.data() + row_bytes(tensor.type, first), scales.data(), num_blocks);
  Codes out;
  out.weights = decode_slab(tensor, first, count);
  for (int64_t block = 0; block < num_blocks; ++block) {
    const float* scale = &scales[block * format.num_scales];
    const double step = std::abs(scale[0]), offset = format.num_scales > 1 ? scale[1] : 0.0;
    out.step.push_back(step);
    out.offset.push_back(offset);
    for (int64_t i = 0; i < format.block_size; ++i) {
      const double weight = out.weights[block * format.block_size + i];
      out.codes.push_back(step > 0 ? static_cast<int>(std::lround((weight - offset) / step)) : 0);
    }
  }
  return out;
}

/// Whether the picture of a grid, a line for each level and a dot for each weight, can show it.
bool can_sample(const GgufTensor& tensor, const GgufFile& baseline) {
  constexpr int64_t kMostWeights = 64;
  const Format* format = find_format(tensor.type);
  const GgufTensor* other = baseline.find_tensor(tensor.name);
  return format && is_quantized(tensor) && other && other->type == tensor.type &&
         format->has_even_levels && format->block_size <= kMostWeights;
}

/// The feed-forward output of the middle layer where it can be shown, else the tensor in the middle
/// of those that can.
const GgufTensor* sampled_tensor(const GgufFile& trained, const GgufFile& baseline) {
  std::vector<const GgufTensor*> all, preferred;
  for (const GgufTensor& tensor : trained.tensors()) {
    if (!can_sample(tensor, baseline)) continue;
    all.push_back(&tensor);
    if (tensor.name.ends_with(".ffn_down.weight")) preferred.push_back(&tensor);
  }
  const auto& from = preferred.empty() ? all : preferred;
  return from.empty() ? nullptr : from[from.size() / 2];
}

/// The block in which most codes differ, and how many.
struct BestBlock {
  int64_t first = 0;  // its first weight in the tensor
  int64_t changed = -1;
};

}  // namespace

std::vector<TensorError> measure_tensor_errors(const GgufFile& original, const GgufFile& baseline,
                                               const GgufFile& trained) {
  std::vector<TensorError> errors;
  for (const GgufTensor& tensor : trained.tensors()) {
    if (!is_quantized(tensor)) continue;
    const GgufTensor& wanted = matching(original, tensor);
    const GgufTensor& rounded = matching(baseline, tensor);
    double square = 0, rounded_square = 0, trained_square = 0;
    for_each_slab(tensor, [&](int64_t first, int64_t count) {
      const std::vector<float> w = decode_slab(wanted, first, count);
      const std::vector<float> b = decode_slab(rounded, first, count);
      const std::vector<float> t = decode_slab(tensor, first, count);
      for (size_t i = 0; i < w.size(); ++i) {
        const double weight = w[i];
        square += weight * weight;
        rounded_square += (b[i] - weight) * (b[i] - weight);
        trained_square += (t[i] - weight) * (t[i] - weight);
      }
    });
    const auto relative = [&](double error) { return square > 0 ? std::sqrt(error / square) : 0; };
    errors.push_back({tensor.name, std::string(type_name(tensor.type)), relative(rounded_square),
                      relative(trained_square)});
  }
  return errors;
}

std::optional<BlockSample> sample_block(const GgufFile& original, const GgufFile& baseline,
                                        const GgufFile& trained) {
  const GgufTensor* tensor = sampled_tensor(trained, baseline);
  if (!tensor) return std::nullopt;
  const GgufTensor& rounded = matching(baseline, *tensor);
  const int64_t size = ggml_type_info(tensor->type).block_size;
  BlockSample sample;
  sample.tensor = tensor->name;
  sample.type = type_name(tensor->type);
  BestBlock best;
  int64_t changed_codes = 0;
  for_each_slab(*tensor, [&](int64_t first, int64_t count) {
    const Codes before = decode_codes(rounded, first, count),
                after = decode_codes(*tensor, first, count);
    for (int64_t block = 0; block < count / size; ++block) {
      int64_t changed = 0;
      for (int64_t i = block * size; i < (block + 1) * size; ++i) {
        changed += before.codes[i] != after.codes[i];
        sample.least_code = std::min({sample.least_code, before.codes[i], after.codes[i]});
        sample.most_code = std::max({sample.most_code, before.codes[i], after.codes[i]});
      }
      changed_codes += changed;
      if (changed > best.changed) best = {first + block * size, changed};
    }
  });
  const Codes before = decode_codes(rounded, best.first, size),
              after = decode_codes(*tensor, best.first, size);
  sample.row = best.first / tensor->row_length();
  sample.column = best.first % tensor->row_length();
  sample.codes_changed =
      static_cast<double>(changed_codes) / static_cast<double>(tensor->num_weights());
  sample.original = decode_slab(matching(original, *tensor), best.first, size);
  sample.baseline = before.weights;
  sample.trained = after.weights;
  sample.baseline_codes = before.codes;
  sample.trained_codes = after.codes;
  sample.baseline_step = before.step[0];
  sample.trained_step = after.step[0];
  sample.baseline_offset = before.offset[0];
  sample.trained_offset = after.offset[0];
  return sample;
}

}  // namespace nibble
