// The layers of the program, checked where they could be broken: on the #include lines. A file
// includes only from its own folder and from those above it; each heavy dependency stays behind its
// fence.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace nibble {
namespace {

const std::vector<std::string> kFolders = {"base",       "io",      "quant/format", "quant/mix",
                                           "quant/fake", "model",   "eval",         "training",
                                           "export",     "configs", "recipes"};
/// Beginnings of the paths of what the program nibble is made of, besides the recipes that
/// recipes.def names.
const std::vector<std::string> kWithoutTorch = {"base/",           "io/",
                                                "quant/format/",   "quant/mix/",
                                                "model/tokenizer", "model/llama_tensors",
                                                "model/hf/",       "model/chat/",
                                                "export/parity",   "export/verify"};

using Tree = std::map<std::string, std::string>;  // path -> text

struct Include {
  std::string target;
  bool quoted;
};

bool starts(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

std::vector<Include> includes_of(const std::string& text) {
  std::vector<Include> includes;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t hash = line.find_first_not_of(" \t");
    if (hash == std::string::npos || line[hash] != '#') continue;
    const size_t word = line.find_first_not_of(" \t", hash + 1);
    if (word == std::string::npos || line.compare(word, 7, "include") != 0) continue;
    const size_t open = line.find_first_of("<\"", word);
    if (open == std::string::npos) continue;
    const size_t close = line.find(line[open] == '<' ? '>' : '"', open + 1);
    includes.push_back({line.substr(open + 1, close - open - 1), line[open] == '"'});
  }
  return includes;
}

/// Index in kFolders of the folder that holds `path`, or -1.
int layer_of(const std::string& path) {
  for (size_t i = 0; i < kFolders.size(); ++i)
    if (starts(path, kFolders[i] + "/")) return static_cast<int>(i);
  return -1;
}

bool is_torch(const std::string& target) {
  return target == "quant/fake/torch.h" || starts(target, "torch/") || starts(target, "ATen/") ||
         starts(target, "c10/");
}

bool is_cuda(const std::string& target) {
  return starts(target, "cuda") || starts(target, "cub/") || starts(target, "cooperative_groups") ||
         starts(target, "cublas") || starts(target, "curand");
}

bool is_cuda_source(const std::string& path) {
  return path.ends_with(".cu") || path.ends_with(".cuh");
}

/// Whether `path` reaches a LibTorch header through our own headers.
bool reaches_torch(const Tree& tree, const std::string& path, std::set<std::string>& seen) {
  const auto file = tree.find(path);
  if (file == tree.end() || !seen.insert(path).second) return false;
  const auto includes = includes_of(file->second);
  return std::any_of(includes.begin(), includes.end(), [&](const Include& include) {
    return is_torch(include.target) || reaches_torch(tree, include.target, seen);
  });
}

void check_layer(const std::string& path, const Include& include, std::vector<std::string>& found) {
  const int own = layer_of(path), other = layer_of(include.target);
  if (include.quoted && other < 0)
    found.push_back(path + ": \"" + include.target + "\" is in no known folder");
  if (other > own) found.push_back(path + ": " + include.target + " is below it");
}

bool is_without_torch(const std::string& path) {
  return std::any_of(kWithoutTorch.begin(), kWithoutTorch.end(),
                     [&](const std::string& begin) { return starts(path, begin); });
}

void check_fences(const std::string& path, const Include& include,
                  std::vector<std::string>& found) {
  const std::string& target = include.target;
  const std::string& folder = kFolders[static_cast<size_t>(layer_of(path))];
  if (starts(target, "cxxopts") && folder != "recipes") found.push_back(path + ": cxxopts");
  if (is_cuda(target) && !is_cuda_source(path) && path != "base/host_device.h")
    found.push_back(path + ": CUDA: " + target);
}

std::vector<std::string> violations(const Tree& tree) {
  std::vector<std::string> found, with_yaml;
  for (const auto& [path, text] : tree) {
    bool yaml = false;
    for (const Include& include : includes_of(text)) {
      std::set<std::string> seen;
      if (is_without_torch(path) &&
          (is_torch(include.target) || reaches_torch(tree, include.target, seen)))
        found.push_back(path + ": LibTorch: " + include.target);
      check_layer(path, include, found);
      check_fences(path, include, found);
      yaml = yaml || starts(include.target, "yaml-cpp/");
    }
    if (yaml) with_yaml.push_back(path);
    std::set<std::string> seen;
    if (is_cuda_source(path) && reaches_torch(tree, path, seen))
      found.push_back(path + ": LibTorch in a .cu");
  }
  for (size_t i = 1; i < with_yaml.size(); ++i)
    found.push_back(with_yaml[i] + ": yaml-cpp, which " + with_yaml[0] + " has already");
  return found;
}

Tree read_tree() {
  namespace fs = std::filesystem;
  const std::set<std::string> kExtensions = {".h", ".cc", ".cu", ".cuh", ".def"};
  const fs::path root = NIBBLE_SOURCE_DIR;
  Tree tree;
  for (const std::string& folder : kFolders)
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (!entry.is_regular_file() || !kExtensions.count(entry.path().extension().string()))
        continue;
      std::ifstream file(entry.path());
      std::stringstream text;
      text << file.rdbuf();
      tree[fs::relative(entry.path(), root).generic_string()] = text.str();
    }
  return tree;
}

TEST(IncludeOrder, TheTreeKeepsIt) {
  const Tree tree = read_tree();
  for (const std::string& folder : kFolders)
    EXPECT_TRUE(std::any_of(tree.begin(), tree.end(),
                            [&](const auto& file) { return starts(file.first, folder + "/"); }))
        << folder << " has no sources: is the list of folders right?";
  for (const std::string& violation : violations(tree)) ADD_FAILURE() << violation;
}

struct Planted {
  Tree tree;
  std::string wanted;
};

TEST(IncludeOrder, PlantedViolationsAreFound) {
  const std::vector<Planted> planted = {
      {{{"io/a.h", "#include \"model/b.h\"\n"}}, "io/a.h: model/b.h is below it"},
      {{{"quant/format/a.h", "  #  include \"quant/mix/b.h\"\n"}},
       "quant/format/a.h: quant/mix/b.h is below it"},
      {{{"model/a.cc", "#include \"b.h\"\n"}}, "model/a.cc: \"b.h\" is in no known folder"},
      {{{"quant/mix/a.cc", "#include <torch/all.h>\n"}}, "quant/mix/a.cc: LibTorch: torch/all.h"},
      {{{"base/a.h", "#include <c10/util/Half.h>\n"}}, "base/a.h: LibTorch: c10/util/Half.h"},
      {{{"export/verify.cc", "#include \"model/b.h\"\n"},
        {"model/b.h", "#include \"quant/fake/torch.h\"\n"}},
       "export/verify.cc: LibTorch: model/b.h"},
      {{{"model/a.cc", "#include <cxxopts.hpp>\n"}}, "model/a.cc: cxxopts"},
      {{{"model/a.cc", "#include <cuda_runtime.h>\n"}}, "model/a.cc: CUDA: cuda_runtime.h"},
      {{{"configs/a.cc", "#include <yaml-cpp/yaml.h>\n"},
        {"recipes/b.cc", "#include <yaml-cpp/yaml.h>\n"}},
       "recipes/b.cc: yaml-cpp, which configs/a.cc has already"},
      {{{"quant/fake/a.cu", "#include \"quant/fake/b.h\"\n"},
        {"quant/fake/b.h", "#include <ATen/ATen.h>\n"}},
       "quant/fake/a.cu: LibTorch in a .cu"},
  };
  for (const Planted& plant : planted)
    EXPECT_EQ(violations(plant.tree), std::vector<std::string>{plant.wanted}) << plant.wanted;
}

TEST(IncludeOrder, WhatIsAllowedPasses) {
  EXPECT_EQ(
      violations(
          {{"io/a.h", "#include \"base/error.h\"\n#include <vector>\n#include \"io/b.h\"\n"},
           {"quant/fake/a.cc", "#include \"quant/fake/torch.h\"\n"},
           {"quant/fake/torch.h", "#include <ATen/ATen.h>\n"},
           {"quant/fake/a.cu", "#include <cuda_runtime.h>\n#include \"quant/format/q4_0.h\"\n"},
           {"recipes/a.cc", "#include <cxxopts.hpp>\n// #include \"nowhere.h\"\n"},
           {"base/host_device.h", "#include <cuda_runtime.h>\n"}}),
      std::vector<std::string>{});
}

}  // namespace
}  // namespace nibble
