#include "eval/report_control.h"

#include "base/error.h"
#include "eval/report_charts.h"
#include "eval/report_svg.h"
#include "eval/report_table.h"

namespace nibble {
namespace {

constexpr TableColumn kColumns[] = {
    {"Perplexity", "on the text of the comparison; lower is better"},
    {"KLD to the original", "mean, nats per token"},
    {"KLD to the control", "mean, nats per token"},
};

const ModelFigures* find_model(const Comparison& comparison, const std::string& name) {
  for (const ModelFigures& model : comparison.models)
    if (model.name == name) return &model;
  return nullptr;
}

std::string kld_cell(const TableColumn& column, const ModelFigures* figures) {
  if (!figures) return figure_cell(column, "–");
  return figure_cell(column, number(figures->mean_kld, fixed(figures->mean_kld, 4)),
                     "± " + fixed(figures->mean_kld_err, 4));
}

std::string ppl_cell(double ppl, double err) {
  return figure_cell(kColumns[0], number(ppl, fixed(ppl, 2)), "± " + fixed(err, 2));
}

}  // namespace

std::string control_lede(const ReportData& data) {
  if (!data.against_control) return escape_html(data.control_note);
  return "The control saw the same text for as many steps, with the same learning rate and seed, "
         "and was not quantized. How far it is from the original is the text’s doing; what lies "
         "between it and the trained file is what quantization still costs.";
}

std::string control_table(const ReportData& data) {
  if (!data.against_control) return data.control_note.empty() ? "" : "\n";
  const Comparison &from_original = data.comparison, &from_control = *data.against_control;
  std::string out = open_figures("Model", kColumns);
  out += open_row(from_original.base, "", "the original") +
         ppl_cell(from_original.base_ppl, from_original.base_ppl_err) +
         figure_cell(kColumns[1], "–") +
         kld_cell(kColumns[2], find_model(from_control, from_original.base)) + close_row();
  for (const ModelFigures& model : from_original.models) {
    const ModelFigures* beside = find_model(from_control, model.name);
    if (!beside && model.name != from_control.base) continue;
    out += open_row(model.name, role_class(role_of(data, model.name)), "") +
           ppl_cell(model.ppl, model.ppl_err) + kld_cell(kColumns[1], &model) +
           kld_cell(kColumns[2], beside) + close_row();
  }
  return out + close_figures();
}

}  // namespace nibble
