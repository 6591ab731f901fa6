// report/index.html: one self-contained page (no script, no font and no picture from elsewhere)
// that shows what a run or a comparison found. `nibble run` fills everything. `nibble compare
// --report DIR` needs no more than
//   ReportData data;
//   data.comparison = comparison;
//   write_report(dir, data);
// since sections without data are left out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "eval/compare.h"
#include "eval/diagnosis.h"
#include "eval/export_matrix.h"

namespace nibble {

/// What a row of the comparison is; decides its colour.
enum class Role { kOther, kBaseline, kTrained, kSource };

struct ReportModel {
  std::string name;  // of the row in comparison.models
  Role role = Role::kOther;
  std::string note;  // one plain sentence, shown under the name; may be empty
};

/// One training step.
struct LossPoint {
  int64_t step = 0, tokens = 0;  // tokens: seen so far
  double loss = -1;              // -1: none, as at step 0, before training
  double held_out = -1;          // -1: not evaluated at this step
};

/// Distance of decoded weights from the original's: RMS of the difference over RMS of the original.
struct TensorError {
  std::string tensor, type;
  double baseline = 0, trained = 0;
};

/// The same block of weights in the original, the baseline's file and the trained file.
struct BlockSample {
  std::string tensor, type;
  int64_t row = 0, column = 0;  // of its first weight
  double codes_changed = 0;     // share of the whole tensor's codes that differ between the two
  std::vector<float> original, baseline, trained;  // weights
  std::vector<int> baseline_codes, trained_codes;  // weight = code * step + offset
  double baseline_step = 0, trained_step = 0, baseline_offset = 0, trained_offset = 0;
  int least_code = 0, most_code = 0;  // of the format
};

struct PromptAnswer {
  std::string model, text;
};
struct PromptAnswers {
  std::string prompt;
  std::vector<PromptAnswer> answers;  // the original's first
};

struct ReportFile {
  std::string name, path, sha256;
  int64_t bytes = 0;
};

struct ReportData {
  std::string model;     // "SmolLM2 135M Instruct"
  std::string type;      // "Q4_0"; empty: no training
  std::string baseline;  // row that the trained one is measured against
  std::string trained;
  std::string origin_note;  // a sentence on where the original comes from; may be empty
  Comparison comparison;
  std::optional<Comparison> against_control;  // its base: the same training without quantization
  std::string control_note;                   // why there is none; may be empty
  std::optional<ExportMatrix> matrix;
  std::vector<ReportModel> models;
  std::string loss_name = "training loss";  // "KL divergence from the original, nats per token"
  std::vector<LossPoint> losses;
  std::optional<Diagnosis> diagnosis;
  std::vector<TensorError> tensor_errors;
  std::vector<BlockSample> blocks;
  std::vector<PromptAnswers> prompts;
  std::string run_command;                                 // how llama.cpp runs the trained file
  std::vector<std::pair<std::string, std::string>> facts;  // versions, machine, times
  std::vector<ReportFile> files;
  std::string config;  // the resolved YAML
};

/// The page's headline: what training gained, lost, or left undecided against the baseline, in one
/// sentence of plain text.
std::string report_verdict(const ReportData& data);
/// The whole page. All text in `data` is escaped.
std::string report_html(const ReportData& data);
/// Writes DIR/index.html, making the folder; returns its path.
std::string write_report(const std::string& folder, const ReportData& data);

}  // namespace nibble
