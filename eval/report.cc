#include "eval/report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/progress.h"
#include "eval/report_charts.h"
#include "eval/report_control.h"
#include "eval/report_diagnosis.h"
#include "eval/report_style.h"
#include "eval/report_svg.h"
#include "eval/report_table.h"
#include "io/atomic_file.h"

namespace nibble {
namespace {

/// Differences below this many standard errors are not called gains.
constexpr double kClearErrors = 2.0;

const ModelFigures* find_model(const ReportData& data, const std::string& name) {
  for (const ModelFigures& model : data.comparison.models)
    if (!name.empty() && model.name == name) return &model;
  return nullptr;
}

std::string note_of(const ReportData& data, const std::string& name) {
  for (const ReportModel& model : data.models)
    if (model.name == name) return model.note;
  return "";
}

/// KLD(trained) - KLD(baseline) with its standard error: paired over tokens where the comparison
/// has it.
std::pair<double, double> kld_change(const ReportData& data, const ModelFigures& baseline,
                                     const ModelFigures& trained) {
  for (const PairedDifference& d : data.comparison.differences) {
    if (d.a == trained.name && d.b == baseline.name) return {d.mean_kld, d.mean_kld_err};
    if (d.b == trained.name && d.a == baseline.name) return {-d.mean_kld, d.mean_kld_err};
  }
  return {trained.mean_kld - baseline.mean_kld,
          std::hypot(trained.mean_kld_err, baseline.mean_kld_err)};
}

/// Share of `before` that is gone in `after`; 0 where there was nothing to recover.
double recovered(double before, double after) { return before > 0 ? 1 - after / before : 0; }

std::string section(const std::string& title, const std::string& lede, const std::string& body) {
  if (body.empty()) return "";
  return concat("<section>\n<h2>", title, "</h2>\n", lede.empty() ? "" : "<p class=\"lede\">", lede,
                lede.empty() ? "" : "</p>\n", body, "</section>\n");
}

// Top of the page --------------------------------------------------------------------------------

std::string lead(const ReportData& data) {
  const Comparison& c = data.comparison;
  const ModelFigures* baseline = find_model(data, data.baseline);
  const ModelFigures* trained = find_model(data, data.trained);
  std::string where =
      concat("Measured on ", c.tokens, " tokens of ",
             escape_html(std::filesystem::path(c.text).filename().string()), ", against ",
             escape_html(c.base), ". ", escape_html(data.origin_note));
  if (!baseline || !trained) return "<p class=\"lead\">" + where + "</p>\n";
  const double ppl_recovered = recovered(baseline->ppl - c.base_ppl, trained->ppl - c.base_ppl);
  std::string text =
      concat("The average distance from the original’s predictions goes from <b>",
             three_digits(baseline->mean_kld), "</b> to <b>", three_digits(trained->mean_kld),
             "</b> nats per token, perplexity from <b>", fixed(baseline->ppl, 2), "</b> to <b>",
             fixed(trained->ppl, 2), "</b> (original ", fixed(c.base_ppl, 2), ")");
  if (baseline->ppl > c.base_ppl && ppl_recovered > 0)
    text += concat(", ", percent(std::min(1.0, ppl_recovered)), " of the way back");
  text += trained->bpw == baseline->bpw ? ". The weights take as many bytes as when they were only "
                                          "rounded, and llama.cpp runs the file as it is. "
                                        : ". llama.cpp runs the file as it is. ";
  return "<p class=\"lead\">" + text + where + "</p>\n";
}

std::string tile(const std::string& name, const std::string& figure, const std::string& before,
                 double share) {
  std::string out = concat("<div class=\"tile\"><dt>", name, "</dt><dd><span class=\"figure\">",
                           figure, "</span>");
  if (share >= 0)
    out += concat("<span class=\"bar\"><span style=\"width:", fixed(std::min(1.0, share) * 100, 1),
                  "%\"></span></span>");
  return out + "<span class=\"before\">" + before + "</span></dd></div>\n";
}

/// The four figures that matter, each with what it was for the baseline. The bars show how much of
/// the damage is gone.
std::string tiles(const ReportData& data) {
  const ModelFigures* b = find_model(data, data.baseline);
  const ModelFigures* t = find_model(data, data.trained);
  if (!b || !t) return "";
  const double base_ppl = data.comparison.base_ppl;
  const double kld = recovered(b->mean_kld, t->mean_kld);
  const double top = recovered(1 - b->same_top, 1 - t->same_top);
  const double ppl = recovered(b->ppl - base_ppl, t->ppl - base_ppl);
  return concat(
      "<dl class=\"tiles\">\n",
      tile("Mean KL divergence", three_digits(t->mean_kld),
           concat("was ", three_digits(b->mean_kld)), std::max(0.0, kld)),
      tile("Same top token", percent(t->same_top, 1), concat("was ", percent(b->same_top, 1)),
           std::max(0.0, top)),
      tile("Perplexity", fixed(t->ppl, 2),
           concat("was ", fixed(b->ppl, 2), ", original ", fixed(base_ppl, 2)), std::max(0.0, ppl)),
      tile("File", format_bytes(t->bytes),
           concat(fixed(t->bpw, 2), " bits per weight",
                  t->bpw == b->bpw ? ", as before" : ", was " + fixed(b->bpw, 2)),
           -1),
      "</dl>\n<p class=\"caption\">Bars: how much of what rounding lost is back.</p>\n");
}

std::string page_header(const ReportData& data) {
  std::string eyebrow = data.model.empty() ? "Comparison" : escape_html(data.model);
  if (!data.type.empty()) eyebrow += " · " + escape_html(data.type);
  std::string verdict = escape_html(report_verdict(data));
  // A number and its percent sign stay on one line.
  if (const size_t space = verdict.find(" %"); space != std::string::npos)
    verdict.replace(space, 1, "&nbsp;");
  return concat("<header>\n<p class=\"eyebrow\">nibble · ", eyebrow, "</p>\n<h1>", verdict,
                "</h1>\n", lead(data), tiles(data), "</header>\n");
}

// Table ------------------------------------------------------------------------------------------

constexpr TableColumn kColumns[] = {
    {"Size", "of the file, and bits per weight"},
    {"Perplexity", "how surprised the model is by the text; lower is better"},
    {"Mean KLD", "distance from the original’s predictions, nats per token; 0 is identical"},
    {"99.9 % KLD", "the same for the worst token in a thousand"},
    {"RMS Δp", "typical change in the probability of the right token"},
    {"Same top", "how often its first choice is the original’s first choice"},
};

std::string cell(int column, const std::string& value, const std::string& error = "") {
  return figure_cell(kColumns[column], value, error);
}

std::string table_row(const ReportData& data, const ModelFigures& m) {
  std::string out = open_row(m.name, role_class(role_of(data, m.name)), note_of(data, m.name));
  const auto plus_minus = [](const std::string& error) { return "± " + error; };
  out += cell(0, concat("<data value=\"", m.bytes, "\">", format_bytes(m.bytes), "</data>"),
              fixed(m.bpw, 2) + " bpw");
  out += cell(1, number(m.ppl, fixed(m.ppl, 2)), plus_minus(fixed(m.ppl_err, 2)));
  out += cell(2, number(m.mean_kld, fixed(m.mean_kld, 4)), plus_minus(fixed(m.mean_kld_err, 4)));
  out += cell(3, number(m.p999_kld, fixed(m.p999_kld, 3)));
  out += cell(4, number(m.rms_dp, percent(m.rms_dp, 1)), plus_minus(percent(m.rms_dp_err, 1)));
  out +=
      cell(5, number(m.same_top, percent(m.same_top, 1)), plus_minus(percent(m.same_top_err, 1)));
  return out + close_row();
}

std::string base_row(const Comparison& c) {
  std::string out = open_row(c.base, "", "the original");
  out += cell(0, "–");
  out += cell(1, number(c.base_ppl, fixed(c.base_ppl, 2)), "± " + fixed(c.base_ppl_err, 2));
  for (const int column : {2, 3, 4, 5}) out += cell(column, "–");
  return out + close_row();
}

std::string table(const ReportData& data) {
  const Comparison& c = data.comparison;
  if (c.models.empty()) return "";
  std::string out = open_figures("Model", kColumns) + base_row(c);
  for (const ModelFigures& model : c.models) out += table_row(data, model);
  out += close_figures();
  out += concat("<p class=\"caption\">", c.chunks, " chunks of ", c.ctx,
                " tokens, the second half of each scored, as llama-perplexity does it. ± is one "
                "standard error. KL divergence is taken through llama.cpp’s 16-bit form of the "
                "original’s predictions (perplexity in that form: ",
                fixed(c.base_ppl_16bit, 2), ").",
                c.activations == ActivationBackend::kNone
                    ? ""
                    : concat(" Activations of all but the original are rounded as llama.cpp’s ",
                             c.activations == ActivationBackend::kLlamaCpu ? "CPU" : "CUDA",
                             " backend does."),
                "</p>\n");
  for (const std::string& warning : c.warnings)
    out += "<p class=\"warning\">" + escape_html(warning) + "</p>\n";
  return out;
}

// Tensors and blocks -----------------------------------------------------------------------------

std::string tensor_section(const ReportData& data) {
  const std::string charts = tensor_error_charts(data);
  if (charts.empty()) return "";
  double baseline = 0, trained = 0;
  for (const TensorError& error : data.tensor_errors) {
    baseline += error.baseline;
    trained += error.trained;
  }
  const char* finding =
      trained > baseline
          ? "Measured weight by weight, the trained file is <em>further</em> from the original "
            "than the "
            "rounded one. Training does not bring back each weight; it moves the weights so that "
            "their errors cancel in what the model says."
          : "Measured weight by weight, the trained file is also nearer to the original than the "
            "rounded one.";
  return section("Error of the weights",
                 concat("Each small chart is one kind of matrix, from the first layer to the last: "
                        "the size of the "
                        "error relative to the weights, for <b class=\"baseline\">",
                        escape_html(data.baseline), "</b> and <b class=\"trained\">",
                        escape_html(data.trained), "</b>. ", finding),
                 charts);
}

std::string block_table(const BlockSample& block) {
  std::string out =
      "<details><summary>The numbers</summary>\n<table class=\"numbers\"><thead><tr>"
      "<th scope=\"col\">#</th><th scope=\"col\">original</th>"
      "<th scope=\"col\">rounded: code</th><th scope=\"col\">decoded</th>"
      "<th scope=\"col\">trained: code</th><th scope=\"col\">decoded</th></tr></thead><tbody>\n";
  for (size_t i = 0; i < block.original.size(); ++i) {
    const bool moved = block.baseline_codes[i] != block.trained_codes[i];
    out += concat(moved ? "<tr class=\"moved\">" : "<tr>", "<td>", i, "</td><td>",
                  fixed(block.original[i], 5), "</td><td>", block.baseline_codes[i], "</td><td>",
                  fixed(block.baseline[i], 5), "</td><td class=\"trained\">",
                  block.trained_codes[i], "</td><td>", fixed(block.trained[i], 5), "</td></tr>\n");
  }
  return out + "</tbody></table></details>\n";
}

std::string block_sections(const ReportData& data) {
  std::string out;
  for (const BlockSample& block : data.blocks) {
    const std::string lede =
        concat(block.original.size(), " neighbouring weights of <code>", escape_html(block.tensor),
               "</code> (row ", block.row, ", from column ", block.column, "). In ",
               escape_html(block.type),
               " they share one step, and each may only sit on a line of the grid. Rings are the "
               "original weights, "
               "dots what the file stores. ",
               percent(block.codes_changed, 1),
               " of this tensor’s codes differ between the two files; this is the block in which "
               "most do.");
    out += section("One block, before and after", lede,
                   block_chart(block, data.baseline) + block_table(block));
  }
  return out;
}

// Answers, provenance ----------------------------------------------------------------------------

/// Bytes that two texts share from the start, ending at a whole character.
size_t common_prefix(const std::string& a, const std::string& b) {
  size_t length =
      std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first -
      a.begin();
  while (length > 0 && length < a.size() && (static_cast<unsigned char>(a[length]) & 0xc0) == 0x80)
    --length;
  return length;
}

std::string prompt_section(const ReportData& data) {
  std::string out;
  for (const PromptAnswers& prompt : data.prompts) {
    if (prompt.answers.empty()) continue;
    out += "<div class=\"prompt\"><pre>" + escape_html(prompt.prompt) +
           "</pre>\n<dl class=\"answers\">\n";
    const std::string& original = prompt.answers.front().text;
    for (const PromptAnswer& answer : prompt.answers) {
      const bool first = &answer == &prompt.answers.front();
      out += concat("<dt><b class=\"", role_class(role_of(data, answer.model)), "\">",
                    escape_html(answer.model), "</b></dt><dd>");
      const size_t same = first ? answer.text.size() : common_prefix(answer.text, original);
      const std::string common = escape_html(answer.text.substr(0, same));
      out += first ? common : "<span class=\"same\">" + common + "</span>";
      if (same < answer.text.size())
        out += "<mark>" + escape_html(answer.text.substr(same)) + "</mark>";
      else if (!first)
        out += "<span class=\"same\"> (the same)</span>";
      out += "</dd>\n";
    }
    out += "</dl></div>\n";
  }
  return section("The same prompt, each model",
                 "Greedy continuations. Grey is word for word what the original says; after the "
                 "bar the model goes its own way.",
                 out);
}

std::string provenance_section(const ReportData& data) {
  std::string out;
  if (!data.facts.empty()) {
    out += "<table class=\"plain\"><tbody>\n";
    for (const auto& [name, value] : data.facts)
      out += concat("<tr><th scope=\"row\">", escape_html(name), "</th><td>", escape_html(value),
                    "</td></tr>\n");
    out += "</tbody></table>\n";
  }
  if (!data.files.empty()) {
    out += "<h3>Files</h3>\n<table class=\"plain\"><tbody>\n";
    for (const ReportFile& file : data.files)
      out += concat("<tr><th scope=\"row\">", escape_html(file.name), "</th><td>",
                    escape_html(file.path), "<br>", format_bytes(file.bytes), "<br><code>sha256 ",
                    escape_html(file.sha256), "</code></td></tr>\n");
    out += "</tbody></table>\n";
  }
  if (!data.config.empty())
    out += "<details><summary>The whole configuration</summary>\n<pre>" + escape_html(data.config) +
           "</pre></details>\n";
  return section("Settings and files", "", out);
}

}  // namespace

std::string report_verdict(const ReportData& data) {
  const Comparison& c = data.comparison;
  const ModelFigures* baseline = find_model(data, data.baseline);
  const ModelFigures* trained = find_model(data, data.trained);
  if (!baseline || !trained) {
    if (c.models.empty()) return "Nothing was compared.";
    const auto best = std::min_element(
        c.models.begin(), c.models.end(),
        [](const ModelFigures& a, const ModelFigures& b) { return a.mean_kld < b.mean_kld; });
    return concat(best->name, " stays nearest to ", c.base, ": mean KL divergence ",
                  three_digits(best->mean_kld), " nats per token.");
  }
  const auto [change, error] = kld_change(data, *baseline, *trained);
  if (!std::isfinite(change))
    return "A model gives no finite figures on this text: there is nothing to conclude.";
  if (std::abs(change) <= kClearErrors * error)
    return concat("Training on the grid made no clear difference to ", data.type,
                  " rounding on this text.");
  if (change > 0)
    return concat("Training moved the ", data.type,
                  " model further from the original, not nearer.");
  return concat("Training on the grid recovered ",
                percent(recovered(baseline->mean_kld, trained->mean_kld)), " of what ", data.type,
                " rounding lost.");
}

std::string report_html(const ReportData& data) {
  std::string out = concat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
      escape_html(data.model.empty() ? "Comparison" : data.model), " · nibble</title>\n",
      // An empty icon of its own keeps a browser from asking a server for one.
      "<link rel=\"icon\" href=\"data:,\">\n<style>", kReportStyle, "</style>\n</head>\n<body>\n",
      page_header(data), "<main>\n");
  out += section("All figures", "", table(data));
  out += section("Against the same training without quantization", control_lede(data),
                 control_table(data));
  out += section("Quality against size",
                 "Nearer to the bottom is nearer to the original, on a logarithmic scale. Files at "
                 "the very bottom "
                 "decode to the original’s own numbers.",
                 size_chart(data));
  if (data.matrix)
    out += section("Trained for one type, exported as another",
                   "Mean KL divergence from the original, nats per token, after rounding each of "
                   "these states by search into each type. Darker is farther.",
                   export_matrix_html(*data.matrix));
  if (!data.losses.empty())
    out += section("Training",
                   concat(escape_html(data.loss_name), ". The held-out text is never trained on."),
                   loss_chart(data));
  if (data.diagnosis)
    out += section("What training did to the codes", diagnosis_lede(*data.diagnosis),
                   diagnosis_table(*data.diagnosis));
  out += prompt_section(data) + tensor_section(data) + block_sections(data);
  if (!data.run_command.empty())
    out += section("Run it", "llama.cpp loads the file as it is.",
                   "<pre>" + escape_html(data.run_command) + "</pre>\n");
  out += provenance_section(data);
  return out +
         "</main>\n<footer>Written by nibble. This page is one file; it asks nothing of the "
         "network.</footer>\n"
         "</body>\n</html>\n";
}

std::string write_report(const std::string& folder, const ReportData& data) {
  create_folders(folder);
  const std::string path = (std::filesystem::path(folder) / "index.html").string();
  write_file(path, report_html(data));
  return path;
}

}  // namespace nibble
