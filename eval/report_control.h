// The report's section on the control: the same training without quantization.
#pragma once

#include <string>

#include "eval/report.h"

namespace nibble {

/// The sentences above the table, HTML; the reason alone where no control was trained.
std::string control_lede(const ReportData& data);
/// Original, control, its PTQ, baseline and trained file, each with its distance from the original
/// and from the control. "" where there is no control and no reason.
std::string control_table(const ReportData& data);

}  // namespace nibble
