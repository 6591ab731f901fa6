#include "training/calibrate.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "base/error.h"
#include "quant/fake/on_grid.h"
#include "quant/format/rows.h"
#include "training/awq_start.h"
#include "training/blockwise_file.h"
#include "training/gptq_start.h"

namespace nibble {
namespace {

/// A tensor as the model has it now, or nothing where search of the source does as well.
std::optional<std::vector<std::byte>> bytes_of(const PlanEntry& entry, Model& model,
                                               const StartingPoints& points) {
  const Format* format = find_format(entry.target);
  const Weight* weight = model.find_weight(entry.tensor);
  if (!format || !weight) return std::nullopt;
  if (const auto point = points.find(entry.tensor); point != points.end())
    return encoded(*format, point->second.weights, point->second.scales);
  if (format->num_scales > 0) return std::nullopt;
  // A norm, say, that factors were moved out of.
  const torch::Tensor value = weight->value.detach().contiguous();
  return encode_tensor(entry.target,
                       {value.const_data_ptr<float>(), static_cast<size_t>(value.numel())},
                       value.size(-1), {}, EncodeMethod::kSearch);
}

QuantizeStats quantize_from_start(const GgufFile& source, const Plan& plan,
                                  const std::string& method, const std::vector<Batch>& batches,
                                  const std::string& out_path) {
  const std::unique_ptr<Model> model = load_model(source);
  const StartingPoints points =
      with_frame(source.path(), [&] { return starting_points(method, *model, plan, batches); });
  const Prepared prepared = {
      method, [&](const PlanEntry& entry) { return bytes_of(entry, *model, points); }};
  return quantize_file(source, plan, EncodeMethod::kSearch, out_path, {}, nullptr, &prepared);
}

}  // namespace

bool is_calibrated(std::string_view method) {
  return method == "gptq" || method == "awq" || method == "imatrix" || method == "blockwise";
}

int64_t calibration_batch_tokens(std::string_view method) {
  return method == "blockwise" ? 512 : 2048;
}

std::vector<Batch> calibration_batches(const PackedData& data, int64_t tokens, uint64_t seed,
                                       int64_t batch_tokens) {
  const int64_t length = data.sequence_length();
  const int64_t count = std::clamp<int64_t>(tokens / length, 1, data.num_sequences());
  const std::vector<int64_t> rows = step_sequences(seed, 0, count, data);
  const int64_t together = std::max<int64_t>(1, batch_tokens / length);
  std::vector<Batch> batches;
  for (int64_t first = 0; first < count; first += together)
    batches.push_back(
        data.at({rows.begin() + first, rows.begin() + std::min(count, first + together)}));
  return batches;
}

StartingPoints starting_points(std::string_view method, Model& model, const Plan& plan,
                               const std::vector<Batch>& batches) {
  if (method == "gptq") return gptq_start(model, plan, batches);
  if (method == "awq") return awq_start(model, plan, batches);
  check(method == "imatrix", "no calibrated method '", method, "'");
  return imatrix_start(model, plan, batches);
}

QuantizeStats quantize_calibrated(const GgufFile& source, const Plan& plan,
                                  const std::string& method, const CalibrationText& text,
                                  const std::string& out_path) {
  const std::vector<Batch> batches =
      calibration_batches(text.data, text.tokens, text.seed, calibration_batch_tokens(method));
  const auto start = std::chrono::steady_clock::now();
  with_frame(source.path(), [&] { check_encodable(plan); });
  QuantizeStats stats = method == "blockwise"
                            ? quantize_blockwise(source, plan, batches, out_path)
                            : quantize_from_start(source, plan, method, batches, out_path);
  stats.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return stats;
}

}  // namespace nibble
