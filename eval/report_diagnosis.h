// The report's section on what training did to codes and scales.
#pragma once

#include <string>

#include "eval/diagnosis.h"

namespace nibble {

/// The sentences above the table, HTML.
std::string diagnosis_lede(const Diagnosis& diagnosis);
/// A row a kind of tensor, with small bars by layer, the warnings, and every tensor folded away.
std::string diagnosis_table(const Diagnosis& diagnosis);

}  // namespace nibble
