// What a model loses when it is trained for one type and then exported as another: states of one
// model (rows), each quantized by search into several types (columns), against one base.
#pragma once

#include <string>
#include <vector>

#include "eval/compare.h"

namespace nibble {

struct ExportMatrix {
  struct Row {
    std::string state;
    std::vector<double> mean_kld, mean_kld_err;  // nats, by type
  };
  std::vector<std::string> types;
  std::vector<Row> rows;
};

/// states: GGUF files of any type; one that is quantized is decoded first, as llama-quantize
/// --allow-requantize does it. The files that are made lie in `folder` while they are measured.
/// Memory: compare()'s. Throws what make_plan(), quantize_file() and compare() throw.
ExportMatrix measure_export_matrix(const CompareEntry& base,
                                   const std::vector<CompareEntry>& states,
                                   const std::vector<std::string>& types, const std::string& folder,
                                   const std::string& text_path, const PerplexityOptions& options);

/// One JSON object: types, and rows of state, mean_kld and mean_kld_err.
std::string export_matrix_json(const ExportMatrix& matrix);
/// For a terminal.
std::string export_matrix_text(const ExportMatrix& matrix);
/// For the report: each cell the darker the farther from the base.
std::string export_matrix_html(const ExportMatrix& matrix);

}  // namespace nibble
