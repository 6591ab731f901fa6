#include "eval/report_svg.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string_view>

#include "base/error.h"

namespace nibble {
namespace {

/// Bytes of the well-formed UTF-8 sequence at the start of `text`, or 0.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = byte(0) < 0x80   ? 1
                        : byte(0) < 0xc2 ? 0
                        : byte(0) < 0xe0 ? 2
                        : byte(0) < 0xf0 ? 3
                        : byte(0) < 0xf5 ? 4
                                         : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  return length;
}

std::string px(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.1f", value);
  return buffer;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text.substr(i));
    if (length == 0) {
      out += "\xef\xbf\xbd";
      ++i;
      continue;
    }
    const char c = text[i];
    if (length > 1)
      out += text.substr(i, length);
    else if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t')
      out += ' ';
    else
      out += c;
    i += length;
  }
  return out;
}

std::string fixed(double value, int digits) {
  if (!std::isfinite(value)) return "n/a";
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  // A rounding error below zero is shown as zero.
  const bool negative_zero = std::string_view(buffer).find_first_not_of("-0.") == std::string::npos;
  return buffer + (negative_zero && buffer[0] == '-');
}

std::string three_digits(double value) {
  if (value == 0 || !std::isfinite(value)) return value == 0 ? "0" : "n/a";
  const double magnitude = std::abs(value);
  if (magnitude < 1e-4 || magnitude >= 1e7) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.1e", value);
    return buffer;
  }
  return fixed(value, std::max(0, 2 - static_cast<int>(std::floor(std::log10(magnitude)))));
}

double Axis::operator()(double value) const {
  const double share =
      logarithmic ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
  return start + share * (end - start);
}

std::vector<double> Axis::ticks(int count) const {
  std::vector<double> out;
  if (!(high > low)) return out;
  if (logarithmic) {
    const bool wide = std::log10(high / low) > 2.5;  // then powers of ten alone, else 1, 2, 5
    for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10)
      for (const double factor : {1.0, 2.0, 5.0})
        if ((factor == 1 || !wide) && power * factor >= low * 0.999 &&
            power * factor <= high * 1.001)
          out.push_back(power * factor);
    return out;
  }
  const double rough = (high - low) / count, power = std::pow(10, std::floor(std::log10(rough)));
  double step = power * 10;
  for (const double factor : {5.0, 2.0, 1.0})
    if (power * factor >= rough) step = power * factor;
  for (double value = std::ceil(low / step - 1e-9) * step; value <= high + step * 1e-9;
       value += step)
    out.push_back(std::abs(value) < step * 1e-9 ? 0 : value);
  return out;
}

Svg::Svg(double width, double height, std::string_view label, std::string_view css_class) {
  out_ = concat("<svg class=\"", css_class, "\" viewBox=\"0 0 ", px(width), ' ', px(height),
                "\" style=\"max-width:", px(width), "px\" role=\"img\" aria-label=\"",
                escape_html(label), "\">\n");
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view css_class) {
  out_ += concat("<line x1=\"", px(x1), "\" y1=\"", px(y1), "\" x2=\"", px(x2), "\" y2=\"", px(y2),
                 "\" class=\"", css_class, "\"/>\n");
}

void Svg::polyline(const std::vector<std::pair<double, double>>& points,
                   std::string_view css_class) {
  out_ += concat("<polyline class=\"", css_class, "\" points=\"");
  for (const auto& [x, y] : points) out_ += px(x) + ',' + px(y) + ' ';
  out_ += "\"/>\n";
}

void Svg::circle(double x, double y, double radius, std::string_view css_class) {
  out_ += concat("<circle cx=\"", px(x), "\" cy=\"", px(y), "\" r=\"", px(radius), "\" class=\"",
                 css_class, "\"/>\n");
}

void Svg::rect(double x, double y, double width, double height, std::string_view css_class) {
  out_ += concat("<rect x=\"", px(x), "\" y=\"", px(y), "\" width=\"", px(width), "\" height=\"",
                 px(height), "\" class=\"", css_class, "\"/>\n");
}

void Svg::arrow_head(double x, double y, double size, std::string_view css_class) {
  out_ += concat("<path class=\"", css_class, "\" d=\"M", px(x), ' ', px(y), " l", px(-size * 0.5),
                 ' ', px(-size), " h", px(size), "z\"/>\n");
}

void Svg::text(double x, double y, std::string_view text, std::string_view css_class,
               std::string_view anchor) {
  out_ += concat("<text x=\"", px(x), "\" y=\"", px(y), "\" text-anchor=\"", anchor, "\" class=\"",
                 css_class, "\">", escape_html(text), "</text>\n");
}

std::string Svg::finish() { return std::move(out_) + "</svg>\n"; }

std::vector<double> spread_labels(std::vector<double> wanted, double gap, double low, double high) {
  std::vector<size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return wanted[a] < wanted[b]; });
  // Groups of labels that touch move as one, centred on what they want.
  struct Group {
    double centre;
    size_t size;
  };
  std::vector<Group> groups;
  const auto half = [&](const Group& g) { return gap * (g.size - 1) / 2; };
  for (const size_t index : order) {
    groups.push_back({wanted[index], 1});
    while (true) {
      Group& last = groups.back();
      const double least = low + half(last);
      last.centre = std::clamp(last.centre, least, std::max(least, high - half(last)));
      if (groups.size() < 2) break;
      Group& before = groups[groups.size() - 2];
      if (last.centre - half(last) - (before.centre + half(before)) >= gap) break;
      before.centre =
          (before.centre * before.size + last.centre * last.size) / (before.size + last.size);
      before.size += last.size;
      groups.pop_back();
    }
  }
  size_t next = 0;
  for (const Group& group : groups)
    for (size_t i = 0; i < group.size; ++i)
      wanted[order[next++]] = group.centre - half(group) + gap * i;
  return wanted;
}

}  // namespace nibble
