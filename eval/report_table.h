// What the report's tables of figures are made of: cells that on a phone stand one below the other,
// each with its column's name.
#pragma once

#include <span>
#include <string>

namespace nibble {

struct TableColumn {
  const char* name;
  const char* meaning;  // shown under the name
};

/// A table's head and the opening of its body. first: the name of the column of row heads.
std::string open_figures(const std::string& first, std::span<const TableColumn> columns);
std::string close_figures();
/// role: the class that gives a row its colour, "" for none; note: shown under the name, or "".
/// Both texts are escaped.
std::string open_row(const std::string& name, const std::string& role, const std::string& note);
std::string close_row();
/// value, beside: HTML; beside is smaller and may be empty.
std::string figure_cell(const TableColumn& column, const std::string& value,
                        const std::string& beside = "");

/// A number with all its digits for programs and rounded for people.
std::string number(double value, const std::string& text);
/// 0.123 -> "12 %".
std::string percent(double share, int digits = 0);

}  // namespace nibble
