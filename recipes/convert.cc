// nibble convert: a Hugging Face folder into a GGUF file, as llama.cpp's converter writes it.
#include "model/hf/convert.h"

#include <cstdio>
#include <cxxopts.hpp>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>

#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "model/hf/config.h"
#include "model/hf/vision_tower.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

/// The families' names in lines that a terminal shows whole.
std::string family_lines() {
  constexpr size_t kWidth = 100;
  std::string lines, line = "Families: ";
  std::istringstream names(hf_family_names());
  for (std::string name; names >> name; line += name + " ") {
    if (line.size() + name.size() < kWidth) continue;
    lines += line + "\n";
    line = "  ";
  }
  return lines + line + "\n";
}

std::string introduction() {
  return "Converts a downloaded Hugging Face folder (config.json, safetensors, tokenizer) into one "
         "GGUF\nfile. 4-bit codes of GPTQ, AWQ and compressed-tensors (also mxfp4) become Q4_0, "
         "Q4_1 or MXFP4\nas they are, so do gpt-oss's experts in MXFP4.\n" +
         family_lines();
}

constexpr const char* kExamples =
    "\nExamples:\n"
    "  nibble convert Qwen3-0.6B qwen3.gguf                 matrices as they are stored\n"
    "  nibble convert Qwen3-0.6B qwen3.gguf --outtype f32   for training\n"
    "  nibble convert Qwen3-0.6B mine.gguf --adapter lora   with what was trained on top\n";

std::optional<GgmlType> type_argument(const cxxopts::ParseResult& arguments) {
  const auto name = arguments["outtype"].as<std::string>();
  if (name == "auto") return std::nullopt;
  if (name == "f32") return GgmlType::kF32;
  if (name == "f16") return GgmlType::kF16;
  if (name == "bf16") return GgmlType::kBF16;
  fail_usage("--outtype wants auto, f32, f16 or bf16, found '", name, "'");
}

void print_rounding(const HfConverted& result) {
  char text[128] = "weights are exactly the checkpoint's";
  const auto [largest, in_steps] = result.rounding;
  if (largest > 0)
    std::snprintf(text, sizeof text,
                  "float16 scales or minimums moved weights by at most %.3g (%.3g of a step)",
                  largest, in_steps);
  std::cout << concat(result.num_packed, " matrices keep their codes; ", text, '\n');
}

void print_result(const HfConverted& result) {
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.1f s", result.seconds);
  const std::string parts =
      result.paths.size() > 1 ? concat(" and ", result.paths.size() - 1, " more") : "";
  std::cout << concat(result.paths.front(), parts, ": ", result.family, ", ", result.num_weights,
                      " weights in ", result.num_tensors, " tensors, matrices ",
                      type_name(result.matrix_type), ", ", format_bytes(result.bytes),
                      " of tensor data, ", seconds, '\n');
  if (result.num_merged > 0)
    std::cout << concat("The adapter's update is merged into ", result.num_merged, " matrices\n");
  if (result.num_packed > 0 && ggml_type_info(result.matrix_type).block_size > 1)
    print_rounding(result);
}

bool is_same_place(const std::string& a, const std::string& b) {
  return std::filesystem::weakly_canonical(a) == std::filesystem::weakly_canonical(b);
}

void print_tower(const HfConverted& tower) {
  std::cout << concat(tower.paths.front(), ": the tower that sees, ", tower.num_weights,
                      " weights in ", tower.num_tensors,
                      " tensors, carried through; llama.cpp takes it with --mmproj\n");
}

std::string result_json(const HfConverted& result, const std::optional<HfConverted>& tower) {
  nlohmann::ordered_json json = {{"name", result.paths.front()},
                                 {"files", result.paths},
                                 {"family", result.family},
                                 {"type", type_name(result.matrix_type)},
                                 {"weights", result.num_weights},
                                 {"tensors", result.num_tensors},
                                 {"bytes", result.bytes},
                                 {"packed_matrices", result.num_packed},
                                 {"merged_matrices", result.num_merged},
                                 {"largest_rounding", result.rounding.largest},
                                 {"largest_rounding_in_steps", result.rounding.largest_in_steps},
                                 {"peak_bytes", peak_memory_bytes()},
                                 {"seconds", result.seconds}};
  if (tower)
    json["mmproj"] = {{"name", tower->paths.front()},
                      {"type", type_name(tower->matrix_type)},
                      {"weights", tower->num_weights},
                      {"tensors", tower->num_tensors},
                      {"bytes", tower->bytes}};
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

int run_convert(int argc, char** argv) {
  const auto text = [] { return cxxopts::value<std::string>(); };
  cxxopts::Options options("nibble convert", introduction());
  options.custom_help("[OPTIONS]").positional_help("FOLDER OUT.gguf");
  options.add_options()("outtype",
                        "type of the matrices: auto (as stored, codes as codes), f32, f16 or bf16",
                        text()->default_value("auto"), "TYPE")(
      "adapter", "folder of a PEFT LoRA adapter, merged in float32", text(), "FOLDER")(
      "pre", "llama.cpp's name of the pre-tokenizer, where the folder's is not recognized", text(),
      "NAME")("mtp",
              "with the layers that predict further tokens (mtp.*): carried through, not trained")(
      "mmproj", "also the tower that sees, as the second file that llama.cpp takes by that name",
      text(), "FILE.gguf")("json", "print one JSON object on stdout")("q,quiet",
                                                                      "no progress bar, no notes");
  add_part_size_option(options);
  options.add_options("words")("folder", "", text())("out", "", text());
  options.parse_positional({"folder", "out"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  const bool quiet = arguments->count("quiet") > 0;
  set_quiet_log(quiet);
  Progress::set_quiet(quiet);
  const std::string folder = model_argument(*arguments, "folder", "FOLDER");
  const std::string out = required(*arguments, "out", "OUT.gguf");
  const std::string mmproj = text_or_empty(*arguments, "mmproj");
  if (!mmproj.empty() && is_same_place(mmproj, out))
    fail_usage("--mmproj: is OUT.gguf too; the tower is a file of its own");
  const auto type = type_argument(*arguments);
  std::optional<HfConverted> tower;
  if (!mmproj.empty()) tower = convert_vision_tower(folder, mmproj, type);
  const HfConverted result =
      convert_hf(folder, out,
                 {type, text_or_empty(*arguments, "pre"), text_or_empty(*arguments, "adapter"),
                  part_size_argument(*arguments), arguments->count("mtp") > 0, !mmproj.empty()});
  if (arguments->count("json") > 0) {
    std::cout << result_json(result, tower);
    return 0;
  }
  print_result(result);
  if (tower) print_tower(*tower);
  return 0;
}

}  // namespace nibble
