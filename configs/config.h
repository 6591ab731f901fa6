// The configuration of a whole run: a YAML file, typed. Each part declares its own options struct
// (training/trainer.h); this folder only fills them. Every mistake is an Error (usage) with line,
// column and key: an unknown key (with the nearest known one), a wrong type, a number out of range,
// a file that is not there, and a setting that the rest of the configuration would ignore.
//
// Paths are taken from the current folder, as on a command line; a file that is not there is looked
// for beside the YAML file. `output` is always taken from the current folder. Nothing is expanded
// but data.files' globs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/new_model.h"
#include "quant/mix/plan.h"
#include "training/self_text.h"
#include "training/trainer.h"

namespace nibble {

struct CompareOptions {
  std::string text;     // held-out text on which all models are measured
  int64_t ctx = 512;    // tokens per chunk
  int64_t chunks = -1;  // of the text; -1: all
  std::vector<std::string>
      types;                      // llama-quantize's files of other types, for quality against size
  std::vector<std::string> also;  // paths of more GGUF files to put in the table
  std::vector<std::string> matrix;  // types that the trained model is exported as by search too
};

/// Which tensor gets which type, where llama-quantize's rules for quant.type are not wanted.
struct MixOptions {
  bool pure = false;               // every matrix gets the type itself
  std::string output_tensor_type;  // "": by the rules
  std::string token_embedding_type;
  std::vector<std::string> tensor_type;  // NAME=TYPE, as --tensor-type takes it; the first holds
  std::string tensor_types;              // path of a file of such, after those; "": none
};

struct RunConfig {
  std::string name;           // default: the YAML file's name without its ending
  std::string model;          // a GGUF file, a Hugging Face folder, or "": new_model
  std::string adapter;        // folder of a PEFT adapter of the latter; "": none
  bool mtp = false;           // convert the latter with its layers that predict further tokens
  NewModelOptions new_model;  // what to make and train from scratch
  SelfTextOptions self;       // of the entry "self" in data.files
  MixOptions mix;             // its keys stand under quant
  std::string output;         // folder of the run; default: runs/<name>
  TrainOptions
      train;  // its keys stand at the top level: quant, data, loss, optimizer, batch_tokens, ...
  std::vector<std::string> baselines = {"ggml", "search"};  // PTQ methods under the same plan
  bool control = false;  // the same training without quantization, and its PTQ, as rows beside it
  CompareOptions compare;
  std::vector<std::string> prompts;  // answered by each model in the report
  int64_t prompt_tokens = 48;        // length of an answer

  bool makes_model() const { return model.empty(); }
  /// Whether the model writes some of the training text, or has written it.
  bool writes_text() const;
  /// A file whose codes and scales are the start; "": none.
  const std::string& init_file() const { return train.quant.init_file; }
};

/// "optimizer.learning_rate=3e-4": the value is YAML, so a list is [a, b]. Wins over the file.
using ConfigOverride = std::string;

RunConfig load_config(const std::string& path, const std::vector<ConfigOverride>& overrides = {});
/// As load_config, from text. `origin` names it in errors; files are also looked for in its folder.
RunConfig parse_config(const std::string& text, const std::string& origin,
                       const std::vector<ConfigOverride>& overrides = {});

/// What make_plan() wants for the type that is trained.
PlanOptions plan_options(const RunConfig& config);
/// The plan of the run whose model is `source`: by plan_options(), or that of init.file.
Plan run_plan(const RunConfig& config, const GgufFile& source);

/// The resolved configuration as YAML, every setting that has an effect: load_config() gives the
/// same config again.
std::string config_yaml(const RunConfig& config);

/// Every key with its default, for --help and the tests.
std::vector<std::string> config_keys();

}  // namespace nibble
