#include "model/hf/vision_tower.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "io/gguf.h"
#include "model/hf/conversion_plan.h"
#include "model/hf/json_fields.h"
#include "model/hf/model_name.h"
#include "model/hf/sampling.h"
#include "model/hf/source_type.h"
#include "model/hf/vision_config.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

using Json = nlohmann::json;
using Shape = std::vector<int64_t>;  // slowest first

constexpr size_t kPieceWeights = size_t{1} << 16;

/// One tensor of the file. `index` and `count`: of parts of the checkpoint's tensor, [a, b, count,
/// c, d], that become tensors of their own.
struct TowerTensor {
  std::string hf_name, name;
  Shape shape;  // in the checkpoint
  std::optional<GgmlType> type{};
  bool adds_one = false;
  int64_t index = 0, count = 1;

  int64_t num_weights() const {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()) / count;
  }
  /// In ggml's order.
  Shape file_shape() const {
    Shape result(shape.rbegin(), shape.rend());
    if (count > 1) result.erase(result.begin() + 2);
    return result;
  }
};

class TensorList {
 public:
  explicit TensorList(std::string prefix) : prefix_(std::move(prefix)) {}

  TowerTensor& add(const std::string& hf_name, const std::string& name, Shape shape) {
    return tensors_.emplace_back(TowerTensor{prefix_ + hf_name, name, std::move(shape)});
  }
  void add_linear(const std::string& hf_name, const std::string& name, int64_t in, int64_t out) {
    add(hf_name + ".weight", name + ".weight", {out, in});
    add(hf_name + ".bias", name + ".bias", {out});
  }
  void add_norm(const std::string& hf_name, const std::string& name, int64_t width) {
    add(hf_name + ".weight", name + ".weight", {width});
    add(hf_name + ".bias", name + ".bias", {width});
  }
  void set_prefix(std::string prefix) { prefix_ = std::move(prefix); }
  std::vector<TowerTensor> take() { return std::move(tensors_); }

 private:
  std::string prefix_;
  std::vector<TowerTensor> tensors_;
};

std::vector<TowerTensor> gemma_tensors(const VisionConfig& tower) {
  const int64_t width = tower.width;
  TensorList list("vision_tower.vision_model.");
  list.add("embeddings.patch_embedding.weight", "v.patch_embd.weight",
           {width, VisionConfig::kChannels, tower.patch, tower.patch})
      .type = GgmlType::kF32;
  list.add("embeddings.patch_embedding.bias", "v.patch_embd.bias", {width});
  list.add("embeddings.position_embedding.weight", "v.position_embd.weight",
           {tower.num_positions(), width})
      .type = GgmlType::kF32;
  for (int64_t i = 0; i < tower.layers; ++i) {
    const std::string from = concat("encoder.layers.", i, '.'), to = concat("v.blk.", i, '.');
    list.add_norm(from + "layer_norm1", to + "ln1", width);
    list.add_norm(from + "layer_norm2", to + "ln2", width);
    list.add_linear(from + "self_attn.q_proj", to + "attn_q", width, width);
    list.add_linear(from + "self_attn.k_proj", to + "attn_k", width, width);
    list.add_linear(from + "self_attn.v_proj", to + "attn_v", width, width);
    list.add_linear(from + "self_attn.out_proj", to + "attn_out", width, width);
    list.add_linear(from + "mlp.fc1", to + "ffn_up", width, tower.wide);
    list.add_linear(from + "mlp.fc2", to + "ffn_down", tower.wide, width);
  }
  list.add_norm("post_layernorm", "v.post_ln", width);
  list.set_prefix("multi_modal_projector.");
  list.add("mm_input_projection_weight", "mm.input_projection.weight", {width, tower.text_width})
      .type = GgmlType::kF16;
  list.add("mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight", {width}).adds_one = true;
  return list.take();
}

std::vector<TowerTensor> qwen_tensors(const VisionConfig& tower, GgmlType matrix_type) {
  const int64_t width = tower.width;
  const GgmlType of_patches = matrix_type == GgmlType::kF16 ? GgmlType::kF16 : GgmlType::kF32;
  TensorList list("visual.");
  for (int64_t frame = 0; frame < VisionConfig::kFrames; ++frame) {
    TowerTensor& tensor =
        list.add("patch_embed.proj.weight", concat("v.patch_embd.weight", frame == 0 ? "" : ".1"),
                 {width, VisionConfig::kChannels, VisionConfig::kFrames, tower.patch, tower.patch});
    tensor.type = of_patches;
    tensor.index = frame;
    tensor.count = VisionConfig::kFrames;
  }
  list.add("patch_embed.proj.bias", "v.patch_embd.bias", {width});
  list.add("pos_embed.weight", "v.position_embd.weight", {tower.num_positions(), width}).type =
      GgmlType::kF32;
  for (int64_t i = 0; i < tower.layers; ++i) {
    const std::string from = concat("blocks.", i, '.'), to = concat("v.blk.", i, '.');
    list.add_norm(from + "norm1", to + "ln1", width);
    list.add_norm(from + "norm2", to + "ln2", width);
    list.add_linear(from + "attn.qkv", to + "attn_qkv", width, 3 * width);
    list.add_linear(from + "attn.proj", to + "attn_out", width, width);
    list.add_linear(from + "mlp.linear_fc1", to + "ffn_up", width, tower.wide);
    list.add_linear(from + "mlp.linear_fc2", to + "ffn_down", tower.wide, width);
  }
  const int64_t merged = width * tower.merged * tower.merged;
  list.add_norm("merger.norm", "v.post_ln", width);
  list.add_linear("merger.linear_fc1", "mm.0", merged, merged);
  list.add_linear("merger.linear_fc2", "mm.2", merged, tower.text_width);
  return list.take();
}

/// As folders had it before transformers 5 left parts of it out, and put others before it.
std::string name_in_tower(std::string name) {
  constexpr std::string_view kModel = "model.", kTower = "vision_tower.",
                             kInner = "vision_tower.vision_model.";
  if (name.starts_with(kModel)) name.erase(0, kModel.size());
  if (name.starts_with(kTower) && !name.starts_with(kInner)) name.replace(0, kTower.size(), kInner);
  return name;
}

/// What llama.cpp's converter leaves out too: SigLIP's own way to one vector of a picture.
bool is_left_out(const std::string& name) {
  return name.starts_with("vision_tower.vision_model.head.");
}

struct TowerJob {
  TowerTensor wanted;
  GgmlType type;
  const HfCheckpoint::Tensor* tensor;
};

/// In the order of the checkpoint.
std::vector<TowerJob> plan(const HfCheckpoint& checkpoint, const std::string& folder,
                           std::vector<TowerTensor> wanted, GgmlType matrix_type) {
  std::multimap<std::string, TowerTensor> by_name;
  for (TowerTensor& tensor : wanted) by_name.emplace(tensor.hf_name, std::move(tensor));
  std::vector<TowerJob> jobs;
  for (const HfCheckpoint::Tensor& tensor : checkpoint.tensors()) {
    if (!is_of_vision_tower(tensor.entry->name)) continue;
    const std::string name = name_in_tower(tensor.entry->name);
    if (is_left_out(name)) continue;
    const auto [begin, end] = by_name.equal_range(name);
    with_frame(frame_of(tensor), [&] {
      check(begin != end, "a tower of this config.json has no such tensor");
      check(begin->second.shape == tensor.entry->shape, "has another shape than config.json wants");
      hf_source_type(*tensor.entry);  // one that can be read
    });
    for (auto it = begin; it != end; ++it) {
      const GgmlType type = it->second.shape.size() == 1 ? GgmlType::kF32 : matrix_type;
      jobs.push_back({it->second, it->second.type.value_or(type), &tensor});
    }
    by_name.erase(begin, end);
  }
  check(by_name.empty(), folder, ": tensor '", by_name.empty() ? "" : by_name.begin()->first,
        "' is missing");
  return jobs;
}

GgufMetadata make_metadata(const std::string& folder, const Json& config, const VisionConfig& tower,
                           GgmlType matrix_type, int64_t num_weights) {
  GgufMetadata metadata;
  const auto append = [&](const GgufMetadata& more) {
    for (const auto& [key, value] : more.pairs()) metadata.set(key, value);
  };
  metadata.set("general.architecture", std::string("clip"));
  metadata.set("general.type", std::string("mmproj"));
  append(sampling_metadata(folder));
  append(model_name_metadata(text_field(config, "_name_or_path").value_or(""),
                             hf_folder_name(folder), num_weights, size_label(num_weights)));
  append(vision_metadata(tower, matrix_type));
  metadata.set("general.quantization_version", kQuantizationVersion);
  return metadata;
}

/// Weights [first, first + weights.size()) of what the file gets.
void read_piece(const TowerJob& job, size_t first, std::span<float> weights) {
  const SafetensorsEntry& entry = *job.tensor->entry;
  const GgmlType source = hf_source_type(entry);
  const auto bytes = static_cast<size_t>(hf_weight_bytes(entry, 1));
  const auto read = [&](size_t from, std::span<float> to) {
    hf_decode(entry, entry.data.subspan(from * bytes, to.size() * bytes), to);
  };
  if (job.wanted.count == 1) {
    read(first, weights);
  } else {
    const auto run = static_cast<size_t>(job.wanted.shape[3] * job.wanted.shape[4]);
    const auto count = static_cast<size_t>(job.wanted.count),
               index = static_cast<size_t>(job.wanted.index);
    for (size_t done = 0; done < weights.size();) {
      const size_t within = (first + done) % run,
                   left = std::min(run - within, weights.size() - done);
      read(((first + done) / run * count + index) * run + within, weights.subspan(done, left));
      done += left;
    }
  }
  if (!job.wanted.adds_one) return;
  // In the stored type where that is float16, as llama.cpp's converter computes.
  for (float& weight : weights)
    weight = source == GgmlType::kF16 ? float16_to_float(float_to_float16(weight + 1.0f))
                                      : weight + 1.0f;
}

void write_job(const TowerJob& job, GgufWriter& writer) {
  const auto count = static_cast<size_t>(job.wanted.num_weights());
  std::vector<float> weights;
  with_frame(frame_of(*job.tensor), [&] {
    for (size_t first = 0; first < count; first += kPieceWeights) {
      weights.resize(std::min(kPieceWeights, count - first));
      read_piece(job, first, weights);
      const auto length = static_cast<int64_t>(weights.size());
      writer.write(encode_tensor(job.type, weights, length, {}, EncodeMethod::kRtn, 0));
    }
  });
  job.tensor->file->release(*job.tensor->entry);
}

}  // namespace

bool is_of_vision_tower(const std::string& name) { return text_tensor_name(name).empty(); }

HfConverted convert_vision_tower(const std::string& folder, const std::string& out,
                                 std::optional<GgmlType> matrix_type) {
  const auto start = std::chrono::steady_clock::now();
  const auto config = read_json_file(folder + "/config.json");
  check(config.has_value(), folder, ": has no config.json: no folder of a Hugging Face model");
  const HfSource source{
      folder, HfCheckpoint::open(folder), read_hf_quantization(folder, *config), {}};
  const VisionConfig tower = read_vision_config(folder, *config);
  check(tower.layers <= std::ssize(source.checkpoint.tensors()), folder,
        ": config.json says that the tower has ", tower.layers,
        " layers, the checkpoint has fewer tensors");
  HfConverted result;
  result.matrix_type = matrix_type ? *matrix_type : source.stored_type();
  const std::vector<TowerJob> jobs =
      plan(source.checkpoint, folder,
           tower.is_gemma ? gemma_tensors(tower) : qwen_tensors(tower, result.matrix_type),
           result.matrix_type);
  std::vector<GgufWriter::Tensor> table;
  for (const TowerJob& job : jobs) {
    table.push_back({job.wanted.name, job.wanted.file_shape(), job.type});
    result.num_weights += job.wanted.num_weights();
    result.bytes += job.wanted.num_weights() * ggml_type_info(job.type).block_bytes;
  }
  result.num_tensors = std::ssize(table);
  result.paths = {out};
  GgufWriter writer(
      out, make_metadata(folder, *config, tower, result.matrix_type, result.num_weights), table);
  for (const TowerJob& job : jobs) write_job(job, writer);
  writer.finish();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace nibble
