#include "eval/report_charts.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>

#include "base/error.h"
#include "eval/report_svg.h"

namespace nibble {
namespace {

/// Sizes of one drawing, in CSS pixels.
struct Layout {
  double width, height;
  double left, right, top, bottom;  // margins
  const char* css_class;            // "wide" or "narrow": which page shows it
  bool narrow() const { return width < 500; }
};

std::string compact_count(double value) {
  if (value >= 1e6) return three_digits(value / 1e6) + " M";
  if (value >= 1e4) return fixed(value / 1e3, 0) + " k";
  return fixed(value, 0);
}

std::string tick_text(double value) {
  std::string text = fixed(value, 6);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

void draw_axes(Svg& svg, const Axis& x, const Axis& y, const Layout& layout,
               std::string (*x_text)(double), int x_ticks, int y_ticks) {
  for (const double value : y.ticks(y_ticks)) {
    svg.line(layout.left, y(value), layout.width - layout.right, y(value), "rule");
    svg.text(layout.left - 8, y(value) + 4, tick_text(value), "tick", "end");
  }
  const double base = layout.height - layout.bottom;
  svg.line(layout.left, base, layout.width - layout.right, base, "axis");
  for (const double value : x.ticks(x_ticks)) {
    svg.line(x(value), base, x(value), base + 4, "axis");
    svg.text(x(value), base + 18, x_text(value), "tick", "middle");
  }
}

// Loss -------------------------------------------------------------------------------------------

/// At most `count` points, each the mean of as many training steps.
std::vector<std::pair<double, double>> mean_losses(std::vector<LossPoint> losses, size_t count) {
  std::erase_if(losses, [](const LossPoint& point) { return point.loss < 0; });
  std::vector<std::pair<double, double>> points;
  const size_t width = std::max<size_t>(1, (losses.size() + count - 1) / count);
  for (size_t begin = 0; begin < losses.size(); begin += width) {
    const size_t end = std::min(begin + width, losses.size());
    double tokens = 0, loss = 0;
    for (size_t i = begin; i < end; ++i) {
      tokens += static_cast<double>(losses[i].tokens);
      loss += losses[i].loss;
    }
    points.emplace_back(tokens / (end - begin), loss / (end - begin));
  }
  return points;
}

std::string draw_loss(const ReportData& data, const Layout& layout) {
  auto training = mean_losses(data.losses, 300);
  std::vector<std::pair<double, double>> held_out;
  double most = 0;
  for (const auto& point : training) most = std::max(most, point.second);
  for (const LossPoint& point : data.losses) {
    if (point.held_out < 0) continue;
    held_out.emplace_back(static_cast<double>(point.tokens), point.held_out);
    most = std::max(most, point.held_out);
  }
  const Axis x{0, std::max<double>(1, static_cast<double>(data.losses.back().tokens)), layout.left,
               layout.width - layout.right};
  const Axis y{0, most > 0 ? most * 1.06 : 1, layout.height - layout.bottom, layout.top};
  Svg svg(layout.width, layout.height,
          concat(data.loss_name, " over ", data.losses.back().tokens, " tokens of training",
                 training.empty() ? "" : ", at the end " + three_digits(training.back().second)),
          layout.css_class);
  draw_axes(svg, x, y, layout, compact_count, layout.narrow() ? 3 : 6, 4);
  svg.text(layout.width - layout.right, layout.height - 4, "tokens seen", "tick", "end");
  svg.text(layout.left, layout.top - 8, layout.narrow() ? "loss" : data.loss_name, "tick");
  const auto place = [&](auto& points) {
    for (auto& [px, py] : points) px = x(px), py = y(py);
  };
  const double last_held_out = held_out.empty() ? 0 : held_out.back().second;
  place(training);
  place(held_out);
  svg.polyline(training, "curve other");
  if (held_out.size() > 1) svg.polyline(held_out, "curve trained strong");
  for (const auto& [px, py] : held_out) svg.circle(px, py, 3.5, "dot trained");

  std::vector<double> ends;
  std::vector<std::pair<std::string, const char*>> labels;
  if (!training.empty()) {
    ends.push_back(training.back().second);
    labels.emplace_back("training", "label other");
  }
  if (!held_out.empty()) {
    ends.push_back(held_out.back().second);
    labels.emplace_back("held-out " + three_digits(last_held_out), "label trained");
  }
  ends = spread_labels(ends, 16, layout.top, layout.height - layout.bottom);
  for (size_t i = 0; i < ends.size(); ++i)
    svg.text(layout.width - layout.right + 8, ends[i] + 4, labels[i].first, labels[i].second);
  return svg.finish();
}

// Quality against size ---------------------------------------------------------------------------

constexpr double kZeroBand = 34;  // pixels below the logarithmic axis, for models whose KLD is zero

/// Below this a KLD is rounding of the 16-bit base form (about 1e-5 at most), not a distance.
constexpr double kZeroKld = 1e-5;

struct SizePoint {
  std::string name;
  Role role;
  double megabytes, kld, x = 0, y = 0;
};

std::vector<SizePoint> size_points(const ReportData& data) {
  std::vector<SizePoint> points;
  for (const ModelFigures& model : data.comparison.models)
    if (std::isfinite(model.mean_kld))
      points.push_back({model.name, role_of(data, model.name),
                        static_cast<double>(model.bytes) / 1e6, model.mean_kld});
  return points;
}

Axis kld_axis(const std::vector<SizePoint>& points, double bottom, double top) {
  double least = 1, most = 0;
  for (const SizePoint& point : points) {
    if (point.kld < kZeroKld) continue;
    least = std::min(least, point.kld);
    most = std::max(most, point.kld);
  }
  if (most == 0) return {0.01, 1, bottom, top, true};
  return {std::min(least / 1.6, most / 10), most * 1.5, bottom, top, true};
}

Axis megabyte_axis(const std::vector<SizePoint>& points, double start, double end) {
  double least = points[0].megabytes, most = least;
  for (const SizePoint& point : points) {
    least = std::min(least, point.megabytes);
    most = std::max(most, point.megabytes);
  }
  const double margin = std::max((most - least) * 0.08, most * 0.02);
  return {least - margin, most + margin, start, end};
}

/// The arrow from the baseline to the trained model: what training did.
void draw_gain(Svg& svg, const ReportData& data, const std::vector<SizePoint>& points) {
  const SizePoint *from = nullptr, *to = nullptr;
  for (const SizePoint& point : points) {
    if (point.name == data.baseline) from = &point;
    if (point.name == data.trained) to = &point;
  }
  if (!from || !to || std::abs(from->y - to->y) < 24) return;
  const double direction = to->y > from->y ? 1 : -1;
  svg.line(from->x, from->y + direction * 8, to->x, to->y - direction * 14, "gain");
  svg.arrow_head(to->x, to->y - direction * 8, direction * 8, "gain-head");
}

/// Labels stand beside their points, right of those in the left part and left of the others, spread
/// where points are near each other.
void draw_point_labels(Svg& svg, const std::vector<SizePoint>& points, const Layout& layout) {
  const double middle = layout.left + (layout.width - layout.left - layout.right) * 0.55;
  for (const bool left_part : {true, false}) {
    std::vector<const SizePoint*> side;
    std::vector<double> wanted;
    for (const SizePoint& point : points) {
      if ((point.x < middle) != left_part) continue;
      side.push_back(&point);
      wanted.push_back(point.y);
    }
    wanted = spread_labels(wanted, 17, layout.top, layout.height - layout.bottom + kZeroBand);
    for (size_t i = 0; i < side.size(); ++i) {
      const std::string value = side[i]->kld < kZeroKld ? "0" : three_digits(side[i]->kld);
      svg.text(side[i]->x + (left_part ? 12 : -12), wanted[i] + 4, side[i]->name + "  " + value,
               concat("label ", role_class(side[i]->role)), left_part ? "start" : "end");
    }
  }
}

std::string draw_size(const ReportData& data, Layout layout) {
  std::vector<SizePoint> points = size_points(data);
  if (points.empty()) return "";
  const bool zeros = std::any_of(points.begin(), points.end(),
                                 [](const SizePoint& point) { return point.kld < kZeroKld; });
  if (zeros) layout.bottom += kZeroBand;
  const double base = layout.height - layout.bottom;
  const Axis x = megabyte_axis(points, layout.left, layout.width - layout.right);
  const Axis y = kld_axis(points, base, layout.top);
  Svg svg(layout.width, layout.height, "Mean KL divergence (logarithmic) against file size",
          layout.css_class);
  for (const double value : y.ticks(4)) {
    svg.line(layout.left, y(value), layout.width - layout.right, y(value), "rule");
    svg.text(layout.left - 8, y(value) + 4, tick_text(value), "tick", "end");
  }
  const double floor = zeros ? base + kZeroBand : base;
  svg.text(layout.left, layout.top - 8, "mean KL divergence, nats per token", "tick");
  if (zeros) {
    svg.line(layout.left, base + 6, layout.width - layout.right, base + 6, "rule broken");
    svg.text(layout.left - 8, floor - 4, "0", "tick", "end");
  }
  svg.line(layout.left, floor, layout.width - layout.right, floor, "axis");
  for (const double value : x.ticks(layout.narrow() ? 3 : 6)) {
    svg.line(x(value), floor, x(value), floor + 4, "axis");
    svg.text(x(value), floor + 18, tick_text(value), "tick", "middle");
  }
  svg.text(layout.width - layout.right, layout.height - 4, "file size, MB", "tick", "end");
  for (SizePoint& point : points) {
    point.x = x(point.megabytes);
    point.y = point.kld < kZeroKld ? floor - 8 : y(point.kld);
  }
  draw_gain(svg, data, points);
  for (const SizePoint& point : points)
    svg.circle(point.x, point.y, point.role == Role::kTrained ? 6.5 : 5,
               concat("dot ", role_class(point.role)));
  draw_point_labels(svg, points, layout);
  return svg.finish();
}

// Error by tensor --------------------------------------------------------------------------------

struct LayerError {
  int layer;
  double baseline, trained;
};

std::string draw_tensor_panel(const std::string& kind, const std::vector<LayerError>& errors,
                              double most, bool with_labels) {
  const Layout layout{220, 132, 34, 8, 12, 22, "panel"};
  const double last = std::max(1, errors.back().layer);
  const Axis x{0, last, layout.left + 4, layout.width - layout.right - 4};
  const Axis y{0, most, layout.height - layout.bottom, layout.top};
  Svg svg(layout.width, layout.height, kind + ": relative RMS error by layer", layout.css_class);
  for (const double value : y.ticks(2)) {
    svg.line(layout.left, y(value), layout.width - layout.right, y(value), "rule");
    svg.text(layout.left - 6, y(value) + 4, tick_text(value * 100) + " %", "tick", "end");
  }
  std::vector<std::pair<double, double>> baseline, trained;
  for (const LayerError& error : errors) {
    baseline.emplace_back(x(error.layer), y(error.baseline));
    trained.emplace_back(x(error.layer), y(error.trained));
  }
  for (const auto& [points, role] : {std::pair{&baseline, "baseline"}, {&trained, "trained"}}) {
    if (points->size() > 1) svg.polyline(*points, concat("curve strong ", role));
    if (points->size() < 10)
      for (const auto& [px, py] : *points) svg.circle(px, py, 3, concat("dot ", role));
  }
  if (with_labels)
    svg.text(x(0), layout.height - 5, "layer 0", "tick");
  else
    svg.text(x(0), layout.height - 5, "0", "tick");
  svg.text(x(last), layout.height - 5, fixed(last, 0), "tick", "end");
  return concat("<figure class=\"small\"><figcaption>", escape_html(kind), "</figcaption>",
                svg.finish(), "</figure>\n");
}

// One block --------------------------------------------------------------------------------------

struct BlockSide {
  const std::vector<float>& decoded;
  const std::vector<int>& codes;
  double step, offset;
  const char* role;
};

void draw_block_side(Svg& svg, const BlockSample& block, const BlockSide& side, const Axis& x,
                     const Axis& y, const Layout& layout) {
  for (int code = block.least_code; code <= block.most_code; ++code) {
    const double level = code * side.step + side.offset;
    if (level < y.low || level > y.high) continue;
    svg.line(layout.left, y(level), layout.width - layout.right, y(level), "rule");
    if (code % 4 == 0) svg.text(layout.left - 6, y(level) + 4, std::to_string(code), "tick", "end");
  }
  const double radius = layout.narrow() ? 3.2 : 4.2;
  for (size_t i = 0; i < block.original.size(); ++i) {
    const double centre = x(static_cast<double>(i));
    const bool moved = block.trained_codes[i] != block.baseline_codes[i];
    svg.line(centre, y(block.original[i]), centre, y(side.decoded[i]), concat("stem ", side.role));
    svg.circle(centre, y(block.original[i]), radius, "ring");
    svg.circle(centre, y(side.decoded[i]), radius,
               concat("dot ", side.role, moved ? "" : " quiet"));
  }
}

std::string draw_block(const BlockSample& block, const BlockSide& side, const std::string& label,
                       const Layout& layout) {
  double least = 0, most = 0;
  for (const auto* values : {&block.original, &block.baseline, &block.trained})
    for (const float value : *values) {
      least = std::min<double>(least, value);
      most = std::max<double>(most, value);
    }
  const double margin = (most - least) * 0.06 + 1e-12;
  const Axis y{least - margin, most + margin, layout.height - layout.bottom, layout.top};
  const Axis x{0, std::max(1.0, static_cast<double>(block.original.size()) - 1), layout.left + 8,
               layout.width - layout.right - 8};
  Svg svg(layout.width, layout.height, label, layout.css_class);
  draw_block_side(svg, block, side, x, y, layout);
  return svg.finish();
}

}  // namespace

bool split_tensor_name(const std::string& name, std::string* kind, int* layer) {
  if (!name.starts_with("blk.")) return false;
  const size_t dot = name.find('.', 4);
  if (dot == std::string::npos || dot == 4 || dot > 9) return false;
  for (size_t i = 4; i < dot; ++i)
    if (!std::isdigit(static_cast<unsigned char>(name[i]))) return false;
  *layer = std::stoi(name.substr(4, dot - 4));
  *kind = name.substr(dot + 1);
  if (kind->ends_with(".weight")) kind->resize(kind->size() - 7);
  return true;
}

Role role_of(const ReportData& data, const std::string& name) {
  for (const ReportModel& model : data.models)
    if (model.name == name) return model.role;
  return Role::kOther;
}

const char* role_class(Role role) {
  switch (role) {
    case Role::kBaseline:
      return "baseline";
    case Role::kTrained:
      return "trained";
    case Role::kSource:
      return "source";
    case Role::kOther:
      break;
  }
  return "other";
}

std::string loss_chart(const ReportData& data) {
  return draw_loss(data, {912, 330, 46, 120, 28, 40, "wide"}) +
         draw_loss(data, {350, 270, 38, 116, 28, 40, "narrow"});
}

std::string size_chart(const ReportData& data) {
  return draw_size(data, {912, 400, 46, 20, 28, 40, "wide"}) +
         draw_size(data, {350, 360, 42, 6, 28, 40, "narrow"});
}

std::string tensor_error_charts(const ReportData& data) {
  std::vector<std::string> kinds;  // in the file's order
  std::map<std::string, std::vector<LayerError>> by_kind;
  double most = 0;
  for (const TensorError& error : data.tensor_errors) {
    std::string kind;
    int layer = 0;
    if (!split_tensor_name(error.tensor, &kind, &layer)) continue;
    if (!by_kind.count(kind)) kinds.push_back(kind);
    by_kind[kind].push_back({layer, error.baseline, error.trained});
    most = std::max({most, error.baseline, error.trained});
  }
  if (kinds.empty()) return "";
  std::string out = "<div class=\"panels\">\n";
  for (const std::string& kind : kinds) {
    auto& errors = by_kind[kind];
    std::sort(errors.begin(), errors.end(),
              [](const LayerError& a, const LayerError& b) { return a.layer < b.layer; });
    out += draw_tensor_panel(kind, errors, most > 0 ? most * 1.08 : 1, kind == kinds.front());
  }
  return out + "</div>\n";
}

std::string block_chart(const BlockSample& block, const std::string& baseline_name) {
  const BlockSide before{block.baseline, block.baseline_codes, block.baseline_step,
                         block.baseline_offset, "baseline"};
  const BlockSide after{block.trained, block.trained_codes, block.trained_step,
                        block.trained_offset, "trained"};
  int changed = 0;
  for (size_t i = 0; i < block.original.size(); ++i)
    changed += block.trained_codes[i] != block.baseline_codes[i];
  const Layout wide{912, 220, 34, 6, 8, 8, "wide"}, narrow{350, 190, 28, 2, 8, 8, "narrow"};
  std::string out;
  out += concat("<p class=\"caption\"><b class=\"baseline\">", escape_html(baseline_name),
                "</b>, step ", three_digits(block.baseline_step), "</p>\n");
  out += draw_block(block, before, "The block as the baseline stores it", wide);
  out += draw_block(block, before, "The block as the baseline stores it", narrow);
  out += concat("<p class=\"caption\"><b class=\"trained\">Trained</b>, step ",
                three_digits(block.trained_step), "; ", changed, " of ", block.original.size(),
                " codes differ (filled)</p>\n");
  out += draw_block(block, after, "The block as training left it", wide);
  out += draw_block(block, after, "The block as training left it", narrow);
  return out;
}

}  // namespace nibble
