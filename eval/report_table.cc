#include "eval/report_table.h"

#include "base/error.h"
#include "eval/report_svg.h"

namespace nibble {

std::string open_figures(const std::string& first, std::span<const TableColumn> columns) {
  std::string out = concat(
      "<table class=\"figures\" role=\"table\"><thead role=\"rowgroup\"><tr role=\"row\">"
      "<th role=\"columnheader\" scope=\"col\">",
      first, "</th>");
  for (const TableColumn& column : columns)
    out += concat("<th role=\"columnheader\" scope=\"col\">", column.name, "<small>",
                  column.meaning, "</small></th>");
  return out + "</tr></thead>\n<tbody role=\"rowgroup\">\n";
}

std::string close_figures() { return "</tbody></table>\n"; }

std::string open_row(const std::string& name, const std::string& role, const std::string& note) {
  std::string out = concat("<tr role=\"row\"", role.empty() ? "" : concat(" class=\"", role, "\""),
                           "><th role=\"rowheader\" scope=\"row\"><span class=\"name",
                           role.empty() ? "" : " " + role, "\">", escape_html(name), "</span>");
  if (!note.empty()) out += "<span class=\"note\">" + escape_html(note) + "</span>";
  return out + "</th>";
}

std::string close_row() { return "</tr>\n"; }

std::string figure_cell(const TableColumn& column, const std::string& value,
                        const std::string& beside) {
  return concat("<td role=\"cell\" data-column=\"", column.name, "\">", value,
                beside.empty() ? "" : concat("<span class=\"err\">", beside, "</span>"), "</td>");
}

std::string number(double value, const std::string& text) {
  return concat("<data value=\"", fixed(value, 6), "\">", text, "</data>");
}

std::string percent(double share, int digits) { return fixed(share * 100, digits) + " %"; }

}  // namespace nibble
