// The report's charts, each as one or more <svg>. Where the text would become too small on a phone,
// a chart is drawn twice, for a wide and for a narrow page; the page's style shows one.
#pragma once

#include <string>

#include "eval/report.h"

namespace nibble {

/// Loss of the training steps and of the held-out text over tokens seen.
std::string loss_chart(const ReportData& data);
/// Mean KLD (logarithmic) over file size, one labelled point a model.
std::string size_chart(const ReportData& data);
/// Relative RMS error by layer, one small panel for each kind of tensor.
std::string tensor_error_charts(const ReportData& data);
/// Weights of one block on the grid of its scale: the baseline's above, the trained below.
std::string block_chart(const BlockSample& block, const std::string& baseline_name);

/// "blk.12.ffn_up.weight" -> ("ffn_up", 12); false for a tensor outside the layers.
bool split_tensor_name(const std::string& name, std::string* kind, int* layer);

/// The role of a row, by name.
Role role_of(const ReportData& data, const std::string& name);
/// "trained", "baseline", "source" or "other": the class that gives a mark its colour.
const char* role_class(Role role);

}  // namespace nibble
