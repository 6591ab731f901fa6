#include "training/checkpoint.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "base/error.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kLayout = "2";
constexpr const char* kLayoutWithoutChecksum = "1";
constexpr const char* kRatios = ":scale_ratios";
constexpr const char* kInitial = ":initial_scales";
constexpr const char* kOptimizerState[] = {":moment1", ":moment2", ":unit", ":steps"};
constexpr const char* kBlocks = ":blocks";

/// Entries point into tensors, which `held` keeps alive until they are written.
struct Entries {
  std::vector<SafetensorsEntry> entries;
  std::vector<torch::Tensor> held;

  void add(const std::string& name, const torch::Tensor& tensor) {
    if (!tensor.defined()) return;
    const bool stored = tensor.scalar_type() == torch::kUInt8;
    check(stored || tensor.scalar_type() == torch::kFloat32, "tensor '", name,
          "' is neither float32 nor bytes");
    const torch::Tensor& values = held.emplace_back(tensor.detach().cpu().contiguous());
    const auto* bytes = static_cast<const std::byte*>(values.const_data_ptr());
    entries.push_back(
        {name, stored ? "U8" : "F32", values.sizes().vec(), {bytes, values.nbytes()}});
  }
};

using SharedFile = std::shared_ptr<const SafetensorsFile>;

/// A view that keeps the file mapped. dtype: "F32" or "U8".
torch::Tensor view_entry(const SharedFile& file, const SafetensorsEntry* entry,
                         const std::string& name, const std::string& dtype = "F32") {
  check(entry, "no entry '", name, "'");
  check(entry->dtype == dtype, "entry '", name, "' has dtype ", entry->dtype, ", wanted ", dtype);
  // from_blob takes no const pointer; nobody writes to what is loaded.
  auto* values = const_cast<std::byte*>(entry->data.data());
  const bool aligned = dtype == "U8" || reinterpret_cast<uintptr_t>(values) % alignof(float) == 0;
  const torch::Tensor view = torch::from_blob(
      values, entry->shape, [file](void*) {}, dtype == "U8" ? torch::kUInt8 : torch::kFloat32);
  return aligned ? view : view.clone();  // write_safetensors() aligns, others need not
}

Json describe(const TrainedTensor& tensor) {
  return {{"name", tensor.name},
          {"type", type_name(tensor.type)},
          {"scales", scale_mode_name(tensor.mode)},
          {"hash", tensor.materialized_hash}};
}

TrainedTensor read_tensor(const SharedFile& file, const Json& description) {
  TrainedTensor tensor;
  tensor.name = description.at("name").get<std::string>();
  const std::string type = description.at("type").get<std::string>();
  const GgmlTypeInfo* info = find_ggml_type(type);
  check(info, "tensor '", tensor.name, "' has unknown type '", type, "'");
  tensor.type = info->type;
  tensor.mode = parse_scale_mode(description.at("scales").get<std::string>());
  tensor.materialized_hash = description.at("hash").get<uint64_t>();
  const std::string ratios = tensor.name + kRatios, initial = tensor.name + kInitial;
  const std::string blocks = tensor.name + kBlocks;
  if (const SafetensorsEntry* entry = file->find(ratios))
    tensor.scale_ratios = view_entry(file, entry, ratios);
  if (const SafetensorsEntry* entry = file->find(blocks)) {
    tensor.blocks = view_entry(file, entry, blocks, "U8");
    return tensor;
  }
  tensor.weights = view_entry(file, file->find(tensor.name), tensor.name);
  if (tensor.scale_ratios.defined())
    tensor.initial_scales = view_entry(file, file->find(initial), initial);
  for (const std::string& suffix : master_state_suffixes())
    if (const SafetensorsEntry* entry = file->find(tensor.name + suffix))
      tensor.training_state.push_back({suffix, view_entry(file, entry, entry->name)});
  return tensor;
}

const std::string& require(const std::map<std::string, std::string>& metadata, const char* key) {
  const auto found = metadata.find(key);
  check(found != metadata.end(), "not a nibble checkpoint: no metadata '", key, "'");
  return found->second;
}

Checkpoint read_checkpoint(const SharedFile& file) {
  const auto& metadata = file->metadata();
  const std::string& layout = require(metadata, "nibble.format");
  check(layout == kLayout || layout == kLayoutWithoutChecksum, "checkpoint layout ", layout,
        ", wanted ", kLayout);
  // One damaged byte cannot make a file of one layout look like the other.
  check(
      file->has_checksum() == (layout == kLayout), "damaged: layout ", layout,
      file->has_checksum() ? " has no checksum, this file one" : " has a checksum, this file none");
  Checkpoint checkpoint;
  const Json state = Json::parse(require(metadata, "nibble.state"));
  checkpoint.step = state.at("step").get<int64_t>();
  checkpoint.tokens = state.at("tokens").get<int64_t>();
  checkpoint.seed = state.at("seed").get<uint64_t>();
  checkpoint.seconds = state.at("seconds").get<double>();
  checkpoint.held_out_loss = state.at("held_out_loss").get<double>();
  checkpoint.best_held_out_loss = state.at("best_held_out_loss").get<double>();
  checkpoint.best_step = state.at("best_step").get<int64_t>();
  checkpoint.plan = Plan::from_json(require(metadata, "nibble.plan"));
  checkpoint.options_json = require(metadata, "nibble.options");
  for (const Json& description : Json::parse(require(metadata, "nibble.tensors")))
    checkpoint.tensors.push_back(read_tensor(file, description));
  for (const SafetensorsEntry& entry : file->entries())
    for (const char* suffix : kOptimizerState)
      if (entry.name.ends_with(suffix))
        checkpoint.moments[entry.name] = view_entry(file, &entry, entry.name);
  return checkpoint;
}

}  // namespace

const TrainedTensor* Checkpoint::find(const std::string& name) const {
  for (const TrainedTensor& tensor : tensors)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

bool Checkpoint::has_stored_codes() const {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const TrainedTensor& tensor) { return tensor.blocks.defined(); });
}

FakeQuantizer restore_quantizer(const TrainedTensor& tensor) {
  if (tensor.blocks.defined()) {
    FakeQuantizer stored(tensor.name, require_decoder(tensor.type), tensor.blocks,
                         tensor.mode == ScaleMode::kLearned);
    check(stored.scale_ratios().defined() == tensor.scale_ratios.defined(), "tensor '", tensor.name,
          "': stored blocks of ", type_name(tensor.type),
          tensor.scale_ratios.defined() ? " have no scales that train" : " without scale ratios");
    if (tensor.scale_ratios.defined()) stored.scale_ratios().copy_(tensor.scale_ratios);
    return stored;
  }
  check(tensor.type != GgmlType::kF32, "tensor '", tensor.name, "' was trained unquantized");
  return FakeQuantizer(tensor.name, require_format(tensor.type), tensor.mode, tensor.weights,
                       tensor.scale_ratios, tensor.initial_scales);
}

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint,
                     const std::string& keep_old_as) {
  Entries all;
  Json tensors = Json::array();
  for (const TrainedTensor& tensor : checkpoint.tensors) {
    tensors.push_back(describe(tensor));
    all.add(tensor.name, tensor.weights);
    all.add(tensor.name + kBlocks, tensor.blocks);
    all.add(tensor.name + kRatios, tensor.scale_ratios);
    all.add(tensor.name + kInitial, tensor.initial_scales);
    if (checkpoint.moments.empty()) continue;  // it only ships
    for (const auto& [suffix, value] : tensor.training_state) all.add(tensor.name + suffix, value);
  }
  for (const auto& [name, moment] : checkpoint.moments) all.add(name, moment);
  const Json state = {{"step", checkpoint.step},
                      {"tokens", checkpoint.tokens},
                      {"seed", checkpoint.seed},
                      {"seconds", checkpoint.seconds},
                      {"held_out_loss", checkpoint.held_out_loss},
                      {"best_held_out_loss", checkpoint.best_held_out_loss},
                      {"best_step", checkpoint.best_step}};
  write_safetensors(path, all.entries,
                    {{"nibble.format", kLayout},
                     {"nibble.state", state.dump()},
                     {"nibble.plan", checkpoint.plan.to_json()},
                     {"nibble.options", checkpoint.options_json},
                     {"nibble.tensors", tensors.dump()}},
                    {.checksum = true, .keep_old_as = keep_old_as});
}

Checkpoint load_checkpoint(const std::string& path) {
  const auto file = std::make_shared<const SafetensorsFile>(SafetensorsFile::open(path));
  if (file->has_checksum()) file->verify_checksum();  // before anything in it is believed
  return with_frame(path, [&] {
    try {
      return read_checkpoint(file);
    } catch (const nlohmann::json::exception& error) {
      fail("checkpoint metadata: ", error.what());
    }
  });
}

}  // namespace nibble
