#include "training/diagnosis.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/threads.h"
#include "io/atomic_file.h"
#include "model/model.h"
#include "quant/fake/torch_device.h"
#include "quant/format/block.h"
#include "quant/format/rows.h"
#include "training/checkpoint.h"
#include "training/data.h"
#include "training/memory.h"
#include "training/model_file.h"

namespace nibble {
namespace {

/// Weights that a thread takes at a time, in whole rows: a fixed size, so that sums do not depend
/// on the number of threads.
constexpr int64_t kPieceWeights = 1 << 16;
/// Positions whose outputs exist at once: of a vocabulary's matrix they are megabytes each.
constexpr int64_t kOutputPositions = 128;

/// One tensor in its three states.
struct States {
  const GgufTensor& source;
  const Format& format;
  std::span<const std::byte> start, shipped;  // blocks
};

struct Sums {
  int64_t moved = 0, floored_start = 0, floored = 0;
  double steps = 0, signal = 0, noise_start = 0, noise = 0;

  void operator+=(const Sums& other) {
    moved += other.moved;
    floored_start += other.floored_start;
    floored += other.floored;
    steps += other.steps;
    signal += other.signal;
    noise_start += other.noise_start;
    noise += other.noise;
  }
};

/// One row of blocks, taken apart.
struct Row {
  const Format& format;
  int64_t num_blocks;
  std::vector<float> values, steps, scales;
  std::vector<int8_t> codes;

  Row(const Format& f, int64_t length)
      : format(f),
        num_blocks(length / f.block_size),
        values(static_cast<size_t>(length)),
        steps(static_cast<size_t>(length / f.group_size)),
        scales(static_cast<size_t>(num_blocks * f.num_scales)),
        codes(static_cast<size_t>(length)) {}

  void read(std::span<const std::byte> tensor, int64_t row) {
    const std::byte* blocks = tensor.data() + row * num_blocks * format.block_bytes;
    format.decode(blocks, values.data(), num_blocks);
    format.steps_of(blocks, steps.data(), num_blocks);
    format.scales_of(blocks, scales.data(), num_blocks);
    format.codes_of(blocks, codes.data(), num_blocks);
  }
  /// d, where it is a float16 and not bytes, is the first of a block's scales.
  bool has_least_step(int64_t block) const {
    return !format.has_byte_scales && std::fabs(scales[block * format.num_scales]) <= kMinStep;
  }
  int64_t num_floored() const {
    const int64_t per_block = format.block_size / format.group_size;
    int64_t count = 0;
    for (size_t i = 0; i < steps.size(); ++i)
      count += steps[i] == 0.0f || has_least_step(static_cast<int64_t>(i) / per_block);
    return count;
  }
};

Sums sums_of_rows(const States& tensor, int64_t begin, int64_t end) {
  const int64_t length = tensor.source.row_length();
  const int64_t source_bytes = row_bytes(tensor.source.type, length);
  std::vector<float> original(static_cast<size_t>(length));
  Row start(tensor.format, length), shipped(tensor.format, length);
  const Format& decoder = require_decoder(tensor.source.type);
  Sums sums;
  for (int64_t row = begin; row < end; ++row) {
    decoder.decode(tensor.source.data.data() + row * source_bytes, original.data(),
                   length / decoder.block_size);
    start.read(tensor.start, row);
    shipped.read(tensor.shipped, row);
    for (size_t i = 0; i < original.size(); ++i) {
      const double w = original[i], before = start.values[i] - w, after = shipped.values[i] - w;
      sums.signal += w * w;
      sums.noise_start += before * before;
      sums.noise += after * after;
      sums.moved += shipped.codes[i] != start.codes[i];
    }
    for (const float step : start.steps) sums.steps += std::fabs(step);
    sums.floored_start += start.num_floored();
    sums.floored += shipped.num_floored();
  }
  return sums;
}

Sums sums_of(const States& tensor) {
  const int64_t rows = tensor.source.num_rows();
  const int64_t piece = std::max<int64_t>(1, kPieceWeights / tensor.source.row_length());
  std::vector<Sums> parts(static_cast<size_t>((rows + piece - 1) / piece));
  parallel_for(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      parts[i] = sums_of_rows(tensor, i * piece, std::min(rows, (i + 1) * piece));
  });
  Sums sums;
  for (const Sums& part : parts) sums += part;
  return sums;
}

/// F32, F16 and BF16 have none, nor does what is only decoded.
bool has_codes(GgmlType type) {
  const Format* format = find_format(type);
  return format && format->codes_of != nullptr;
}

double ratio(double part, double whole) { return part == 0 ? 0.0 : part / whole; }

/// Straight-through lets a gradient of 1 pass wherever the rounding did not clamp.
int64_t count_clamped(FakeQuantizer quantizer) {
  const torch::Tensor passed = quantizer.backward(torch::ones_like(quantizer.weights())).weights;
  return passed.eq(0).sum().item<int64_t>();
}

/// The source's weights on the scales that training began with.
int64_t count_clamped_at_start(const GgufTensor& source, const TrainedTensor& trained) {
  torch::Tensor weights = torch::empty(trained.weights.sizes());
  decode_tensor(source.type, source.data,
                {weights.mutable_data_ptr<float>(), static_cast<size_t>(weights.numel())});
  const torch::Tensor ratios =
      trained.scale_ratios.defined() ? torch::ones_like(trained.scale_ratios) : torch::Tensor();
  return count_clamped(FakeQuantizer(trained.name, require_format(trained.type), trained.mode,
                                     weights, ratios, trained.initial_scales));
}

TensorDiagnosis diagnose_tensor(const GgufTensor& source, const GgufTensor& start,
                                const TrainedTensor& trained) {
  const Format& format = require_format(trained.type);
  const FakeQuantizer quantizer = restore_quantizer(trained);
  const std::vector<std::byte> blocks = quantizer.blocks();
  const Sums sums = sums_of({source, format, start.data, blocks});
  TensorDiagnosis found;
  found.tensor = trained.name;
  found.type = format.name;
  found.weights = source.num_weights();
  found.moved = sums.moved;
  if (!trained.blocks.defined()) {  // stored codes are what they are, whatever the range
    found.clamped_start = count_clamped_at_start(source, trained);
    found.clamped = count_clamped(quantizer);
  }
  found.groups = found.weights / format.group_size;
  found.floored_start = sums.floored_start;
  found.floored = sums.floored;
  found.mean_step = ratio(sums.steps, static_cast<double>(found.groups));
  found.weight_error_start = ratio(sums.noise_start, sums.signal);
  found.weight_error = ratio(sums.noise, sums.signal);
  return found;
}

/// Whether a start.gguf is of the run that the checkpoint is of, by its tensors' types.
bool belongs_to(const GgufFile& start, const Checkpoint& checkpoint) {
  for (const TrainedTensor& trained : checkpoint.tensors) {
    const GgufTensor* tensor = start.find_tensor(trained.name);
    if (!tensor || tensor->type != trained.type) return false;
    const bool fits = trained.blocks.defined() ? std::ssize(tensor->data) == trained.blocks.numel()
                                               : tensor->num_weights() == trained.weights.numel();
    if (!fits) return false;
  }
  return true;
}

// Outputs ----------------------------------------------------------------------------------------

/// ||x M^T||^2, x [N, in], M [out, in].
double squared_output(const torch::Tensor& x, const torch::Tensor& matrix) {
  double sum = 0;
  for (int64_t first = 0; first < x.size(0); first += kOutputPositions) {
    const int64_t count = std::min(kOutputPositions, x.size(0) - first);
    const torch::Tensor outputs = at::matmul(x.narrow(0, first, count), matrix.t());
    sum += outputs.square().sum(torch::kFloat64).item<double>();
  }
  return sum;
}

/// Sequences spread over all that is held out, as many as there are to be. Undefined where nothing
/// is.
Batch held_out_batch(const GgufFile& source, const TrainOptions& options) {
  if (options.data.held_out == 0) return {};
  const TextData data = TextData::load(options.data, source.metadata(), options.seed);
  const int64_t there = data.held_out.num_sequences();
  const int64_t wanted =
      std::min(there, std::max<int64_t>(1, kDiagnosisTokens / options.data.sequence_length));
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < wanted; ++i) rows.push_back(i * there / wanted);
  return data.held_out.at(rows);
}

/// A weight before and after training, and what became of its outputs; of a stack, until all its
/// experts were seen.
struct Outputs {
  torch::Tensor start, shipped;
  double signal = 0, noise_start = 0, noise = 0;
};

torch::Tensor decoded(const GgufTensor& tensor, const Weight& weight) {
  torch::Tensor values = torch::empty(weight.value.sizes());
  decode_tensor(tensor.type, tensor.data,
                {values.mutable_data_ptr<float>(), static_cast<size_t>(values.numel())});
  return values;
}

torch::Tensor trained(const Checkpoint& checkpoint, const Weight& weight) {
  torch::Tensor values = torch::empty(weight.value.sizes());
  restore_quantizer(*checkpoint.find(weight.name)).materialize(values);
  return values;
}

/// Fills the output errors of all that enters a matmul of the model, the output matrix included.
void measure_outputs(Model& model, const Batch& batch, const GgufFile& start,
                     const Checkpoint& checkpoint, Diagnosis& diagnosis) {
  std::map<std::string, TensorDiagnosis*> wanted;
  for (TensorDiagnosis& tensor : diagnosis.tensors) wanted[tensor.tensor] = &tensor;
  std::map<std::string, Outputs> outputs;
  const auto measure = [&](const torch::Tensor& x, const Weight& weight, int64_t expert) {
    const auto found = wanted.find(weight.name);
    if (found == wanted.end()) return;
    Outputs& sums = outputs[weight.name];
    if (!sums.start.defined())
      sums = {decoded(start.tensor(weight.name), weight), trained(checkpoint, weight)};
    const torch::Tensor original = weight.matrix(expert);
    const auto noise = [&](const torch::Tensor& other) {
      return squared_output(x, other.to(original.device()) - original);
    };
    const bool one = expert == kNoExpert;
    sums.signal += squared_output(x, original);
    sums.noise_start += noise(one ? sums.start : sums.start.select(0, expert));
    sums.noise += noise(one ? sums.shipped : sums.shipped.select(0, expert));
    found->second->output_error_start = ratio(sums.noise_start, sums.signal);
    found->second->output_error = ratio(sums.noise, sums.signal);
    if (one || expert == weight.value.size(0) - 1) outputs.erase(weight.name);
  };
  torch::Tensor hidden;
  {
    const MatmulObservation observation(
        model,
        [&](const torch::Tensor& x, const std::vector<const Weight*>& weights, int64_t expert) {
          for (const Weight* weight : weights) measure(x, *weight, expert);
        });
    hidden = model.hidden(batch);
  }
  const Weight* output = model.find_weight("output.weight");
  measure(hidden.reshape({-1, hidden.size(-1)}),
          output ? *output : *model.find_weight("token_embd.weight"), kNoExpert);
  diagnosis.tokens = batch.tokens.numel();
}

}  // namespace

std::optional<Diagnosis> diagnose_run(const GgufFile& source, const TrainOptions& options,
                                      const std::string& run_dir, const TrainResult& result) {
  if (options.quant.type == "none") return std::nullopt;
  const torch::NoGradGuard no_grad;
  give_back_freed_memory();
  const std::string start_path = run_start_path(run_dir);
  if (!std::filesystem::exists(start_path)) {
    note(start_path, " is missing: no diagnosis");
    return std::nullopt;
  }
  const GgufFile start = GgufFile::open(start_path);
  const Checkpoint checkpoint = load_checkpoint(result.best_checkpoint);
  if (!belongs_to(start, checkpoint)) {
    note(start_path, " is of another run: no diagnosis");
    return std::nullopt;
  }
  Diagnosis diagnosis;
  diagnosis.step = checkpoint.step;
  Progress progress("diagnosis", std::ssize(checkpoint.tensors), "tensors");
  int64_t done = 0;
  for (const TrainedTensor& trained : checkpoint.tensors) {
    if (has_codes(trained.type))
      diagnosis.tensors.push_back(with_frame(concat("tensor '", trained.name, "'"), [&] {
        return diagnose_tensor(source.tensor(trained.name), start.tensor(trained.name), trained);
      }));
    progress.update(++done);
  }
  const Batch batch = held_out_batch(source, options);
  if (batch.tokens.defined())
    measure_outputs(*load_model(source, torch_device(options.device), {.on_use = true}), batch,
                    start, checkpoint, diagnosis);
  progress.finish();
  diagnosis.warnings = training_warnings(diagnosis, options, read_metrics(run_dir));
  for (const std::string& warning : diagnosis.warnings) warn(warning);
  write_file(run_dir + "/diagnosis.json", diagnosis_json(diagnosis));
  return diagnosis;
}

}  // namespace nibble
