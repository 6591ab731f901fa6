#include "eval/report_diagnosis.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "eval/report_charts.h"
#include "eval/report_svg.h"
#include "eval/report_table.h"

namespace nibble {
namespace {

constexpr TableColumn kColumns[] = {
    {"Codes moved", "share that differs from step 0; bars: layer by layer"},
    {"Output error", "of the matmul, squared, against the original on held-out text"},
    {"Weight error", "squared, relative to the weights"},
    {"Clamped", "weights outside the range of their scales"},
    {"At floor", "groups whose scale cannot get smaller"},
};

/// All tensors of one kind, those of the layers in the order of the layers.
struct Kind {
  std::string name;
  Diagnosis part;
};

std::vector<Kind> kinds_of(const Diagnosis& diagnosis) {
  std::vector<Kind> kinds;
  for (const TensorDiagnosis& tensor : diagnosis.tensors) {
    std::string name = tensor.tensor;
    int layer = 0;
    if (!split_tensor_name(tensor.tensor, &name, &layer) && name.ends_with(".weight"))
      name.resize(name.size() - 7);
    auto kind = std::find_if(kinds.begin(), kinds.end(),
                             [&](const Kind& known) { return known.name == name; });
    if (kind == kinds.end()) kind = kinds.insert(kinds.end(), Kind{name, {}});
    kind->part.tensors.push_back(tensor);
  }
  const auto layer_of = [](const TensorDiagnosis& tensor) {
    std::string name;
    int layer = 0;
    split_tensor_name(tensor.tensor, &name, &layer);
    return layer;
  };
  for (Kind& kind : kinds)
    std::stable_sort(kind.part.tensors.begin(), kind.part.tensors.end(),
                     [&](const auto& a, const auto& b) { return layer_of(a) < layer_of(b); });
  return kinds;
}

std::string weight_count(int64_t weights) {
  return weights >= 1'000'000 ? three_digits(static_cast<double>(weights) / 1e6) + " M weights"
                              : concat(weights, " weights");
}

/// "Q4_0, Q6_K · 30 tensors · 9.95 M weights"
std::string kind_note(const Kind& kind) {
  std::set<std::string> types;
  for (const TensorDiagnosis& tensor : kind.part.tensors) types.insert(tensor.type);
  std::string note;
  for (const std::string& type : types) note += (note.empty() ? "" : ", ") + type;
  const size_t count = kind.part.tensors.size();
  if (count > 1) note += concat(" · ", count, " tensors");
  return note + " · " + weight_count(kind.part.total().weights);
}

/// A bar a layer, of the share of codes that moved; `most` is as high as the picture.
std::string layer_bars(const Kind& kind, double most) {
  constexpr double kWidth = 130, kHeight = 24;
  const std::vector<TensorDiagnosis>& tensors = kind.part.tensors;
  if (tensors.size() < 2 || most <= 0) return "";
  Svg svg(kWidth, kHeight, kind.name + ": share of codes that moved, by layer", "layers");
  const double step = kWidth / static_cast<double>(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const double height = kHeight * share_of(tensors[i].moved, tensors[i].weights) / most;
    svg.rect(static_cast<double>(i) * step, kHeight - height, step * 0.8, height, "");
  }
  return svg.finish();
}

std::string bar(double value, double most, const char* role) {
  const double width = most > 0 ? std::clamp(value / most, 0.0, 1.0) : 0.0;
  return concat("<span class=\"bar thin ", role, "\"><span style=\"width:", fixed(100 * width, 1),
                "%\"></span></span>");
}

std::string was(const std::string& before) { return "was " + before; }

std::string output_cell(const TensorDiagnosis& all, double most) {
  if (all.output_error < 0) return figure_cell(kColumns[1], "–");
  return figure_cell(kColumns[1],
                     number(all.output_error, three_digits(all.output_error)) +
                         bar(all.output_error_start, most, "baseline") +
                         bar(all.output_error, most, "trained"),
                     was(three_digits(all.output_error_start)));
}

std::string kind_row(const Kind& kind, double most_moved, double most_error) {
  const TensorDiagnosis all = kind.part.total();
  const double moved = share_of(all.moved, all.weights);
  const auto shares = [](const TableColumn& column, int64_t before, int64_t after, int64_t whole) {
    return figure_cell(column, number(share_of(after, whole), percent(share_of(after, whole), 1)),
                       was(percent(share_of(before, whole), 1)));
  };
  return open_row(kind.name, "", kind_note(kind)) +
         figure_cell(kColumns[0], number(moved, percent(moved, 1)) + layer_bars(kind, most_moved)) +
         output_cell(all, most_error) +
         figure_cell(kColumns[2], number(all.weight_error, three_digits(all.weight_error)),
                     was(three_digits(all.weight_error_start))) +
         shares(kColumns[3], all.clamped_start, all.clamped, all.weights) +
         shares(kColumns[4], all.floored_start, all.floored, all.groups) + close_row();
}

std::string every_tensor(const Diagnosis& diagnosis) {
  std::string out =
      "<details><summary>Every tensor</summary>\n<div class=\"scroll\"><table class=\"numbers\">"
      "<thead><tr><th scope=\"col\">tensor</th><th scope=\"col\">type</th>"
      "<th scope=\"col\">codes moved</th><th scope=\"col\">output error, step 0</th>"
      "<th scope=\"col\">output error</th><th scope=\"col\">weight error, step 0</th>"
      "<th scope=\"col\">weight error</th><th scope=\"col\">clamped</th>"
      "<th scope=\"col\">at floor</th></tr></thead><tbody>\n";
  const auto error = [](double value) { return value < 0 ? "–" : three_digits(value); };
  for (const TensorDiagnosis& t : diagnosis.tensors)
    out += concat("<tr><td>", escape_html(t.tensor), "</td><td>", escape_html(t.type), "</td><td>",
                  percent(share_of(t.moved, t.weights), 1), "</td><td>",
                  error(t.output_error_start), "</td><td>", error(t.output_error), "</td><td>",
                  three_digits(t.weight_error_start), "</td><td>", three_digits(t.weight_error),
                  "</td><td>", percent(share_of(t.clamped, t.weights), 1), "</td><td>",
                  percent(share_of(t.floored, t.groups), 1), "</td></tr>\n");
  return out + "</tbody></table></div></details>\n";
}

}  // namespace

std::string diagnosis_lede(const Diagnosis& diagnosis) {
  const TensorDiagnosis all = diagnosis.total();
  std::string text = concat(
      "From step 0 to step ", diagnosis.step, ", which ships, <b class=\"trained\">",
      percent(share_of(all.moved, all.weights), 1), "</b> of the codes came to another value. ");
  if (all.output_error >= 0)
    text += concat("Fed with what the original feeds it (", diagnosis.tokens,
                   " held-out tokens), a matmul’s output is off by <b class=\"baseline\">",
                   three_digits(all.output_error_start),
                   "</b> at step 0 and by <b class=\"trained\">", three_digits(all.output_error),
                   "</b> at the end, on average: squared and relative. It may well rise: the "
                   "model as a whole is what was trained.");
  return text;
}

std::string diagnosis_table(const Diagnosis& diagnosis) {
  const std::vector<Kind> kinds = kinds_of(diagnosis);
  double most_moved = 0, most_error = 0;
  for (const Kind& kind : kinds) {
    for (const TensorDiagnosis& tensor : kind.part.tensors)
      if (kind.part.tensors.size() > 1)  // those that bars are drawn for
        most_moved = std::max(most_moved, share_of(tensor.moved, tensor.weights));
    const TensorDiagnosis all = kind.part.total();
    most_error = std::max({most_error, all.output_error_start, all.output_error});
  }
  std::string out = open_figures("Tensors", kColumns);
  for (const Kind& kind : kinds) out += kind_row(kind, most_moved, most_error);
  out += close_figures();
  for (const std::string& warning : diagnosis.warnings)
    out += "<p class=\"warning\">" + escape_html(warning) + "</p>\n";
  return out + every_tensor(diagnosis);
}

}  // namespace nibble
