// nibble export: a run's checkpoint as the GGUF file that ships.
#include "export/export.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "configs/config.h"
#include "export/masters.h"
#include "export/modelfile.h"
#include "export/sha256.h"
#include "io/atomic_file.h"
#include "model/hf/write_folder.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"
#include "recipes/run_folder.h"

namespace nibble {
namespace {

constexpr const char* kExamples =
    "\nEvery tensor's blocks are decoded and compared, bit for bit, with the weights the "
    "checkpoint\n"
    "was evaluated with; the file gets its name only when all of them are equal.\n"
    "\nexamples:\n"
    "  nibble export runs/demo model.gguf\n"
    "  nibble export runs/demo model.gguf --checkpoint last\n"
    "  nibble export runs/demo model.gguf --ollama          and: ollama create NAME -f Modelfile\n"
    "  nibble export runs/demo model.gguf --hf FOLDER --like models/SmolLM2-135M   for "
    "transformers\n"
    "  nibble export model.gguf --hf FOLDER --like models/SmolLM2-135M\n"
    "  nibble export runs/demo masters.gguf --masters       the float32 weights behind the "
    "rounding\n"
    "  nibble verify model.gguf --against runs/demo         the same comparison, afterwards\n";

void print_stats(const ExportStats& stats, const std::string& path, bool as_json) {
  if (as_json) {
    const nlohmann::ordered_json json = {{"path", path},
                                         {"tensors", stats.num_tensors},
                                         {"trained", stats.num_trained},
                                         {"weights_checked", stats.weights_checked},
                                         {"bytes", stats.file_bytes},
                                         {"bpw", stats.bits_per_weight},
                                         {"seconds", stats.seconds}};
    std::printf("%s\n", json.dump(2).c_str());
    return;
  }
  std::printf(
      "%s: %s, %.3f bits per weight, %lld tensors (%lld trained); all %lld weights are those that "
      "were trained, bit for bit\n",
      path.c_str(), format_bytes(stats.file_bytes).c_str(), stats.bits_per_weight,
      static_cast<long long>(stats.num_tensors), static_cast<long long>(stats.num_trained),
      static_cast<long long>(stats.weights_checked));
}

/// Writes the Modelfile beside the file and says what to do with it.
void write_modelfile(const std::string& gguf_path) {
  const std::filesystem::path path(gguf_path), beside = path.parent_path() / "Modelfile";
  std::string problem;
  write_file(beside.string(),
             modelfile(GgufFile::open(gguf_path), path.filename().string(), problem));
  if (!problem.empty()) note(beside.string(), ": ", problem);
  note("ollama create ", path.stem().string(), " -f ", beside.string());
}

// The file that gives metadata and what was not trained: that of which the run trained the scales,
// else the float32 file that it made to start from, else the model its configuration names.
std::string source_path(const std::string& run_dir, const Checkpoint& checkpoint) {
  const auto options = nlohmann::json::parse(checkpoint.options_json);
  const std::string init_file = options.at("quant").value("init_file", "");
  if (!init_file.empty()) return init_file;
  if (std::filesystem::exists(run_original_path(run_dir))) return run_original_path(run_dir);
  if (!std::filesystem::exists(run_config_path(run_dir)))
    fail_usage(run_dir, " has no config.yaml that would name the source model; give --source");
  return load_config(run_config_path(run_dir)).model;
}

/// nibble.method of the file.
std::string method_of(const Checkpoint& trained, bool of_masters) {
  if (of_masters) return "masters";
  if (trained.plan.type_name == "F32") return "training";
  return trained.has_stored_codes() ? "scales" : "qat";
}

/// "5GB", "200MB" or a number of bytes, as transformers' save_pretrained() takes it.
int64_t shard_bytes(const std::string& text) {
  size_t used = 0;
  double number = 0;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
  }
  const std::string unit = text.substr(used);
  const double scale = unit == "GB" ? 1e9 : unit == "MB" ? 1e6 : unit == "KB" ? 1e3 : 1;
  const bool known = unit.empty() || scale > 1;
  if (used == 0 || !known || !(number * scale >= 1 && number * scale < 1e18))
    fail_usage("--max-shard-size wants a size like 5GB, found '", text, "'");
  return static_cast<int64_t>(number * scale);
}

GgmlType dtype_argument(const std::string& name) {
  if (name == "float32") return GgmlType::kF32;
  if (name == "float16") return GgmlType::kF16;
  if (name == "bfloat16") return GgmlType::kBF16;
  fail_usage("--dtype wants float32, float16 or bfloat16, found '", name, "'");
}

/// The folder's arguments, checked before anything is written; nothing without --hf.
std::optional<HfWriting> hf_arguments(const cxxopts::ParseResult& arguments) {
  const bool wanted = arguments.count("hf") > 0;
  for (const char* name : {"like", "dtype", "max-shard-size"})
    if (!wanted && arguments.count(name) > 0) fail_usage("--", name, " goes with --hf");
  if (!wanted) return std::nullopt;
  return HfWriting{model_argument(arguments, "like", "--like FOLDER, of the same model"),
                   dtype_argument(arguments["dtype"].as<std::string>()),
                   shard_bytes(arguments["max-shard-size"].as<std::string>())};
}

void write_folder(const std::string& gguf_path, const std::string& out, const HfWriting& writing) {
  const HfWritten written = write_hf_folder(GgufFile::open(gguf_path), out, writing);
  note(out, ": ", written.num_tensors, " tensors in ", written.num_files, " files, ",
       format_bytes(written.bytes), ", what ", gguf_path, " decodes to");
}

}  // namespace

int run_export(int argc, char** argv) {
  cxxopts::Options options("nibble export",
                           "The GGUF file of a run: what was trained, bit for bit.");
  options.positional_help("RUN_DIR OUT.gguf");
  options.add_options("arguments")("run", "", cxxopts::value<std::string>());
  options.add_options("arguments")("out", "", cxxopts::value<std::string>());
  options.add_options()("checkpoint", "best (lowest held-out loss; the default) or last",
                        cxxopts::value<std::string>(), "best|last");
  options.add_options()("source", "the model that was trained, where the run folder does not say",
                        cxxopts::value<std::string>(), "FILE.gguf");
  options.add_options()("ollama",
                        "also a Modelfile beside the file: template, stop words, sampling");
  options.add_options()("masters",
                        "what was trained, before its rounding, as float32: not what ships");
  add_part_size_option(options);
  options.add_options()("hf", "also a Hugging Face folder of the same weights",
                        cxxopts::value<std::string>(), "FOLDER");
  options.add_options()("like", "--hf: the folder of the model it was, for all but the weights",
                        cxxopts::value<std::string>(), "FOLDER");
  options.add_options()("dtype", "--hf: float32, which holds every weight; float16 or bfloat16",
                        cxxopts::value<std::string>()->default_value("float32"), "TYPE");
  options.add_options()("max-shard-size", "--hf: bytes of a file at most",
                        cxxopts::value<std::string>()->default_value("5GB"), "SIZE");
  options.add_options()("json", "one JSON object on stdout");
  options.parse_positional({"run", "out"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;

  const std::string run_dir = required(*arguments, "run", "RUN_DIR");
  const auto writing = hf_arguments(*arguments);
  if (writing && arguments->count("out") == 0 && std::filesystem::is_regular_file(run_dir)) {
    write_folder(run_dir, (*arguments)["hf"].as<std::string>(), *writing);
    return 0;
  }
  const std::string out_path = required(*arguments, "out", "OUT.gguf");
  const std::string path = run_checkpoint_path(run_dir, text_or_empty(*arguments, "checkpoint"));
  const std::string config_path = run_config_path(run_dir);
  const std::string given_source = text_or_empty(*arguments, "source");
  const Checkpoint trained = load_checkpoint(path);
  const GgufFile source =
      GgufFile::open(given_source.empty() ? source_path(run_dir, trained) : given_source);
  const bool of_masters = arguments->count("masters") > 0;

  ExportInfo info;
  if (std::filesystem::exists(config_path)) info.config_hash = sha256_file(config_path);
  info.method = method_of(trained, of_masters);
  info.max_part_bytes = part_size_argument(*arguments);
  const ExportStats stats = with_frame(path, [&] {
    const Checkpoint checkpoint = of_masters ? masters_of(trained) : trained;
    return export_checkpoint(source, checkpoint.plan, checkpoint, out_path, info);
  });
  print_stats(stats, stats.paths.front(), arguments->count("json") > 0);
  if (arguments->count("ollama") > 0) write_modelfile(stats.paths.front());
  if (writing) write_folder(stats.paths.front(), (*arguments)["hf"].as<std::string>(), *writing);
  return 0;
}

}  // namespace nibble
