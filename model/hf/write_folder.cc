#include "model/hf/write_folder.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "model/hf/checkpoint.h"
#include "model/hf/config.h"
#include "model/hf/conversion_plan.h"
#include "model/hf/json_fields.h"
#include "model/hf/vision_tower.h"
#include "model/hf/wanted_tensors.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// As in convert.cc.
constexpr int64_t kPieceWeights = int64_t{1} << 16;

/// One tensor of the folder, and what of the file it is made of; or one that is carried through
/// from the other folder.
struct Job {
  std::string name;  // Hugging Face's
  std::span<const WantedTensors::Place> places;
  std::vector<const GgufTensor*> tensors{};  // of the places' targets
  const HfCheckpoint::Tensor* carried = nullptr;

  const std::vector<int64_t>& shape() const { return places.front().shape; }
  int64_t num_weights() const {
    return std::accumulate(shape().begin(), shape().end(), int64_t{1}, std::multiplies<>());
  }
};

/// A row of the folder's tensor: which of the file's it is.
struct Row {
  size_t place = 0;
  int64_t row = 0;
};

const char* dtype_name(GgmlType type) {
  return type == GgmlType::kF32 ? "F32" : type == GgmlType::kF16 ? "F16" : "BF16";
}
const char* torch_name(GgmlType type) {
  return type == GgmlType::kF32 ? "float32" : type == GgmlType::kF16 ? "float16" : "bfloat16";
}

/// Whether both say the same under a key, numbers whatever their width.
bool is_same(const GgufMetadata& file, const GgufMetadata& wanted, const std::string& key) {
  const GgufValue& value = *wanted.find(key);
  const bool is_number = !std::holds_alternative<std::string>(value) &&
                         !std::holds_alternative<GgufArray>(value) &&
                         !std::holds_alternative<bool>(value);
  return is_number ? file.get_float(key) == wanted.get_float(key) : *file.find(key) == value;
}

/// With --mtp convert.cc makes files of one such layer.
int64_t mtp_layers_of(const GgufFile& file, const LlamaArchitecture& architecture) {
  const std::string key = concat(architecture.name, ".nextn_predict_layers");
  const int64_t found = file.metadata().get_int_or(key, 0);
  check(found == 0 || found == 1, file.path(), ": key '", key, "' is ", found,
        "; a folder has one such layer");
  return found;
}

/// That both say the same of the model, as far as the file says it.
void check_same_model(const GgufMetadata& file, const HfConfig& config) {
  const std::string architecture = file.get_string("general.architecture");
  check(architecture == config.architecture->name, "is a ", architecture, ", config.json a ",
        config.family);
  const GgufMetadata wanted = hf_model_metadata(config, 0);
  for (const auto& [key, value] : wanted.pairs())
    check(!file.contains(key) || key == "general.file_type" || is_same(file, wanted, key), "key '",
          key, "' is another than config.json says");
}

bool is_of_rope(const GgufTensor& tensor) {
  return tensor.name == kRopeDivisors || tensor.name == kRopeDivisorsLong ||
         tensor.name == kRopeDivisorsShort;
}

void check_rope_tensors(const GgufFile& file, const HfConfig& config) {
  int64_t found = 0;
  for (const RopeTensor& wanted : hf_rope_tensors(config.rope)) {
    const GgufTensor* tensor = file.find_tensor(wanted.name);
    std::vector<float> divisors(tensor ? static_cast<size_t>(tensor->num_weights()) : 0);
    if (tensor) decode_tensor(tensor->type, tensor->data, divisors);
    check(divisors == wanted.divisors, "tensor '", wanted.name,
          "' is not what config.json's rope scaling gives");
    ++found;
  }
  const auto& tensors = file.tensors();
  check(std::count_if(tensors.begin(), tensors.end(), is_of_rope) == found,
        "has divisors of rotary positions that config.json does not have");
}

/// Trailing sizes of 1 say nothing.
bool same_shape(std::vector<int64_t> a, std::vector<int64_t> b) {
  for (std::vector<int64_t>* shape : {&a, &b})
    while (shape->size() > 1 && shape->back() == 1) shape->pop_back();
  return a == b;
}

void check_tensors(const GgufFile& file, const HfConfig& config, const WantedTensors& wanted) {
  std::unordered_map<std::string, const WantedTensors::Target*> targets;  // by GGUF's name
  for (const WantedTensors::Target& target : wanted.targets()) {
    targets[target.name] = &target;
    check(!target.required || file.find_tensor(target.name), "tensor '", target.name,
          "' is missing");
  }
  for (const GgufTensor& tensor : file.tensors()) {
    if (is_of_rope(tensor)) continue;
    with_frame(concat("tensor '", tensor.name, "'"), [&] {
      const auto found = targets.find(tensor.name);
      check(found != targets.end(), "a ", config.family, " of this config.json has no such tensor");
      check(tensor.name != kOutput || !config.tied,
            "config.json says that the output is tied to the embeddings");
      check(same_shape(tensor.shape, found->second->shape()),
            "has another shape than config.json wants");
    });
  }
}

/// config.json will not say how a tensor is packed, so it must be weights.
void check_carried(const HfCheckpoint::Tensor& tensor) {
  const std::string& dtype = tensor.entry->dtype;
  check(dtype == "F32" || dtype == "F16" || dtype == "BF16", frame_of(tensor), ": is ", dtype,
        ", wanted F32, F16 or BF16: the tower that sees is packed; take a folder where it is not");
}

/// `parts`: the checkpoint of a model of several parts, nullptr where the language model is all.
std::vector<Job> plan_jobs(const GgufFile& file, const WantedTensors& wanted,
                           const HfCheckpoint* parts) {
  std::vector<Job> jobs;
  const auto is_inner = [](const HfCheckpoint::Tensor& tensor) {
    return tensor.entry->name.starts_with("model.");
  };
  const bool inner =
      parts && std::any_of(parts->tensors().begin(), parts->tensors().end(), is_inner);
  for (const std::string& name : wanted.names()) {
    Job job{parts ? outer_tensor_name(name, inner) : name, wanted.find(name)};
    for (const WantedTensors::Place& place : job.places)
      job.tensors.push_back(file.find_tensor(wanted.targets()[place.target].name));
    if (job.tensors.front()) jobs.push_back(std::move(job));
  }
  if (!parts) return jobs;
  for (const HfCheckpoint::Tensor& tensor : parts->tensors()) {
    if (!is_of_vision_tower(tensor.entry->name)) continue;
    check_carried(tensor);
    jobs.push_back({tensor.entry->name, {}, {}, &tensor});
  }
  return jobs;
}

/// Where each row of the tensor lies in the file.
std::vector<Row> rows_of(const Job& job, const WantedTensors& wanted) {
  const int64_t length = wanted.targets()[job.places.front().target].row_length;
  std::vector<Row> rows(static_cast<size_t>(job.num_weights() / length));
  for (size_t i = 0; i < job.places.size(); ++i) {
    const WantedTensors::Place& place = job.places[i];
    const WantedTensors::Target& target = wanted.targets()[place.target];
    for (int64_t matrix = 0; matrix < place.num_matrices; ++matrix)
      for (int64_t row = 0; row < target.rows; ++row) {
        const int64_t there = place.first_row + matrix * place.stride + target.source_row(row);
        rows[static_cast<size_t>(there)] = {i, (place.first_expert + matrix) * target.rows + row};
      }
  }
  return rows;
}

SafetensorsEntry entry_of(const Job& job, GgmlType dtype) {
  if (job.carried) return *job.carried->entry;
  return {job.name, dtype_name(dtype), job.shape(), {}};
}

int64_t bytes_of(const Job& job, GgmlType dtype) {
  if (job.carried) return std::ssize(job.carried->entry->data);
  return job.num_weights() * ggml_type_info(dtype).block_bytes;
}

/// What convert.cc changed and put in another order, as it was.
void change_back(const WantedTensors::Target& wanted, std::span<float> row) {
  if (wanted.columns_order.is_another()) {
    const std::vector<float> before(row.begin(), row.end());
    const HfOrder order = wanted.columns_order.inverse();
    for (size_t i = 0; i < row.size(); ++i)
      row[i] = before[static_cast<size_t>(order.source(static_cast<int64_t>(i)))];
  }
  if (wanted.change != HfChange::kNone)
    for (float& weight : row)
      weight = wanted.change == HfChange::kAddOne ? weight - 1.0f : std::log(-weight);
}

/// [rows, length] as [length, rows].
std::vector<float> transposed(const std::vector<float>& matrix, size_t length) {
  const size_t rows = matrix.size() / length;
  std::vector<float> result(matrix.size());
  for (size_t column = 0; column < length; ++column)
    for (size_t row = 0; row < rows; ++row)
      result[column * rows + row] = matrix[row * length + column];
  return result;
}

/// The tensor's data as Hugging Face has it, piece by piece; what is transposed, expert by expert.
void produce(const GgufFile& file, const Job& job, const WantedTensors& wanted, GgmlType dtype,
             const SafetensorsSink& sink) {
  if (job.carried) {
    sink(job.carried->entry->data);
    return job.carried->file->release(*job.carried->entry);
  }
  const WantedTensors::Target& target = wanted.targets()[job.places.front().target];
  const int64_t length = target.row_length;
  const auto most = static_cast<size_t>(
      target.is_transposed ? target.source_rows() : std::max<int64_t>(1, kPieceWeights / length));
  const std::vector<Row> rows = rows_of(job, wanted);
  std::vector<float> weights;
  for (size_t first = 0; first < rows.size(); first += most) {
    const size_t count = std::min(most, rows.size() - first);
    weights.resize(count * static_cast<size_t>(length));
    for (size_t i = 0; i < count; ++i) {
      const auto& [place, row] = rows[first + i];
      const GgufTensor& tensor = *job.tensors[place];
      const auto stride = static_cast<size_t>(row_bytes(tensor.type, length));
      const auto of_row =
          std::span(weights).subspan(i * static_cast<size_t>(length), static_cast<size_t>(length));
      decode_tensor(tensor.type, tensor.data.subspan(static_cast<size_t>(row) * stride, stride),
                    of_row);
      change_back(wanted.targets()[job.places[place].target], of_row);
    }
    if (target.is_transposed) weights = transposed(weights, static_cast<size_t>(length));
    const int64_t written = target.is_transposed ? target.source_rows() : length;
    sink(encode_tensor(dtype, weights, written, {}, EncodeMethod::kRtn,
                       static_cast<int64_t>(first)));
  }
  for (const GgufTensor* tensor : job.tensors) file.release(*tensor);
}

/// Jobs of each file, in order.
std::vector<std::vector<const Job*>> shards_of(const std::vector<Job>& jobs,
                                               const HfWriting& writing) {
  std::vector<std::vector<const Job*>> shards;
  int64_t bytes = 0;
  for (const Job& job : jobs) {
    const int64_t more = bytes_of(job, writing.dtype);
    if (shards.empty() || bytes + more > writing.max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(&job);
    bytes += more;
  }
  return shards;
}

std::string shard_name(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

HfWritten write_weights(const GgufFile& file, const std::string& folder,
                        const std::vector<Job>& jobs, const WantedTensors& wanted,
                        const HfWriting& writing) {
  const auto shards = shards_of(jobs, writing);
  HfWritten written{0, static_cast<int64_t>(shards.size()), 0};
  OrderedJson weight_map = OrderedJson::object();
  Progress bar("Writing", static_cast<int64_t>(jobs.size()), "tensors");
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    std::vector<SafetensorsEntry> entries;
    std::unordered_map<std::string, const Job*> by_name;
    for (const Job* job : shards[i]) {
      entries.push_back(entry_of(*job, writing.dtype));
      by_name[job->name] = job;
      weight_map[job->name] = name;
      written.bytes += bytes_of(*job, writing.dtype);
    }
    // transformers refuses a file that does not say of what it is.
    write_safetensors(folder + '/' + name, entries, {{"format", "pt"}},
                      [&](const SafetensorsEntry& entry, const SafetensorsSink& sink) {
                        produce(file, *by_name.at(entry.name), wanted, writing.dtype, sink);
                        bar.update(++written.num_tensors);
                      });
  }
  bar.finish();
  if (shards.size() == 1) return written;
  const OrderedJson index = {{"metadata", {{"total_size", written.bytes}}},
                             {"weight_map", weight_map}};
  write_file(folder + "/model.safetensors.index.json", index.dump(2) + '\n');
  return written;
}

/// Everything but weights and what speaks of how they were packed.
bool is_copied(const std::string& name) {
  static const std::set<std::string> kWeights = {
      ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".npz", ".msgpack", ".onnx"};
  return !kWeights.contains(fs::path(name).extension().string()) &&
         !name.ends_with(".safetensors.index.json") && !name.ends_with(".bin.index.json") &&
         name != "config.json" && name != "quantize_config.json";
}

void copy_side_files(const std::string& from, const std::string& to) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(from, error)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || !is_copied(name)) continue;
    fs::copy_file(entry.path(), to + '/' + name, error);
    check(!error, entry.path().string(), ": cannot copy: ", error.message());
  }
  check(!error, from, ": cannot list: ", error.message());
}

void write_config(OrderedJson config, const std::string& folder, GgmlType dtype) {
  config.erase("quantization_config");
  config.erase("torch_dtype");
  config["dtype"] = torch_name(dtype);
  if (config.contains("text_config")) {
    config["text_config"].erase("torch_dtype");
    config["text_config"]["dtype"] = torch_name(dtype);
  }
  write_file(folder + "/config.json", config.dump(2) + '\n');
}

}  // namespace

HfWritten write_hf_folder(const GgufFile& file, const std::string& out, const HfWriting& writing) {
  const std::string config_path = writing.like + "/config.json";
  const auto json = read_json_file(config_path);
  check(json.has_value(), writing.like, ": has no config.json: no folder of a Hugging Face model");
  HfConfig config = with_frame(config_path, [&] { return read_hf_config(*json); });
  if (config.architecture->delta_bit != 0)
    config.mtp_layers = mtp_layers_of(file, *config.architecture);
  std::optional<HfCheckpoint> parts;
  if (json->contains("text_config")) parts = HfCheckpoint::open(writing.like);
  const WantedTensors wanted(config);
  const std::vector<Job> jobs = with_frame(file.path(), [&] {
    check_same_model(file.metadata(), config);
    check_rope_tensors(file, config);
    check_tensors(file, config, wanted);
    return plan_jobs(file, wanted, parts ? &*parts : nullptr);
  });
  std::error_code error;
  check(!fs::exists(out, error) || fs::is_empty(out, error), out, ": is there already");
  const std::string aside = concat(out, ".tmp.", ::getpid());
  create_folders(aside);
  try {
    copy_side_files(writing.like, aside);
    write_config(*json, aside, writing.dtype);
    const HfWritten written = write_weights(file, aside, jobs, wanted, writing);
    fs::remove(out, error);
    fs::rename(aside, out);
    return written;
  } catch (...) {
    fs::remove_all(aside, error);
    throw;
  }
}

}  // namespace nibble
