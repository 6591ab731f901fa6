#include "model/hf/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";

/// The files' names, sorted, from the index. A name is one in this folder: an index must not lead
/// out of it.
std::set<std::string> names_of_index(const nlohmann::json& weight_map) {
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map.items()) {
    check(file.is_string(), "key 'weight_map': tensor '", tensor, "' is in no file's name");
    const auto name = file.get<std::string>();
    check(fs::path(name).filename() == name && name.ends_with(".safetensors"),
          "key 'weight_map': '", name, "' is no name of a safetensors file in this folder");
    names.insert(name);
  }
  check(!names.empty(), "key 'weight_map' names no file");
  return names;
}

std::set<std::string> names_of_folder(const std::string& folder) {
  std::set<std::string> names;
  bool has_pickle = false;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("model") && name.ends_with(".safetensors")) names.insert(name);
    has_pickle = has_pickle || (name.starts_with("pytorch_model") && name.ends_with(".bin"));
  }
  check(!error, folder, ": cannot list: ", error.message());
  check(!names.empty(), folder, ": has no model.safetensors",
        has_pickle ? "; pytorch_model.bin is a pickle, which nibble does not open: save the model "
                     "with transformers' save_pretrained()"
                   : "");
  return names;
}

}  // namespace

HfCheckpoint HfCheckpoint::open(const std::string& folder) {
  HfCheckpoint checkpoint;
  const std::string index_path = folder + '/' + kIndex;
  const auto index = read_json_file(index_path);
  if (!index) {
    for (const std::string& name : names_of_folder(folder))
      checkpoint.add_file(folder + '/' + name);
    return checkpoint;
  }
  with_frame(index_path, [&] {
    const nlohmann::json* weight_map = object_field(*index, "weight_map");
    check(weight_map, "has no 'weight_map'");
    for (const std::string& name : names_of_index(*weight_map))
      checkpoint.add_file(folder + '/' + name);
    checkpoint.check_index(*weight_map);
  });
  return checkpoint;
}

void HfCheckpoint::add_file(const std::string& path) {
  files_.push_back(std::make_unique<SafetensorsFile>(SafetensorsFile::open(path)));
  const SafetensorsFile* file = files_.back().get();
  const size_t begin = tensors_.size();
  for (const SafetensorsEntry& entry : file->entries()) tensors_.push_back({file, &entry});
  std::sort(tensors_.begin() + static_cast<std::ptrdiff_t>(begin), tensors_.end(),
            [](const Tensor& a, const Tensor& b) { return a.entry->name < b.entry->name; });
  for (size_t i = begin; i < tensors_.size(); ++i) {
    const auto [other, added] = by_name_.emplace(tensors_[i].entry->name, i);
    check(added, path, ": tensor '", tensors_[i].entry->name, "' is in ",
          tensors_[other->second].file->path(), " too");
  }
}

void HfCheckpoint::check_index(const nlohmann::json& weight_map) const {
  for (const auto& [name, file] : weight_map.items()) {
    const Tensor* tensor = find(name);
    check(tensor && fs::path(tensor->file->path()).filename() == file.get<std::string>(),
          "key 'weight_map': tensor '", name, "' is not in ", file.get<std::string>());
  }
  check(weight_map.size() == tensors_.size(), "key 'weight_map' names ", weight_map.size(),
        " tensors, its files hold ", tensors_.size());
}

const HfCheckpoint::Tensor* HfCheckpoint::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace nibble
