// nibble run: a YAML file in; PTQ baselines, a trained and exported model, a page that compares.
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/processor.h"
#include "base/progress.h"
#include "base/threads.h"
#include "base/version.h"
#include "configs/config.h"
#include "eval/compare.h"
#include "eval/perplexity.h"
#include "eval/report.h"
#include "eval/report_tensors.h"
#include "export/export.h"
#include "export/sha256.h"
#include "io/atomic_file.h"
#include "model/generate.h"
#include "model/tokenizer.h"
#include "quant/fake/torch_device.h"
#include "quant/mix/file_type.h"
#include "quant/mix/importance.h"
#include "quant/mix/quantize_file.h"
#include "recipes/arguments.h"
#include "recipes/config_arguments.h"
#include "recipes/recipe.h"
#include "recipes/run_folder.h"
#include "recipes/run_self_text.h"
#include "training/calibrate.h"
#include "training/data.h"
#include "training/diagnosis.h"
#include "training/loss.h"
#include "training/model_file.h"
#include "training/name_patterns.h"
#include "training/teacher.h"
#include "training/trainer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// The type of most of a file's weights.
GgmlType main_type(const GgufFile& file) {
  std::map<GgmlType, int64_t> weights;
  for (const GgufTensor& tensor : file.tensors()) weights[tensor.type] += tensor.num_weights();
  GgmlType most = GgmlType::kF32;
  for (const auto& [type, count] : weights)
    if (count > weights[most]) most = type;
  return most;
}

constexpr const char* kControlRow = "control (trained, not quantized)";
constexpr const char* kControlPtqRow = "control, then PTQ (search)";

Plan plan_for(const GgufFile& file, const std::string& type) {
  PlanOptions options;
  options.type_name = type;
  options.allow_requantize = true;  // of a source that is decoded; the original itself is float32
  return make_plan(file, options);
}

/// Everything that the steps of a run hand on.
struct Run {
  RunConfig config;
  bool resume = false;         // go on with the training that the folder holds
  std::string resume_command;  // the line that does so
  std::string name;            // of the model
  std::string type;            // that it gets: "Q4_0"
  std::string original_path;   // float32
  GgmlType source_type = GgmlType::kF32;
  std::string control_path;           // float32; "": there is no control
  std::vector<CompareEntry> entries;  // rows of the comparison
  ReportData report;

  std::string path(const std::string& file) const { return config.output + '/' + file; }
  const Device& device() const { return config.train.device; }
  const std::string& init_file() const { return config.init_file(); }
  bool has_source_row() const { return original_path != config.model; }
  std::string original_name() const { return has_source_row() ? name + " F32" : name; }

  void add(const std::string& row, const std::string& file, Role role, const std::string& note) {
    entries.push_back({row, file});
    report.models.push_back({row, role, note});
  }
};

/// The original is float32: a quantized source is decoded first, so that every later step starts
/// from the same numbers.
void make_original(Run& run) {
  const GgufFile source = GgufFile::open(run.config.model);
  run.source_type = main_type(source);
  run.original_path = run.config.model;
  if (run.source_type == GgmlType::kF32) return;
  run.original_path = run.path("base-f32.gguf");
  quantize_file(source, plan_for(source, "F32"), EncodeMethod::kGgml, run.original_path);
  run.report.origin_note = concat("The source is itself a ", type_name(run.source_type),
                                  " file; what it decodes to is the original here.");
}

/// What a baseline's row says of it.
const char* baseline_note(const std::string& method) {
  static const std::map<std::string, const char*> kNotes = {
      {"ggml", "rounded: the bytes that llama-quantize writes"},
      {"search", "rounded, with scales found by search"},
      {"imatrix", "rounded, with scales by search that minds the training text's activations"},
      {"gptq", "rounded column by column, each making good for those before (GPTQ)"},
      {"awq", "rounded after its channels were scaled by their activations (AWQ)"},
      {"blockwise", "trained block by block to give what the unquantized block gives"},
      {"rtn", "rounded to nearest, scales from the range"}};
  return kNotes.at(method);
}

/// What calibrated baselines see: the text that training sees.
CalibrationText baseline_text(const Run& run, const GgufFile& original) {
  const TrainOptions& train = run.config.train;
  const std::vector<std::string>& methods = run.config.baselines;
  if (std::none_of(methods.begin(), methods.end(), is_calibrated)) return {};
  const TextData text = TextData::load(train.data, original.metadata(), train.seed);
  return {text.train, train.quant.calibration_tokens, train.seed};
}

void make_baselines(Run& run, const GgufFile& original, const Plan& plan) {
  if (!run.init_file().empty()) {
    run.report.baseline = fs::path(run.init_file()).stem().string();
    run.add(run.report.baseline, run.init_file(), Role::kBaseline,
            "the file whose scales are trained");
  }
  const CalibrationText text = baseline_text(run, original);
  for (const std::string& method : run.config.baselines) {
    const std::string file = run.path(concat(run.name, '-', run.type, '-', method, ".gguf"));
    if (is_calibrated(method))
      quantize_calibrated(original, plan, method, text, file);
    else
      quantize_file(original, plan, method_named(method), file, run.device());
    const bool first = run.report.baseline.empty();
    const std::string row = concat(run.type, ' ', method == "ggml" ? "llama-quantize" : method);
    run.add(row, file, first ? Role::kBaseline : Role::kOther, baseline_note(method));
    if (first) run.report.baseline = row;
  }
}

/// Trains, or goes on training; a run that was stopped ends here.
TrainResult train_model(const Run& run, const RunConfig& config, const GgufFile& original,
                        const Plan& plan) {
  const TrainResult result = train(original, plan, config.train, config.output, run.resume);
  if (result.stopped)
    fail("stopped after step ", result.steps, "; go on with: ", run.resume_command);
  // Accepted: where what follows the training was changed meanwhile, the folder says so too.
  if (run.resume) write_file(run_config_path(config.output), config_yaml(config));
  return result;
}

/// The same training without quantization: the same text and as many steps, in a folder of its own.
RunConfig control_config(const Run& run, const TrainResult& trained) {
  RunConfig config = run.config;
  config.output = run.path("control");
  config.model = run.original_path;
  config.mix = {};
  config.compare = {};
  config.prompts = {};
  config.train.quant = {};
  config.train.quant.type = "none";
  if (config.train.max_minutes > 0) {  // a step without quantization takes another time
    config.train.max_minutes = 0;
    config.train.max_tokens = trained.tokens;
  }
  return config;
}

/// Trains and rounds the control, unless it would be the original itself.
void make_control(Run& run, const GgufFile& original, const TrainResult& trained) {
  if (loss_shares(run.config.train.loss).ce == 0) {
    run.report.control_note =
        "No control was trained: without quantization the loss, the KL divergence from the "
        "original, is 0 from the first step on, so the control is the original itself. With "
        "loss.kind ce or mix there is one.";
    note(run.report.control_note);
    return;
  }
  const RunConfig config = control_config(run, trained);
  const Plan plan = make_plan(original, plan_options(config));
  start_run_folder(config.output, config_yaml(config), plan.to_json(), run.resume);
  const TrainResult result =
      with_frame("control", [&] { return train_model(run, config, original, plan); });
  const std::string stem = concat(config.output, '/', run.name, "-control");
  run.control_path = stem + "-F32.gguf";
  ExportInfo info;
  info.method = "training";
  info.config_hash = sha256_file(run_config_path(config.output));
  export_checkpoint(original, plan, result.best_checkpoint, run.control_path, info);
  run.add(kControlRow, run.control_path, Role::kOther,
          concat("the same training without quantization, ", format_duration(result.seconds)));

  const GgufFile control = GgufFile::open(run.control_path);
  const std::string file = concat(stem, '-', run.type, "-search.gguf");
  quantize_file(control, run_plan(run.config, control), EncodeMethod::kSearch, file, run.device());
  run.add(kControlPtqRow, file, Role::kOther, "the control, rounded with scales found by search");
  run.entries.back().trained = true;
  run.report.facts.emplace_back("Control", concat(result.steps, " steps; taken: step ",
                                                  result.best_step, ", lowest held-out loss"));
}

std::string loss_name(const TrainOptions& options) {
  if (options.loss.kind == "ce") return "Cross-entropy, nats per token";
  if (options.loss.kind == "mix")
    return "KL divergence and cross-entropy, weighted, nats per token";
  const std::string of_tokens =
      options.loss.teacher_top_k == 0
          ? ""
          : concat(" of its ", options.loss.teacher_top_k, " likeliest tokens and the rest");
  return concat("KL divergence from the ", options.teacher.empty() ? "original" : "teacher",
                "’s predictions", of_tokens, ", nats per token");
}

std::string train_and_export(Run& run, const GgufFile& original, const Plan& plan) {
  const TrainResult result = train_model(run, run.config, original, plan);
  for (const StepMetrics& m : read_metrics(run.config.output))
    run.report.losses.push_back({m.step, m.tokens, m.step > 0 ? m.loss : -1.0, m.held_out_loss});
  run.report.diagnosis = diagnose_run(original, run.config.train, run.config.output, result);
  run.report.loss_name = loss_name(run.config.train);
  const bool scales_only = run.config.train.quant.weights == "scales";
  const std::string file = run.path(concat(run.name, '-', run.type, "-trained.gguf"));
  ExportInfo info;
  if (scales_only) info.method = "scales";
  info.config_hash = sha256_file(run_config_path(run.config.output));
  if (run.init_file().empty())
    export_checkpoint(original, plan, result.best_checkpoint, file, info);
  else
    export_checkpoint(GgufFile::open(run.init_file()), plan, result.best_checkpoint, file, info);
  run.report.trained = run.type + " trained";
  run.add(run.report.trained, file, Role::kTrained,
          concat("the same grid and size, ", scales_only ? "scales trained for " : "trained for ",
                 format_duration(result.seconds)));
  run.report.facts.emplace_back(
      "Training", concat(result.steps, " steps, ", result.tokens, " tokens in ",
                         format_duration(result.seconds), "; shipped: step ", result.best_step,
                         ", lowest held-out loss"));
  if (run.config.control) make_control(run, original, result);
  return file;
}

/// The source's own file, llama-quantize's files of other types, and what the configuration adds.
void add_other_rows(Run& run, const GgufFile& original) {
  if (run.has_source_row())
    run.add(concat("source file (", type_name(run.source_type), ')'), run.config.model,
            Role::kSource,
            "the file this began with: its numbers are the original, so its distance is 0");
  for (const std::string& type : run.config.compare.types) {
    const std::string file = run.path(concat(run.name, '-', type, "-ggml.gguf"));
    quantize_file(original, plan_for(original, type), EncodeMethod::kGgml, file, run.device());
    run.add(type + " llama-quantize", file, Role::kOther, "rounded, another type");
  }
  for (const std::string& path : run.config.compare.also)
    run.add(fs::path(path).stem().string(), path, Role::kOther, "");
}

/// The comparison and what else the run found, one JSON object.
std::string run_json(const Run& run) {
  using Json = nlohmann::ordered_json;
  Json json = Json::parse(comparison_json(run.report.comparison));
  if (run.report.diagnosis) json["diagnosis"] = Json::parse(diagnosis_json(*run.report.diagnosis));
  if (run.report.against_control)
    json["control"] = Json::parse(comparison_json(*run.report.against_control));
  else if (!run.report.control_note.empty())
    json["control"] = {{"note", run.report.control_note}};
  if (run.report.matrix) json["matrix"] = Json::parse(export_matrix_json(*run.report.matrix));
  return json.dump(2);
}

/// The trained file and those it is measured against, with the control in the original's place.
void compare_with_control(Run& run, const PerplexityOptions& options) {
  std::vector<CompareEntry> entries = {{run.original_name(), run.original_path, true}};
  for (const CompareEntry& entry : run.entries)
    if (entry.name == run.report.trained || entry.name == run.report.baseline ||
        entry.name == kControlPtqRow)
      entries.push_back({entry.name, entry.path, true});
  run.report.against_control =
      compare({kControlRow, run.control_path}, entries, run.config.compare.text, options);
}

/// The masters of the checkpoint that ships, as float32: what is released of a model trained for a
/// type so that others quantize it.
std::string write_masters(const Run& run, const std::string& folder) {
  const Checkpoint checkpoint = load_checkpoint(run_checkpoint_path(run.config.output, ""));
  std::vector<TrainedTensor> masters = checkpoint.tensors;
  for (TrainedTensor& tensor : masters) tensor.type = GgmlType::kF32;
  const GgufFile original = GgufFile::open(run.original_path);
  const std::string path = folder + "/masters.gguf";
  create_folders(folder);
  write_model_file(path, original, plan_for(original, "F32"), masters);
  return path;
}

void measure_matrix(Run& run, const PerplexityOptions& options) {
  const std::string folder = run.path("matrix");
  const CompareEntry original = {run.original_name(), run.original_path};
  std::vector<CompareEntry> states = {original};
  states.push_back({run.report.trained + ", masters", write_masters(run, folder)});
  for (const CompareEntry& entry : run.entries)
    if (entry.name == run.report.trained || entry.name == kControlRow) states.push_back(entry);
  run.report.matrix = measure_export_matrix(original, states, run.config.compare.matrix, folder,
                                            run.config.compare.text, options);
  fs::remove_all(folder);
}

void compare_all(Run& run) {
  const CompareOptions& options = run.config.compare;
  const PerplexityOptions measure = {options.ctx, options.chunks, run.device(),
                                     parse_activation_backend(run.config.train.quant.activations)};
  run.report.comparison =
      compare({run.original_name(), run.original_path}, run.entries, options.text, measure);
  if (!run.control_path.empty()) compare_with_control(run, measure);
  if (!options.matrix.empty()) measure_matrix(run, measure);
  write_file(run.path("comparison.json"), run_json(run));
}

/// Answers of the original, the baselines and the trained model.
void answer_prompts(Run& run) {
  if (run.config.prompts.empty()) return;
  std::vector<CompareEntry> entries = {{run.original_name(), run.original_path}};
  for (const CompareEntry& entry : run.entries) {
    entries.push_back(entry);
    if (entry.name == run.report.trained) break;
  }
  for (const std::string& prompt : run.config.prompts) run.report.prompts.push_back({prompt, {}});
  Progress bar("Answering prompts", static_cast<int64_t>(entries.size()), "models");
  int64_t done = 0;
  for (const CompareEntry& entry : entries) {
    const GgufFile file = GgufFile::open(entry.path);
    const auto model = load_model(file, torch_device(run.device()));
    const auto tokenizer = Tokenizer::from_metadata(file.metadata());
    for (PromptAnswers& prompt : run.report.prompts) {
      const auto ids = tokenizer->encode(prompt.prompt, true, true);
      const auto answer =
          generate(*model, *tokenizer, ids, {.max_tokens = run.config.prompt_tokens});
      prompt.answers.push_back({entry.name, tokenizer->decode(answer)});
    }
    bar.update(++done);
  }
}

/// What llama.cpp's own program is called with: a chat for a model that has a template, else a
/// continuation.
std::string run_command(const GgufMetadata& metadata, const std::string& path) {
  const bool chats = metadata.contains("tokenizer.chat_template");
  return chats ? "llama-cli -m " + path
               : "llama-completion -m " + path + " -no-cnv -n 64 -p \"Once upon a time\"";
}

void add_facts(Run& run, const std::string& trained_path, double seconds) {
  ReportData& report = run.report;
  std::string texts;
  for (const std::string& file : run.config.train.data.files)
    texts += (texts.empty() ? "" : ", ") + file;
  report.facts.emplace_back("Trained on", texts);
  report.facts.emplace_back("Compared on", run.config.compare.text);
  report.facts.emplace_back(run.resume ? "Since it was resumed" : "Whole run",
                            format_duration(seconds));
  report.facts.emplace_back("Machine", concat(processor_name(), ", ", num_threads(), " threads"));
  if (run.device().cuda) report.facts.emplace_back("Device", device_name(run.device()));
  report.facts.emplace_back("nibble", kProgramVersion);
  report.facts.emplace_back("LibTorch", TORCH_VERSION);
  report.files.push_back({"source", run.config.model, sha256_file(run.config.model),
                          static_cast<int64_t>(fs::file_size(run.config.model))});
  report.files.push_back({report.trained, trained_path, sha256_file(trained_path),
                          static_cast<int64_t>(fs::file_size(trained_path))});
  report.config = config_yaml(run.config);
}

/// The files' own figures, provenance, and the page itself; returns its path.
std::string make_report(Run& run, const GgufFile& original, const std::string& trained_path,
                        double seconds) {
  const GgufFile trained = GgufFile::open(trained_path);
  for (const CompareEntry& entry : run.entries) {
    if (entry.name != run.report.baseline) continue;
    const GgufFile baseline = GgufFile::open(entry.path);
    run.report.tensor_errors = measure_tensor_errors(original, baseline, trained);
    if (auto block = sample_block(original, baseline, trained)) run.report.blocks = {*block};
  }
  run.report.run_command = run_command(trained.metadata(), trained_path);
  add_facts(run, trained_path, seconds);
  return write_report(run.path("report"), run.report);
}

void check_runnable(const RunConfig& config) {
  if (config.makes_model())
    fail_usage("new_model: an untrained model is nothing to compare with; use nibble train");
  if (config.train.quant.type == "none")
    fail_usage("quant.type is none: there is nothing to compare; use nibble train");
  if (config.compare.text.empty())
    fail_usage("compare.text is missing: nibble run compares on a text that training does not see");
}

void check_plan(const RunConfig& config, const GgufFile& source) {
  const bool repairs = !config.init_file().empty();
  const Plan plan = with_frame(repairs ? "" : "quant", [&] { return run_plan(config, source); });
  if (repairs) check_model(GgufFile::open(config.init_file()));
  with_frame("quant.frozen", [&] { NamePatterns(config.train.quant.frozen).check_all_name(plan); });
  // Codes that are kept may be of types that nibble only decodes.
  if (!repairs || !config.baselines.empty())
    with_frame(repairs ? "baselines" : "quant", [&] { check_encodable(plan); });
}

/// A model that nibble cannot run, a type that it cannot write and texts that are too short stop
/// the run here, before it writes anything.
void check_inputs(const RunConfig& config) {
  const GgufFile source = GgufFile::open(config.model);
  check_model(source);
  check_plan(config, source);
  if (!config.train.teacher.empty())
    with_frame("teacher", [&] { check_teacher(config.train.teacher, source); });
  for (const auto& [key, types] : {std::pair{"compare.types", &config.compare.types},
                                   {"compare.matrix", &config.compare.matrix}})
    for (const std::string& type : *types)
      with_frame(key, [&] {
        const Plan plan = plan_for(source, type);
        check_encodable(plan);
        check_importance(plan, nullptr);
      });
  const auto tokenizer =
      with_frame(config.model, [&] { return Tokenizer::from_metadata(source.metadata()); });
  if (!config.writes_text())
    with_frame("data.files",
               [&] { TextData::load(config.train.data, source.metadata(), config.train.seed); });
  with_frame(config.compare.text, [&] {
    perplexity_chunks(*tokenizer, read_file(config.compare.text),
                      {config.compare.ctx, config.compare.chunks});
  });
}

/// Runs the whole configuration; returns the page's path.
std::string run_all(Run& run) {
  const auto start = std::chrono::steady_clock::now();
  convert_model(run.config, run.resume);
  check_inputs(run.config);
  create_folders(run.config.output);
  run.name = run.report.model = model_name(run.config.model);

  make_original(run);
  const GgufFile original = GgufFile::open(run.original_path);
  const Plan plan = run_plan(run.config, original);
  run.type = run.report.type =
      run.init_file().empty() ? run.config.train.quant.type : plan.type_name;
  const bool has_text = has_self_text(run.config, run.resume);
  start_run_folder(run.config.output, config_yaml(run.config), plan.to_json(), run.resume);
  make_self_text(run.config.train, run.config.self, original, run.config.output, has_text);
  make_baselines(run, original, plan);
  const std::string trained_path = train_and_export(run, original, plan);
  add_other_rows(run, original);
  compare_all(run);
  answer_prompts(run);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return make_report(run, original, trained_path, seconds);
}

}  // namespace

int run_run(int argc, char** argv) {
  cxxopts::Options options(
      "nibble run",
      "Baselines, training, export, comparison and a report. Ctrl-C (and SIGTERM) in the training\n"
      "finishes the step, writes a checkpoint and says how to go on; a second one ends at once.\n");
  options.positional_help("CONFIG.yaml");
  options.add_options("arguments")("config", "", cxxopts::value<std::string>());
  options.add_options()("set", "a setting that wins over the file's; may be repeated",
                        cxxopts::value<std::string>(), "KEY=VALUE");
  options.add_options()("resume", "go on with a stopped run's training, then do the rest")(
      "dry-run", "only say what the training will take, as nibble train --dry-run does");
  add_device_option(options, "quantizes, trains and compares");
  options.add_options()(
      "json", "comparison and diagnosis as one JSON object on stdout; of a dry run what it says");
  options.parse_positional({"config"});
  const auto arguments = parse_arguments(options, argc, argv);
  if (!arguments) return 0;
  Run run;
  run.resume = arguments->count("resume") > 0;
  run.resume_command = resume_command(argc, argv);
  run.config =
      load_config(required(*arguments, "config", "CONFIG.yaml"), config_overrides(*arguments));
  run.config.train.device = device_argument(*arguments);
  check_runnable(run.config);
  if (forecast_instead(*arguments, run.config)) return 0;
  const std::string page = run_all(run);
  if (arguments->count("json") > 0) {
    std::printf("%s\n", run_json(run).c_str());
    return 0;
  }
  std::printf("%s\n%s\n", comparison_table(run.report.comparison, run.report.trained).c_str(),
              report_verdict(run.report).c_str());
  if (run.report.against_control)
    std::printf("\n%s\n",
                comparison_table(*run.report.against_control, run.report.trained).c_str());
  if (run.report.matrix) std::printf("\n%s", export_matrix_text(*run.report.matrix).c_str());
  if (run.report.diagnosis) std::printf("%s\n", diagnosis_line(*run.report.diagnosis).c_str());
  std::printf("\nlook at   %s\nrun it    %s\n", page.c_str(), run.report.run_command.c_str());
  return 0;
}

}  // namespace nibble
