// How a comparison is written: as JSON for a program, as a table for a person.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "eval/compare.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const ModelFigures& model) {
  return {{"name", model.name},
          {"path", model.path},
          {"bytes", model.bytes},
          {"bpw", model.bpw},
          {"ppl", model.ppl},
          {"ppl_err", model.ppl_err},
          {"ln_ppl_ratio", model.ln_ppl_ratio},
          {"ln_ppl_ratio_err", model.ln_ppl_ratio_err},
          {"mean_kld", model.mean_kld},
          {"mean_kld_err", model.mean_kld_err},
          {"median_kld", model.median_kld},
          {"p999_kld", model.p999_kld},
          {"max_kld", model.max_kld},
          {"rms_dp", model.rms_dp},
          {"rms_dp_err", model.rms_dp_err},
          {"same_top", model.same_top},
          {"same_top_err", model.same_top_err},
          {"tokens_per_second", model.tokens_per_second},
          {"seconds", model.seconds}};
}

Json json_of(const PairedDifference& difference) {
  return {{"a", difference.a},
          {"b", difference.b},
          {"mean_kld", difference.mean_kld},
          {"mean_kld_err", difference.mean_kld_err},
          {"ln_ppl_ratio", difference.ln_ppl_ratio},
          {"ln_ppl_ratio_err", difference.ln_ppl_ratio_err}};
}

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

std::string with_err(const char* pattern, double value, double err) {
  return format(pattern, value) + " +/- " + format(pattern, err);
}

/// A signed value with its error.
std::string change(double value, double err) {
  return format("%+.5f", value) + " +/- " + format("%.5f", err);
}

/// Columns as wide as their widest cell; the first is left-aligned.
std::string align(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string blanks(widths[i] - row[i].size(), ' ');
      text += i == 0 ? row[i] + blanks : "  " + blanks + row[i];
    }
    text += "\n";
  }
  return text;
}

// Pairs of more models are more lines than anybody reads.
constexpr size_t kMostModelsInPairs = 3;

/// Whose paired differences are shown where nobody is asked for; "": everybody's.
std::string closest_of_many(const Comparison& comparison) {
  if (comparison.models.size() <= kMostModelsInPairs) return "";
  const auto closest = std::min_element(
      comparison.models.begin(), comparison.models.end(),
      [](const ModelFigures& a, const ModelFigures& b) { return a.mean_kld < b.mean_kld; });
  return closest->name;
}

}  // namespace

std::string comparison_json(const Comparison& comparison) {
  Json json = {{"base", comparison.base},
               {"text", comparison.text},
               {"ctx", comparison.ctx},
               {"chunks", comparison.chunks},
               {"activations", activation_backend_name(comparison.activations)},
               {"tokens", comparison.tokens},
               {"base_ppl", comparison.base_ppl},
               {"base_ppl_err", comparison.base_ppl_err},
               {"base_ppl_16bit", comparison.base_ppl_16bit},
               {"peak_bytes", peak_memory_bytes()},
               {"models", Json::array()},
               {"differences", Json::array()},
               {"warnings", comparison.warnings}};
  for (const ModelFigures& model : comparison.models) json["models"].push_back(json_of(model));
  for (const PairedDifference& difference : comparison.differences)
    json["differences"].push_back(json_of(difference));
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string comparison_table(const Comparison& comparison, const std::string& asked) {
  const std::string about = asked.empty() ? closest_of_many(comparison) : asked;
  std::string text = concat("base ", comparison.base, ": PPL ",
                            with_err("%.4f", comparison.base_ppl, comparison.base_ppl_err), " (",
                            format("%.4f", comparison.base_ppl_16bit), " through 16 bits); ",
                            comparison.text, ", ", comparison.chunks, " chunks of ", comparison.ctx,
                            ", ", comparison.tokens, " tokens scored\n");
  if (comparison.activations != ActivationBackend::kNone)
    text += concat("activations rounded as ", activation_backend_name(comparison.activations),
                   " does; the base's are not\n");
  text += "\n";
  std::vector<std::vector<std::string>> rows = {{"model", "size", "bpw", "PPL", "ln PPL ratio",
                                                 "mean KLD", "99.9% KLD", "RMS dp %", "same top %",
                                                 "tokens/s"}};
  for (const ModelFigures& m : comparison.models)
    rows.push_back({m.name, format_bytes(m.bytes), format("%.3f", m.bpw),
                    with_err("%.4f", m.ppl, m.ppl_err),
                    with_err("%.5f", m.ln_ppl_ratio, m.ln_ppl_ratio_err),
                    with_err("%.5f", m.mean_kld, m.mean_kld_err), format("%.4f", m.p999_kld),
                    with_err("%.2f", 100 * m.rms_dp, 100 * m.rms_dp_err),
                    with_err("%.2f", 100 * m.same_top, 100 * m.same_top_err),
                    format("%.0f", m.tokens_per_second)});
  text += align(rows);
  for (const PairedDifference& d : comparison.differences) {
    if (!about.empty() && d.a != about && d.b != about) continue;
    text += concat("\n", d.a, " - ", d.b, ": mean KLD ", change(d.mean_kld, d.mean_kld_err),
                   ", ln PPL ratio ", change(d.ln_ppl_ratio, d.ln_ppl_ratio_err));
  }
  return text + (comparison.differences.empty() ? "" : "\n");
}

}  // namespace nibble
