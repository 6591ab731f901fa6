#include "quant/mix/file_type.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <regex>

namespace nibble {
namespace {

constexpr FileTypeInfo kFileTypes[] = {
    {"Q1_0", FileType::kQ1_0, GgmlType::kQ1_0},
    {"Q2_0", FileType::kQ2_0, GgmlType::kQ2_0},
    {"Q4_0", FileType::kQ4_0, GgmlType::kQ4_0},
    {"Q4_1", FileType::kQ4_1, GgmlType::kQ4_1},
    {"MXFP4_MOE", FileType::kMXFP4_MOE, GgmlType::kMXFP4},
    {"Q5_0", FileType::kQ5_0, GgmlType::kQ5_0},
    {"Q5_1", FileType::kQ5_1, GgmlType::kQ5_1},
    {"IQ2_XXS", FileType::kIQ2_XXS, GgmlType::kIQ2_XXS},
    {"IQ2_XS", FileType::kIQ2_XS, GgmlType::kIQ2_XS},
    {"IQ2_S", FileType::kIQ2_S, GgmlType::kIQ2_XS},
    {"IQ2_M", FileType::kIQ2_M, GgmlType::kIQ2_S},
    {"IQ1_S", FileType::kIQ1_S, GgmlType::kIQ1_S},
    {"IQ1_M", FileType::kIQ1_M, GgmlType::kIQ1_M},
    {"TQ1_0", FileType::kTQ1_0, GgmlType::kTQ1_0},
    {"TQ2_0", FileType::kTQ2_0, GgmlType::kTQ2_0},
    {"Q2_K", FileType::kQ2_K, GgmlType::kQ2_K},
    {"Q2_K_S", FileType::kQ2_K_S, GgmlType::kQ2_K},
    {"IQ3_XXS", FileType::kIQ3_XXS, GgmlType::kIQ3_XXS},
    {"IQ3_S", FileType::kIQ3_S, GgmlType::kIQ3_S},
    {"IQ3_M", FileType::kIQ3_M, GgmlType::kIQ3_S},
    {"Q3_K", FileType::kQ3_K_M, GgmlType::kQ3_K},
    {"IQ3_XS", FileType::kIQ3_XS, GgmlType::kIQ3_S},
    {"Q3_K_S", FileType::kQ3_K_S, GgmlType::kQ3_K},
    {"Q3_K_M", FileType::kQ3_K_M, GgmlType::kQ3_K},
    {"Q3_K_L", FileType::kQ3_K_L, GgmlType::kQ3_K},
    {"IQ4_NL", FileType::kIQ4_NL, GgmlType::kIQ4_NL},
    {"IQ4_XS", FileType::kIQ4_XS, GgmlType::kIQ4_XS},
    {"Q4_K", FileType::kQ4_K_M, GgmlType::kQ4_K},
    {"Q4_K_S", FileType::kQ4_K_S, GgmlType::kQ4_K},
    {"Q4_K_M", FileType::kQ4_K_M, GgmlType::kQ4_K},
    {"Q5_K", FileType::kQ5_K_M, GgmlType::kQ5_K},
    {"Q5_K_S", FileType::kQ5_K_S, GgmlType::kQ5_K},
    {"Q5_K_M", FileType::kQ5_K_M, GgmlType::kQ5_K},
    {"Q6_K", FileType::kQ6_K, GgmlType::kQ6_K},
    {"Q8_0", FileType::kQ8_0, GgmlType::kQ8_0},
    {"F16", FileType::kF16, GgmlType::kF16},
    {"BF16", FileType::kBF16, GgmlType::kBF16},
    {"F32", FileType::kF32, GgmlType::kF32},
};

}  // namespace

std::span<const FileTypeInfo> file_types() { return kFileTypes; }

const FileTypeInfo* find_file_type(std::string_view name_or_number) {
  std::string wanted(name_or_number);
  std::transform(wanted.begin(), wanted.end(), wanted.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  for (const FileTypeInfo& info : kFileTypes)
    if (info.name == wanted) return &info;
  for (const FileTypeInfo& info : kFileTypes)
    if (std::to_string(static_cast<int>(info.type)) == wanted) return &info;
  return nullptr;
}

std::string model_name(const std::string& path) {
  static const std::regex kPart("-\\d{5}-of-\\d{5}$");
  const std::string stem =
      std::regex_replace(std::filesystem::path(path).stem().string(), kPart, "");
  const size_t cut = stem.find_last_of(".-");
  const std::string ending = cut == std::string::npos ? "" : stem.substr(cut + 1);
  // By name only: "phi-2" is no model of the file type with number 2.
  const bool is_number =
      std::all_of(ending.begin(), ending.end(), [](unsigned char c) { return std::isdigit(c); });
  const bool is_type = !is_number && (find_ggml_type(ending) || find_file_type(ending));
  return is_type ? stem.substr(0, cut) : stem;
}

}  // namespace nibble
