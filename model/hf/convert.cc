#include "model/hf/convert.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "base/progress.h"
#include "base/threads.h"
#include "io/gguf.h"
#include "model/hf/config.h"
#include "model/hf/conversion_plan.h"
#include "model/hf/json_fields.h"
#include "model/hf/model_name.h"
#include "model/hf/sampling.h"
#include "model/hf/source_type.h"
#include "model/hf/tokenizer.h"
#include "quant/format/registry.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// As in quant/mix/quantize_file.cc: 256 kB as float32, which stay in a core's second-level cache.
constexpr int64_t kPieceWeights = int64_t{1} << 16;

/// The block type that most weights are in, for a file that has any.
std::optional<GgmlType> main_block_type(const std::vector<HfJob>& jobs) {
  std::map<GgmlType, int64_t> weights;
  for (const HfJob& job : jobs)
    if (ggml_type_info(job.type).block_size > 1) weights[job.type] += job.num_weights();
  if (weights.empty()) return std::nullopt;
  return std::max_element(weights.begin(), weights.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

/// Rows [first, first + count) of what a part becomes, as stored: in the map, or in
/// `gathered`.
std::span<const std::byte> source_rows(const HfJob& job, const HfPart& part, int64_t first,
                                       int64_t count, std::vector<std::byte>& gathered) {
  const auto stride =
      static_cast<size_t>(hf_weight_bytes(*part.tensor->entry, job.wanted.row_length));
  const std::span<const std::byte> data =
      part.tensor->entry->data.subspan(static_cast<size_t>(part.first_row) * stride);
  if (job.wanted.keeps_rows())
    return data.subspan(static_cast<size_t>(first) * stride, static_cast<size_t>(count) * stride);
  gathered.resize(static_cast<size_t>(count) * stride);
  if (job.wanted.is_transposed) {
    const auto bytes = static_cast<size_t>(hf_weight_bytes(*part.tensor->entry, 1));
    const auto columns = static_cast<size_t>(job.wanted.source_rows());
    for (size_t i = 0; i * bytes < stride; ++i)
      for (int64_t row = 0; row < count; ++row)
        std::memcpy(
            gathered.data() + static_cast<size_t>(row) * stride + i * bytes,
            data.data() +
                (i * columns + static_cast<size_t>(job.wanted.source_row(first + row))) * bytes,
            bytes);
    return gathered;
  }
  for (int64_t row = 0; row < count; ++row)
    std::memcpy(gathered.data() + static_cast<size_t>(row) * stride,
                data.data() + static_cast<size_t>(job.wanted.source_row(first + row)) * stride,
                stride);
  return gathered;
}

/// What is done to whole rows of the result, from `first` on, once they are decoded.
class Changes {
 public:
  Changes(const HfJob& job, const HfPart& part, const HfAdapter* adapter)
      : wanted_(job.wanted), type_(hf_type(part)) {
    if (part.updated)
      update_ = adapter->update(*part.updated, wanted_.source_rows(), wanted_.row_length);
  }

  void apply(int64_t first, std::span<float> weights) const {
    const auto length = static_cast<size_t>(wanted_.row_length);
    for (size_t i = 0; update_ && i * length < weights.size(); ++i)
      update_->add_to(wanted_.source_row(first + static_cast<int64_t>(i)),
                      weights.subspan(i * length, length));
    if (wanted_.change != HfChange::kNone)
      for (float& weight : weights) weight = changed(weight);
    for (size_t i = 0; wanted_.columns_order.is_another() && i < weights.size(); i += length)
      order_columns(std::as_writable_bytes(weights.subspan(i, length)), wanted_.columns_order,
                    sizeof(float));
  }

  /// Elements of so many bytes in another order.
  static void order_columns(std::span<std::byte> row, const HfOrder& order, size_t bytes) {
    if (!order.is_another()) return;
    const std::vector<std::byte> before(row.begin(), row.end());
    for (size_t i = 0; i * bytes < row.size(); ++i)
      std::memcpy(
          row.data() + i * bytes,
          before.data() + static_cast<size_t>(order.source(static_cast<int64_t>(i))) * bytes,
          bytes);
  }

 private:
  static GgmlType hf_type(const HfPart& part) {
    return part.packed ? GgmlType::kF32 : hf_source_type(*part.tensor->entry);
  }
  /// In the stored type where that is float16, as llama.cpp's converter computes.
  float changed(float weight) const {
    weight = wanted_.change == HfChange::kAddOne ? weight + 1.0f : -std::exp(weight);
    return type_ == GgmlType::kF16 ? float16_to_float(float_to_float16(weight)) : weight;
  }

  const WantedTensors::Target& wanted_;
  GgmlType type_;
  std::optional<LowRankUpdate> update_;
};

/// `before`: rows of the tensor that are written already.
void write_plain(const HfJob& job, const HfPart& part, const Changes& changes, int64_t before,
                 GgufWriter& writer) {
  const int64_t length = job.wanted.row_length;
  const int64_t most = std::max<int64_t>(1, kPieceWeights / length);
  const int64_t stride = row_bytes(job.type, length);
  const std::string frame = frame_of(*part.tensor);
  parallel_for(job.wanted.rows, most, [&](int64_t begin, int64_t end) {
    std::vector<std::byte> gathered;
    std::vector<float> weights;
    for (int64_t first = begin; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      const auto rows = source_rows(job, part, first, count, gathered);
      // Decoded even where the type stays: a NaN is noticed here, not by who uses the file.
      weights.resize(static_cast<size_t>(count * length));
      with_frame(frame, [&] {
        hf_decode(*part.tensor->entry, rows, weights);
        changes.apply(first, weights);
        writer.put((before + first) * stride,
                   encode_tensor(job.type, weights, length, {}, EncodeMethod::kRtn, first));
      });
    }
  });
}

/// One row of a packed matrix as blocks, and how far they are from the weights that it stands for.
HfRounding pack_row(const PackedMatrix& packed, GgmlType type, int64_t row,
                    std::span<const float> weights, std::span<std::byte> blocks) {
  packed.write_blocks(type, row, blocks);
  std::vector<float> decoded(weights.size());
  decode_tensor(type, blocks, decoded);
  HfRounding rounding;
  const auto block = static_cast<size_t>(ggml_type_info(type).block_size);
  for (size_t begin = 0; begin < weights.size(); begin += block) {
    double error = 0;
    for (size_t i = begin; i < begin + block; ++i)
      error = std::max(error, std::abs(static_cast<double>(decoded[i]) - weights[i]));
    if (error == 0) continue;
    const double step = std::abs(packed.scale(row, static_cast<int64_t>(begin)));
    rounding.add({error, error / step});
  }
  return rounding;
}

HfRounding write_packed(const HfJob& job, const HfPart& part, const Changes& changes,
                        int64_t before, GgufWriter& writer) {
  const auto& [wanted, type, parts, position] = job;
  const int64_t length = wanted.row_length;
  const int64_t most = std::max<int64_t>(1, kPieceWeights / length);
  const int64_t stride = row_bytes(type, length);
  const GgmlTypeInfo& info = ggml_type_info(type);
  const HfOrder& columns = wanted.columns_order;
  const HfOrder of_blocks = {columns.first / info.block_size, columns.outer, columns.inner,
                             columns.size / info.block_size};
  HfRounding rounding;
  std::mutex mutex;
  const auto write_rows = [&](int64_t first, int64_t count) {
    std::vector<float> weights(static_cast<size_t>(count * length));
    std::vector<std::byte> bytes(static_cast<size_t>(count * stride));
    const auto source = [&](int64_t row) { return wanted.source_row(first + row); };
    const auto row_of = [&](int64_t row) {
      return std::span(weights).subspan(static_cast<size_t>(row * length),
                                        static_cast<size_t>(length));
    };
    for (int64_t row = 0; row < count; ++row) part.packed->decode(source(row), row_of(row));
    check_finite(weights, length, first);
    if (info.block_size == 1) {
      changes.apply(first, weights);
      bytes = encode_tensor(type, weights, length, {}, EncodeMethod::kRtn, first);
    }
    for (int64_t row = 0; info.block_size > 1 && row < count; ++row) {
      const auto blocks =
          std::span(bytes).subspan(static_cast<size_t>(row * stride), static_cast<size_t>(stride));
      const HfRounding of_row = pack_row(*part.packed, type, source(row), row_of(row), blocks);
      Changes::order_columns(blocks, of_blocks, static_cast<size_t>(info.block_bytes));
      const std::lock_guard lock(mutex);
      rounding.add(of_row);
    }
    writer.put((before + first) * stride, bytes);
  };
  parallel_for(wanted.rows, most, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += most)
      with_frame(frame_of(*part.tensor), [&] { write_rows(first, std::min(most, end - first)); });
  });
  return rounding;
}

HfRounding write_job(const HfJob& job, const HfAdapter* adapter, GgufWriter& writer) {
  HfRounding rounding;
  writer.begin_pieces();
  for (size_t i = 0; i < job.parts.size(); ++i) {
    const HfPart& part = job.parts[i];
    const Changes changes(job, part, adapter);
    const int64_t before = static_cast<int64_t>(i) * job.wanted.rows;
    if (part.packed)
      rounding.add(write_packed(job, part, changes, before, writer));
    else
      write_plain(job, part, changes, before, writer);
    const bool goes_on = i + 1 < job.parts.size() && job.parts[i + 1].tensor == part.tensor;
    if (goes_on) continue;
    if (part.packed)
      part.packed->release();
    else
      part.tensor->file->release(*part.tensor->entry);
  }
  writer.end_pieces();
  return rounding;
}

/// "8x7B" of a mixture of experts: what a model of one of them would be.
std::string size_label_of(const std::vector<HfJob>& jobs, int64_t num_weights) {
  int64_t experts = 0, with_one = num_weights;
  for (const HfJob& job : jobs) {
    if (job.parts.size() == 1) continue;
    experts = std::ssize(job.parts);
    with_one -= job.num_weights() - job.num_weights() / experts;
  }
  return experts > 0 ? concat(experts, 'x', size_label(with_one)) : size_label(num_weights);
}

GgufMetadata make_metadata(const std::string& folder, const Json& json, const HfConfig& config,
                           const HfConversion& options, const HfConverted& result,
                           const std::string& label) {
  GgufMetadata metadata;
  const auto append = [&](const GgufMetadata& more) {
    for (const auto& [key, value] : more.pairs()) metadata.set(key, value);
  };
  metadata.set("general.architecture", std::string(config.architecture->name));
  const GgufMetadata of_model =
      hf_model_metadata(config, static_cast<uint32_t>(require_format(result.matrix_type).ftype));
  // llama.cpp's converter knows it with the tensors, before all other keys.
  const std::string first = concat(config.architecture->name, ".rope.scaling.attn_factor");
  if (const GgufValue* value = of_model.find(first)) metadata.set(first, *value);
  metadata.set("general.type", std::string("model"));
  append(sampling_metadata(folder));
  append(model_name_metadata(text_field(json, "_name_or_path").value_or(""), hf_folder_name(folder),
                             result.num_weights, label));
  append(of_model);
  metadata.set("general.quantization_version", kQuantizationVersion);
  // Ids of special tokens that only the text's part has.
  Json with_text = json.value("text_config", Json::object());
  with_text.update(json);
  append(hf_tokenizer_metadata(folder, config, with_text, options.pre));
  return metadata;
}

}  // namespace

bool is_hf_folder(const std::string& path) {
  std::error_code ignored;
  return !path.empty() && std::filesystem::exists(path + "/config.json", ignored);
}

std::string hf_folder_name(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::absolute(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

HfConverted convert_hf(const std::string& folder, const std::string& out,
                       const HfConversion& options) {
  const auto start = std::chrono::steady_clock::now();
  const std::string config_path = folder + "/config.json";
  const auto json = read_json_file(config_path);
  check(json.has_value(), folder, ": has no config.json: no folder of a Hugging Face model");
  HfConfig config = with_frame(config_path, [&] { return read_hf_config(*json); });
  HfSource source{folder,
                  HfCheckpoint::open(folder),
                  read_hf_quantization(folder, *json),
                  {},
                  options.has_tower};
  if (options.has_mtp) config.mtp_layers = source.count_mtp_layers(config);
  if (!options.adapter.empty()) source.adapter = HfAdapter::open(options.adapter);
  HfConverted result;
  result.family = config.family;
  result.matrix_type = options.matrix_type ? *options.matrix_type : source.stored_type();
  const std::vector<HfJob> jobs =
      plan_hf_jobs(source, config, options.matrix_type, result.matrix_type);
  result.matrix_type = main_block_type(jobs).value_or(result.matrix_type);
  const std::vector<RopeTensor> rope_tensors = hf_rope_tensors(config.rope);

  std::vector<GgufWriter::Tensor> table;
  for (const RopeTensor& tensor : rope_tensors) {
    const auto count = static_cast<int64_t>(tensor.divisors.size());
    table.push_back({tensor.name, {count}, GgmlType::kF32});
    result.num_weights += count;
    result.bytes += count * static_cast<int64_t>(sizeof(float));
  }
  for (const HfJob& job : jobs) {
    table.push_back({job.wanted.name, job.wanted.shape(), job.type});
    result.num_weights += job.num_weights();
    result.bytes += job.num_rows() * row_bytes(job.type, job.wanted.row_length);
    for (const HfPart& part : job.parts) {
      result.num_packed += part.packed ? 1 : 0;
      result.num_merged += part.updated ? 1 : 0;
    }
  }
  result.num_tensors = static_cast<int64_t>(table.size());

  GgufWriter writer(out,
                    make_metadata(folder, *json, config, options, result,
                                  size_label_of(jobs, result.num_weights)),
                    table, options.max_part_bytes);
  result.paths = writer.paths();
  for (const RopeTensor& tensor : rope_tensors)
    writer.write(std::as_bytes(std::span(tensor.divisors)));
  Progress bar("Converting", static_cast<int64_t>(jobs.size()), "tensors");
  int64_t done = 0;
  for (const HfJob& job : jobs) {
    result.rounding.add(write_job(job, source.adapter ? &*source.adapter : nullptr, writer));
    bar.update(++done);
  }
  bar.finish();
  writer.finish();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace nibble
