#include "eval/export_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "eval/report_svg.h"
#include "eval/report_table.h"
#include "io/atomic_file.h"
#include "quant/mix/quantize_file.h"

namespace nibble {
namespace {

/// A cell's colour at the largest KLD, percent of the baseline's; the smallest has none.
constexpr double kDarkest = 60;

Plan requantization_plan(const GgufFile& file, const std::string& type) {
  PlanOptions options;
  options.type_name = type;
  options.allow_requantize = true;
  return make_plan(file, options);
}

/// Where a cell lies between the least and the largest KLD, by logarithm: 0 to 1.
double heat(double kld, double least, double most) {
  if (!(kld > 0) || !(least > 0) || !(most > least)) return 0;
  return std::clamp(std::log(kld / least) / std::log(most / least), 0.0, 1.0);
}

std::string heat_cell(const TableColumn& column, double kld, double err, double share) {
  return concat("<td role=\"cell\" data-column=\"", column.name,
                "\" style=\"background:color-mix(in srgb,var(--baseline) ",
                fixed(kDarkest * share, 0), "%,transparent)\">", number(kld, three_digits(kld)),
                "<span class=\"err\">± ", three_digits(err), "</span></td>");
}

}  // namespace

ExportMatrix measure_export_matrix(const CompareEntry& base,
                                   const std::vector<CompareEntry>& states,
                                   const std::vector<std::string>& types, const std::string& folder,
                                   const std::string& text_path, const PerplexityOptions& options) {
  create_folders(folder);
  std::vector<CompareEntry> files;
  for (const CompareEntry& state : states) {
    const GgufFile file = GgufFile::open(state.path);
    for (const std::string& type : types) {
      const std::string path = concat(folder, '/', files.size(), '-', type, ".gguf");
      quantize_file(file, requantization_plan(file, type), EncodeMethod::kSearch, path,
                    options.device);
      files.push_back({concat(state.name, " as ", type), path, true});
    }
  }
  const Comparison comparison = compare(base, files, text_path, options);
  ExportMatrix matrix{types, {}};
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    if (i % types.size() == 0) matrix.rows.push_back({states[i / types.size()].name, {}, {}});
    matrix.rows.back().mean_kld.push_back(comparison.models[i].mean_kld);
    matrix.rows.back().mean_kld_err.push_back(comparison.models[i].mean_kld_err);
    std::filesystem::remove(files[i].path);
  }
  return matrix;
}

std::string export_matrix_json(const ExportMatrix& matrix) {
  using Json = nlohmann::ordered_json;
  Json json = {{"types", matrix.types}, {"rows", Json::array()}};
  for (const ExportMatrix::Row& row : matrix.rows)
    json["rows"].push_back(
        {{"state", row.state}, {"mean_kld", row.mean_kld}, {"mean_kld_err", row.mean_kld_err}});
  return json.dump(2);
}

std::string export_matrix_text(const ExportMatrix& matrix) {
  size_t width = 0;
  for (const ExportMatrix::Row& row : matrix.rows) width = std::max(width, row.state.size());
  std::string text = "mean KLD of each state, exported as\n" + std::string(width, ' ');
  char cell[32];
  for (const std::string& type : matrix.types) {
    std::snprintf(cell, sizeof cell, "  %10s", type.c_str());
    text += cell;
  }
  for (const ExportMatrix::Row& row : matrix.rows) {
    text += "\n" + row.state + std::string(width - row.state.size(), ' ');
    for (const double kld : row.mean_kld) {
      std::snprintf(cell, sizeof cell, "  %10.5f", kld);
      text += cell;
    }
  }
  return text + "\n";
}

std::string export_matrix_html(const ExportMatrix& matrix) {
  if (matrix.rows.empty()) return "";
  std::vector<std::string> names;
  for (const std::string& type : matrix.types) names.push_back(escape_html(type));
  std::vector<TableColumn> columns;
  for (const std::string& name : names) columns.push_back({name.c_str(), ""});
  double least = INFINITY, most = 0;
  for (const ExportMatrix::Row& row : matrix.rows)
    for (const double kld : row.mean_kld) {
      least = kld > 0 ? std::min(least, kld) : least;
      most = std::max(most, kld);
    }
  std::string out = open_figures("Exported as", columns);
  for (const ExportMatrix::Row& row : matrix.rows) {
    out += open_row(row.state, "", "");
    for (size_t i = 0; i < columns.size(); ++i)
      out += heat_cell(columns[i], row.mean_kld[i], row.mean_kld_err[i],
                       heat(row.mean_kld[i], least, most));
    out += close_row();
  }
  return concat("<div class=\"heat\">\n", out, close_figures(), "</div>\n");
}

}  // namespace nibble
