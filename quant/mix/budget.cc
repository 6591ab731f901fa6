#include "quant/mix/budget.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <queue>

#include "base/error.h"
#include "base/progress.h"
#include "quant/format/registry.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

using Ways = std::vector<TypeCost>;

bool smaller(const TypeCost& a, const TypeCost& b) {
  return a.bytes != b.bytes ? a.bytes < b.bytes : a.kld < b.kld;
}

/// KLD saved per byte by going from one way to another of more bytes.
double slope(const TypeCost& from, const TypeCost& to) {
  return (from.kld - to.kld) / static_cast<double>(to.bytes - from.bytes);
}

/// Indices of the ways on the lower convex hull, from the fewest bytes on; each saves KLD, and less
/// per byte than the one before.
std::vector<size_t> lower_hull(const Ways& ways) {
  std::vector<size_t> order(ways.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return smaller(ways[a], ways[b]); });
  std::vector<size_t> hull;
  for (const size_t next : order) {
    if (!hull.empty() && ways[next].kld >= ways[hull.back()].kld) continue;
    while (hull.size() > 1 && slope(ways[hull[hull.size() - 2]], ways[hull.back()]) <=
                                  slope(ways[hull.back()], ways[next]))
      hull.pop_back();
    hull.push_back(next);
  }
  return hull;
}

/// The next step of one tensor along its hull.
struct Step {
  double slope;
  size_t tensor;
  size_t to;  // in the hull
  bool operator<(const Step& other) const { return slope < other.slope; }
};

/// What is left over goes, one change at a time, to the way that saves most and still fits.
void spend(const std::vector<Ways>& tensors, int64_t left, std::vector<size_t>& chosen) {
  for (;;) {
    double most = 0;
    size_t tensor = 0, way = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TypeCost& now = tensors[i][chosen[i]];
      for (size_t j = 0; j < tensors[i].size(); ++j) {
        const TypeCost& other = tensors[i][j];
        if (other.bytes - now.bytes > left || now.kld - other.kld <= most) continue;
        most = now.kld - other.kld;
        tensor = i;
        way = j;
      }
    }
    if (most == 0) return;
    left -= tensors[tensor][way].bytes - tensors[tensor][chosen[tensor]].bytes;
    chosen[tensor] = way;
  }
}

std::vector<Ways> ways_of(const Plan& plan, const Sensitivity& sensitivity,
                          std::vector<size_t>& measured) {
  std::vector<Ways> tensors;
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    const PlanEntry& entry = plan.entries[i];
    const TensorSensitivity* found = sensitivity.find(entry.tensor);
    if (!found || found->kld.empty()) continue;
    check(found->shape == entry.shape, "the sensitivity is of another model: its '", entry.tensor,
          "' has another shape");
    Ways ways;
    for (const auto& [type, kld] : found->kld) {
      check(entry.shape[0] % ggml_type_info(type).block_size == 0, "'", entry.tensor, "': rows of ",
            entry.shape[0], " weights cannot be ", type_name(type));
      ways.push_back({type, entry.bytes_as(type), kld});
    }
    tensors.push_back(std::move(ways));
    measured.push_back(i);
  }
  return tensors;
}

/// general.file_type names one type: the one that most bytes are of.
int file_type_of(const Plan& plan, const std::vector<size_t>& measured) {
  std::map<GgmlType, int64_t> bytes;
  for (const size_t i : measured) {
    const PlanEntry& entry = plan.entries[i];
    bytes[entry.target] += entry.bytes_as(entry.target);
  }
  const auto most = std::max_element(
      bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return require_format(most->first).ftype;
}

std::string escaped(const std::string& name) {
  std::string pattern;
  for (const char c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-') pattern += '\\';
    pattern += c;
  }
  return pattern;
}

}  // namespace

std::vector<size_t> choose_within(const std::vector<Ways>& tensors, int64_t bytes) {
  std::vector<std::vector<size_t>> hulls;
  std::vector<size_t> chosen;
  int64_t left = bytes;
  std::priority_queue<Step> steps;
  const auto add_step = [&](size_t tensor, size_t to) {
    const auto& hull = hulls[tensor];
    if (to < hull.size())
      steps.push({slope(tensors[tensor][hull[to - 1]], tensors[tensor][hull[to]]), tensor, to});
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    hulls.push_back(lower_hull(tensors[i]));
    chosen.push_back(hulls[i].front());
    left -= tensors[i][chosen[i]].bytes;
    add_step(i, 1);
  }
  check(left >= 0, "the smallest types need ", bytes - left, " bytes, the budget is ", bytes);
  while (!steps.empty()) {
    const Step step = steps.top();
    steps.pop();
    const Ways& ways = tensors[step.tensor];
    const size_t to = hulls[step.tensor][step.to];
    const int64_t more = ways[to].bytes - ways[chosen[step.tensor]].bytes;
    if (more > left) continue;  // and none of its later steps, which need more yet
    left -= more;
    chosen[step.tensor] = to;
    add_step(step.tensor, step.to + 1);
  }
  spend(tensors, left, chosen);
  return chosen;
}

Plan plan_within(const GgufFile& source, const Sensitivity& sensitivity, int64_t bytes,
                 const PlanOptions& options) {
  PlanOptions rest = options;
  rest.type_name = "Q8_0";
  rest.allow_requantize = true;  // until the measured tensors have their types
  Plan plan = make_plan(source, rest);
  std::vector<size_t> measured;
  const std::vector<Ways> tensors = ways_of(plan, sensitivity, measured);
  check(!tensors.empty(), "the sensitivity is of another model: it has none of the tensors of ",
        source.path());
  int64_t fixed = plan.total_bytes(), smallest = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const PlanEntry& entry = plan.entries[measured[i]];
    fixed -= entry.bytes_as(entry.target);
    smallest += std::min_element(tensors[i].begin(), tensors[i].end(), smaller)->bytes;
  }
  check(bytes >= fixed + smallest, "a budget of ", format_bytes(bytes),
        " is too small: the smallest of the measured types need ", format_bytes(fixed + smallest));
  const std::vector<size_t> chosen = choose_within(tensors, bytes - fixed);
  for (size_t i = 0; i < chosen.size(); ++i) {
    const TypeCost& way = tensors[i][chosen[i]];
    PlanEntry& entry = plan.entries[measured[i]];
    entry.target = way.type;
    entry.reason = concat(type_name(way.type), ": least KLD within the budget, alone ", way.kld);
  }
  plan.type_name = "mixed";
  plan.file_type = file_type_of(plan, measured);
  if (!options.allow_requantize) check_requantizing(source, plan);
  return plan;
}

std::string tensor_type_file(const Plan& plan) {
  std::string text;
  for (const PlanEntry& entry : plan.entries)
    if (is_quantized(entry.target) && entry.target != entry.source)
      text += concat("^", escaped(entry.tensor), "$=", type_name(entry.target), "\n");
  return text;
}

}  // namespace nibble
