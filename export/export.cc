#include "export/export.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/version.h"
#include "export/parity.h"
#include "export/sha256.h"
#include "quant/format/rows.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

// Blocks and the hash of what they decode to.
struct Packed {
  std::vector<std::byte> blocks;
  uint64_t hash = 0;
};

// One tensor on its way: what the plan wants, where its values come from.
struct Job {
  const GgufTensor* source;
  const TrainedTensor* trained;  // nullptr: the source's values are kept
  GgmlType target;
  std::optional<Packed> rounded = {};  // in the place of the source's values
};

// Whether it is of the last blocks, which predict further tokens and which no run trains.
bool is_of_mtp(const std::string& tensor, const GgufMetadata& metadata) {
  const std::string prefix = metadata.get_string_or("general.architecture", "") + '.';
  const int64_t layers = metadata.get_int_or(prefix + "nextn_predict_layers", 0);
  const std::optional<int64_t> block = layer_of(tensor);
  return layers > 0 && block && *block >= metadata.get_int(prefix + "block_count") - layers;
}

// "[64, 512]", without the trailing sizes of 1 that make no difference.
std::string shape_text(std::vector<int64_t> shape) {
  while (shape.size() > 1 && shape.back() == 1) shape.pop_back();
  std::string text = "[";
  for (const int64_t size : shape) text += concat(text.size() > 1 ? ", " : "", size);
  return text + "]";
}

// A torch tensor lists sizes slowest first, GGUF fastest first.
void check_shape(const TrainedTensor& tensor, const std::vector<int64_t>& shape) {
  const std::vector<int64_t> sizes =
      tensor.blocks.defined() ? restore_quantizer(tensor).sizes() : tensor.weights.sizes().vec();
  const std::string wanted = shape_text(shape);
  const std::string found = shape_text({sizes.rbegin(), sizes.rend()});
  check(found == wanted, "has the shape ", found, " in the checkpoint, ", wanted, " in the source");
}

std::vector<Job> plan_jobs(const GgufFile& source, const Plan& plan, const Checkpoint& checkpoint) {
  std::vector<Job> jobs;
  std::set<std::string> wanted;
  for (const GgufTensor& tensor : source.tensors()) {
    with_frame(concat("tensor '", tensor.name, "'"), [&] {
      const PlanEntry* entry = plan.find(tensor.name);
      check(entry != nullptr, "the source has it, the plan does not");
      check(entry->shape == tensor.shape, "the plan gives it another shape than the source has");
      const TrainedTensor* trained = checkpoint.find(tensor.name);
      if (trained != nullptr) {
        check(trained->type == entry->target, "was trained as ", type_name(trained->type),
              ", the plan wants ", type_name(entry->target));
        check_shape(*trained, tensor.shape);
      }
      jobs.push_back({&tensor, trained, entry->target});
      wanted.insert(tensor.name);
    });
  }
  for (const TrainedTensor& tensor : checkpoint.tensors)
    check(wanted.contains(tensor.name), "tensor '", tensor.name,
          "': the checkpoint has it, the source does not");
  return jobs;
}

std::vector<std::byte> copy_bytes(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

std::vector<float> decoded(const GgufTensor& tensor) {
  std::vector<float> weights(tensor.num_weights());
  decode_tensor(tensor.type, tensor.data, weights);
  return weights;
}

// As nibble quantize does it.
Packed round_untrained(const GgufTensor& source, GgmlType target) {
  Packed packed;
  packed.blocks =
      encode_tensor(target, decoded(source), source.row_length(), {}, EncodeMethod::kSearch);
  std::vector<float> weights(source.num_weights());
  decode_tensor(target, packed.blocks, weights);
  packed.hash = content_hash(weights);
  return packed;
}

// What predicts further tokens, where the plan does not keep its values.
void round_mtp(const GgufFile& source, std::vector<Job>& jobs) {
  int64_t count = 0;
  for (Job& job : jobs) {
    const bool is_kept = job.target == job.source->type || job.target == GgmlType::kF32;
    if (job.trained || is_kept || !is_of_mtp(job.source->name, source.metadata())) continue;
    job.rounded = with_frame(concat("tensor '", job.source->name, "'"),
                             [&] { return round_untrained(*job.source, job.target); });
    ++count;
  }
  if (count > 0)
    note(
        count,
        " tensors that predict further tokens are carried through, rounded: they were not trained");
}

Packed pack_trained(const TrainedTensor& tensor, int64_t row_length) {
  const torch::Tensor wanted = materialized(tensor);
  Packed packed;
  packed.blocks = tensor.type == GgmlType::kF32
                      ? copy_bytes(std::as_bytes(values_of(tensor.weights)))
                      : restore_quantizer(tensor).blocks();
  packed.hash = check_parity(tensor.type, packed.blocks, values_of(wanted), row_length);
  check(packed.hash == tensor.materialized_hash, "weights have the hash ", packed.hash,
        ", the checkpoint was evaluated with ", tensor.materialized_hash,
        ": its masters, scales or hash were changed since");
  return packed;
}

Packed pack_untrained(const GgufTensor& source, GgmlType target) {
  const std::vector<float> weights = decoded(source);
  Packed packed;
  packed.blocks = target == source.type ? copy_bytes(source.data)
                                        : encode_tensor(target, weights, source.row_length(), {},
                                                        EncodeMethod::kSearch);
  packed.hash = with_frame(
      concat("was not trained; from ", type_name(source.type), " to ", type_name(target)),
      [&] { return check_parity(target, packed.blocks, weights, source.row_length()); });
  return packed;
}

Packed pack(Job& job) {
  if (job.rounded) return std::move(*job.rounded);
  return with_frame(concat("tensor '", job.source->name, "'"), [&] {
    return job.trained != nullptr ? pack_trained(*job.trained, job.source->row_length())
                                  : pack_untrained(*job.source, job.target);
  });
}

// The header is written before the data, so the hashes come from the checkpoint (each is checked
// when its tensor is packed) and, for what was not trained, from the source.
std::vector<uint64_t> tensor_hashes(const std::vector<Job>& jobs) {
  std::vector<uint64_t> hashes;
  for (const Job& job : jobs) {
    if (job.trained != nullptr)
      hashes.push_back(job.trained->materialized_hash);
    else
      hashes.push_back(job.rounded ? job.rounded->hash : content_hash(decoded(*job.source)));
  }
  return hashes;
}

// Keys that describe the source file itself and would be wrong in another.
bool describes_the_file(const std::string& key) {
  const auto starts = [&](std::string_view prefix) { return key.rfind(prefix, 0) == 0; };
  return starts("split.") || starts("quantize.imatrix.") || starts("nibble.");
}

GgufMetadata make_metadata(const GgufFile& source, const Plan& plan, const Checkpoint& checkpoint,
                           const ExportInfo& info, std::vector<uint64_t> hashes) {
  GgufMetadata metadata;
  for (const auto& [key, value] : source.metadata().pairs())
    if (!describes_the_file(key)) metadata.set(key, value);
  metadata.set("general.file_type", static_cast<uint32_t>(plan.file_type));
  metadata.set("general.quantization_version", kQuantizationVersion);
  metadata.set("nibble.version", std::string(kProgramVersion));
  metadata.set("nibble.method", info.method);
  if (!info.config_hash.empty()) metadata.set("nibble.config_hash", info.config_hash);
  metadata.set("nibble.step", static_cast<uint64_t>(checkpoint.step));
  metadata.set("nibble.source_hash", sha256_file(source.path()));
  metadata.set("nibble.tensor_hashes", GgufArray{GgufValueType::kUint64, std::move(hashes)});
  return metadata;
}

}  // namespace

torch::Tensor materialized(const TrainedTensor& tensor) {
  if (tensor.type == GgmlType::kF32) return tensor.weights;
  FakeQuantizer quantizer = restore_quantizer(tensor);
  torch::Tensor out = torch::empty(quantizer.sizes());
  quantizer.materialize(out);
  return out;
}

TrainedWeights trained_weights(const Checkpoint& checkpoint) {
  TrainedWeights trained;
  for (const TrainedTensor& tensor : checkpoint.tensors) trained.names.push_back(tensor.name);
  trained.weights_of = [&checkpoint](const std::string& name) {
    const torch::Tensor weights = materialized(*checkpoint.find(name));
    const std::span<const float> values = values_of(weights);
    return std::vector<float>(values.begin(), values.end());
  };
  return trained;
}

std::span<const float> values_of(const torch::Tensor& tensor) {
  check(tensor.defined() && tensor.device().is_cpu() && tensor.scalar_type() == torch::kFloat32 &&
            tensor.is_contiguous(),
        "weights are not a contiguous float32 tensor on the CPU");
  return {tensor.const_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

ExportStats export_checkpoint(const GgufFile& source, const Plan& plan,
                              const Checkpoint& checkpoint, const std::string& out_path,
                              const ExportInfo& info) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<Job> jobs = plan_jobs(source, plan, checkpoint);
  round_mtp(source, jobs);
  std::vector<GgufWriter::Tensor> table;
  for (const Job& job : jobs) table.push_back({job.source->name, job.source->shape, job.target});
  GgufWriter writer(out_path, make_metadata(source, plan, checkpoint, info, tensor_hashes(jobs)),
                    table, info.max_part_bytes);
  ExportStats stats;
  stats.paths = writer.paths();
  int64_t num_weights = 0;
  Progress progress("export", static_cast<int64_t>(jobs.size()), "tensors");
  for (Job& job : jobs) {
    if (!job.rounded) stats.weights_checked += job.source->num_weights();
    const Packed packed = pack(job);
    writer.write(packed.blocks);
    stats.num_tensors += 1;
    stats.num_trained += job.trained != nullptr;
    num_weights += job.source->num_weights();
    stats.tensor_bytes += static_cast<int64_t>(packed.blocks.size());
    progress.update(stats.num_tensors);
  }
  writer.finish();
  for (const std::string& path : stats.paths)
    stats.file_bytes += static_cast<int64_t>(std::filesystem::file_size(path));
  stats.bits_per_weight = 8.0 * static_cast<double>(stats.tensor_bytes) /
                          static_cast<double>(std::max<int64_t>(1, num_weights));
  stats.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return stats;
}

ExportStats export_checkpoint(const GgufFile& source, const Plan& plan,
                              const std::string& checkpoint_path, const std::string& out_path,
                              const ExportInfo& info) {
  const Checkpoint checkpoint = load_checkpoint(checkpoint_path);
  return with_frame(checkpoint_path,
                    [&] { return export_checkpoint(source, plan, checkpoint, out_path, info); });
}

}  // namespace nibble
