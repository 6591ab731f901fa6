// nibble imatrix: what of each tensor matters for a text, as llama-imatrix finds out.
#include "eval/imatrix.h"

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "eval/perplexity.h"
#include "io/atomic_file.h"
#include "io/gguf.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "quant/fake/torch_device.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kIntroduction =
    "Makes an importance matrix: reads a text with the model and sums up, for each matrix in its\n"
    "blocks, the squares of what enters each column. nibble quantize --imatrix and llama-quantize\n"
    "then err less in the columns that are used most. The file is llama-imatrix's GGUF.\n";

constexpr const char* kNotes =
    "\nThe text is cut into chunks of --ctx tokens, as nibble perplexity does it. It should be\n"
    "like what the model will be used for, and not the text that it is measured on. More chunks\n"
    "make the sums more certain and take longer.\n"
    "\nExamples:\n"
    "  nibble imatrix f32.gguf calibration.txt -o imatrix.gguf --chunks 100\n"
    "  nibble quantize f32.gguf q4_0.gguf Q4_0 --imatrix imatrix.gguf\n";

cxxopts::Options make_options() {
  const auto text = [] { return cxxopts::value<std::string>(); };
  cxxopts::Options options("nibble imatrix", kIntroduction);
  options.custom_help("[OPTIONS]").positional_help("MODEL.gguf TEXT -o FILE.gguf");
  cxxopts::OptionAdder add = options.add_options();
  add("o,output", "the file to write", text(), "FILE.gguf");
  add("c,ctx", "tokens per chunk", cxxopts::value<int64_t>()->default_value("512"), "N");
  add("chunks", "chunks to read; -1: all", cxxopts::value<int64_t>()->default_value("-1"), "N");
  add("json", "print one JSON object on stdout");
  add_device_option(options, "computes");
  cxxopts::OptionAdder add_positional = options.add_options("Positional");
  add_positional("model", "", text());
  add_positional("text", "", text());
  options.parse_positional({"model", "text"});
  return options;
}

/// Throws where the result would replace what it is made from.
void check_output(const std::string& output, const std::string& input) {
  std::error_code missing;
  if (std::filesystem::equivalent(output, input, missing))
    fail_usage(output, ": would be written over itself");
}

void print(const Imatrix& imatrix, const std::string& path, double seconds, bool json) {
  const int64_t tokens = imatrix.chunk_count * imatrix.chunk_size;
  const double speed = static_cast<double>(tokens) / std::max(seconds, 1e-9);
  if (json) {
    const nlohmann::ordered_json report = {{"name", path},
                                           {"entries", imatrix.entries.size()},
                                           {"tokens", tokens},
                                           {"chunks", imatrix.chunk_count},
                                           {"seconds", seconds},
                                           {"ctx", imatrix.chunk_size},
                                           {"tokens_per_second", speed}};
    std::printf(
        "%s\n",
        report.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    return;
  }
  std::printf("%s: %zu tensors, %ld chunks of %ld tokens, %.1f s (%.0f tokens/s)\n", path.c_str(),
              imatrix.entries.size(), static_cast<long>(imatrix.chunk_count),
              static_cast<long>(imatrix.chunk_size), seconds, speed);
}

}  // namespace

int run_imatrix(int argc, char** argv) {
  cxxopts::Options options = make_options();
  const auto arguments = parse_arguments(options, argc, argv, kNotes);
  if (!arguments) return 0;
  const std::string model_path = model_argument(*arguments, "model", "MODEL.gguf");
  const std::string text = required(*arguments, "text", "TEXT");
  const std::string output = required(*arguments, "output", "-o FILE.gguf");
  const Device device = device_argument(*arguments);
  check_output(output, model_path);
  check_output(output, text);
  const PerplexityOptions chunking = {(*arguments)["ctx"].as<int64_t>(),
                                      (*arguments)["chunks"].as<int64_t>()};

  const GgufFile file = GgufFile::open(model_path);
  const auto tokenizer =
      with_frame(model_path, [&] { return Tokenizer::from_metadata(file.metadata()); });
  const auto chunks =
      with_frame(text, [&] { return perplexity_chunks(*tokenizer, read_file(text), chunking); });
  const auto model = load_model(file, torch_device(device));
  const auto start = std::chrono::steady_clock::now();
  Imatrix imatrix = with_frame(model_path, [&] { return collect_imatrix(*model, chunks); });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  imatrix.datasets = {text};
  imatrix.write(output);
  print(imatrix, output, seconds, arguments->count("json") > 0);
  return 0;
}

}  // namespace nibble
