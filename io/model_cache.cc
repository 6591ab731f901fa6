#include "io/model_cache.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct Repository {
  std::string owner, name, tag;  // tag: "" where none was given
};

bool is_word(const std::string& text) {
  return !text.empty() && text[0] != '.' && text[0] != '-' &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '_' || c == '-' || c == '.';
         });
}

/// Nothing for what can only be a path.
std::optional<Repository> parse_repository(const std::string& given) {
  const size_t slash = given.find('/');
  if (slash == std::string::npos) return std::nullopt;
  const size_t colon = given.find(':', slash);
  Repository repository{given.substr(0, slash), given.substr(slash + 1, colon - slash - 1), ""};
  if (colon != std::string::npos) repository.tag = given.substr(colon + 1);
  const bool has_tag = colon != std::string::npos;
  if (!is_word(repository.owner) || !is_word(repository.name) ||
      (has_tag && !is_word(repository.tag)) || repository.name.ends_with(".gguf"))
    return std::nullopt;
  return repository;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

fs::path user_cache() {
  const std::string cache = environment("XDG_CACHE_HOME");
  return cache.empty() ? fs::path(environment("HOME")) / ".cache" : fs::path(cache);
}

fs::path hub_cache() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (const std::string cache = environment(name); !cache.empty()) return cache;
  const std::string home = environment("HF_HOME");
  return (home.empty() ? user_cache() / "huggingface" : fs::path(home)) / "hub";
}

fs::path llama_cache() {
  const std::string cache = environment("LLAMA_CACHE");
  return cache.empty() ? user_cache() / "llama.cpp" : fs::path(cache);
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error))
    if (entry->is_regular_file(error)) files.push_back(entry->path());
  std::sort(files.begin(), files.end());
  return files;
}

/// "" where the repository is not there. A snapshot may lack files: they are downloaded as asked
/// for.
fs::path snapshot_of(const Repository& repository) {
  const fs::path folder = hub_cache() / ("models--" + repository.owner + "--" + repository.name);
  std::error_code error;
  if (const fs::path main = folder / "refs" / "main"; fs::is_regular_file(main, error)) {
    std::string commit = read_file(main.string());
    while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back())))
      commit.pop_back();
    if (is_word(commit) && fs::is_directory(folder / "snapshots" / commit, error))
      return folder / "snapshots" / commit;
  }
  fs::path newest;
  for (fs::directory_iterator entry(folder / "snapshots", error), end; !error && entry != end;
       entry.increment(error))
    if (newest.empty() || fs::last_write_time(*entry, error) > fs::last_write_time(newest, error))
      newest = entry->path();
  return newest;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return text;
}

/// Whether it is a model's only file or its first, and no projector of pictures.
bool is_model_file(const fs::path& path) {
  const std::string name = lower(path.filename().string());
  const size_t part = name.find("-of-");
  return name.ends_with(".gguf") && name.find("mmproj") == std::string::npos &&
         (part == std::string::npos || part < 6 || name.compare(part - 6, 6, "-00001") == 0);
}

/// Of both caches.
std::vector<fs::path> gguf_files(const Repository& repository, const fs::path& snapshot) {
  std::vector<fs::path> files = files_in(snapshot);
  const std::string prefix = repository.owner + "_" + repository.name + "_";
  for (const fs::path& path : files_in(llama_cache()))
    if (path.filename().string().starts_with(prefix)) files.push_back(path);
  std::erase_if(files, [&](const fs::path& path) {
    return !is_model_file(path) ||
           lower(path.filename().string()).find(lower(repository.tag)) == std::string::npos;
  });
  return files;
}

bool stands_alone(const std::string& text, const std::string& word) {
  const auto is_part = [&](size_t at) {
    return at < text.size() &&
           (text[at] == '_' || std::isalnum(static_cast<unsigned char>(text[at])));
  };
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1))
    if (!is_part(at - 1) && !is_part(at + word.size())) return true;
  return false;
}

/// Those whose name has the tag as a word, if there are any: not BF16 for F16.
std::vector<fs::path> of_whole_tag(std::vector<fs::path> files, const std::string& tag) {
  std::vector<fs::path> whole;
  for (const fs::path& path : files)
    if (stands_alone(lower(path.filename().string()), lower(tag))) whole.push_back(path);
  return tag.empty() || whole.empty() ? files : whole;
}

/// Whether the snapshot has a config.json and of weights in parts all that their index names.
bool is_whole_folder(const fs::path& snapshot) {
  std::error_code error;
  const fs::path index = snapshot / "model.safetensors.index.json";
  if (!fs::exists(snapshot / "config.json", error)) return false;
  if (!fs::exists(index, error)) return true;
  const auto json =
      nlohmann::json::parse(read_file(index.string()), nullptr, /*allow_exceptions=*/false);
  // What is wrong with an index is said by whoever reads it.
  if (!json.is_object() || !json.contains("weight_map")) return true;
  const auto& parts = json["weight_map"];
  return std::all_of(parts.begin(), parts.end(), [&](const auto& part) {
    return !part.is_string() || fs::exists(snapshot / part.template get<std::string>(), error);
  });
}

bool has_safetensors(const fs::path& snapshot) {
  const std::vector<fs::path> files = files_in(snapshot);
  return std::any_of(files.begin(), files.end(),
                     [](const fs::path& path) { return path.extension() == ".safetensors"; });
}

std::string download_command(const Repository& repository) {
  const std::string command = "hf download " + repository.owner + "/" + repository.name;
  return repository.tag.empty() ? command : command + " --include '*" + repository.tag + "*'";
}

/// For a path with a typo, which looks like a repository's name.
std::string near_name_in_folder(const Repository& repository) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(repository.owner, error), end; !error && entry != end;
       entry.increment(error))
    names.push_back(entry->path().filename().string());
  return did_you_mean(repository.name, names);
}

}  // namespace

std::string find_model(const std::string& given) {
  std::error_code error;
  if (fs::exists(given, error)) return given;
  const std::optional<Repository> repository = parse_repository(given);
  if (!repository) return given;
  const fs::path snapshot = snapshot_of(*repository);
  const bool is_there = !snapshot.empty();  // "" would be the working folder
  const std::vector<fs::path> files =
      of_whole_tag(gguf_files(*repository, snapshot), repository->tag);
  const bool is_folder = is_there && repository->tag.empty() && is_whole_folder(snapshot);
  if (is_folder && (files.empty() || has_safetensors(snapshot))) return snapshot.string();
  if (files.empty())
    fail_usage(given, ": no such file or folder", near_name_in_folder(*repository),
               ", and in neither ", hub_cache().string(), " nor ", llama_cache().string(),
               "; download it with: ", download_command(*repository));
  if (files.size() == 1) return files[0].string();
  std::string names;
  for (const fs::path& path : files)
    names += concat(names.empty() ? "" : ", ", path.filename().string());
  fail_usage(given, ": could be ", names, "; say which, as in ", repository->owner, "/",
             repository->name, ":Q8_0");
}

}  // namespace nibble
