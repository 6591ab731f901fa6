// What the report's charts are drawn with: escaped text, numbers, axes and marks as SVG. Colours
// are classes, so that the page's light and dark palettes reach them.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

/// Text for HTML and attributes: & < > " ' escaped, control characters shown as spaces, bytes that
/// are not UTF-8 as U+FFFD.
std::string escape_html(std::string_view text);
/// "12.30" for (12.3, 2); "n/a" for NaN and infinity.
std::string fixed(double value, int digits);
/// Three significant digits without exponent where that is readable: 0.0853, 29.2, 1240.
std::string three_digits(double value);

/// Maps data to pixels, linearly or by logarithm. `low` maps to `start`.
struct Axis {
  double low = 0, high = 1;
  double start = 0, end = 1;
  bool logarithmic = false;

  double operator()(double value) const;
  /// Round values within the axis, about `count` of them.
  std::vector<double> ticks(int count) const;
};

/// A chart under construction. Sizes are CSS pixels at the width for which it is drawn.
class Svg {
 public:
  /// `label` is what a screen reader says instead of the picture.
  Svg(double width, double height, std::string_view label, std::string_view css_class = "");

  void line(double x1, double y1, double x2, double y2, std::string_view css_class);
  void polyline(const std::vector<std::pair<double, double>>& points, std::string_view css_class);
  void circle(double x, double y, double radius, std::string_view css_class);
  void rect(double x, double y, double width, double height, std::string_view css_class);
  /// A triangle of `size` whose tip, at (x, y), points down (size > 0) or up.
  void arrow_head(double x, double y, double size, std::string_view css_class);
  /// anchor: "start", "middle" or "end".
  void text(double x, double y, std::string_view text, std::string_view css_class,
            std::string_view anchor = "start");
  std::string finish();

 private:
  std::string out_;
};

/// Labels must not overlap: moves the wanted positions apart to at least `gap`, as little as
/// possible, keeping their order and staying within [low, high] as far as they fit.
std::vector<double> spread_labels(std::vector<double> wanted, double gap, double low, double high);

}  // namespace nibble
