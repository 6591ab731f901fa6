#include "recipes/quantize_report.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

/// "210 Q4_0, 61 F32, 1 Q8_0", the most frequent first.
std::string count_types(const Plan& plan) {
  std::map<std::string_view, int64_t> counts;
  for (const PlanEntry& entry : plan.entries) ++counts[type_name(entry.target)];
  std::vector<std::pair<std::string_view, int64_t>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text;
  for (const auto& [name, count] : sorted)
    text += concat(text.empty() ? "" : ", ", count, " ", name);
  return text;
}

std::string plan_lines(const Plan& plan) {
  std::string lines;
  for (const PlanEntry& entry : plan.entries)
    lines += concat(entry.tensor, "  ", type_name(entry.source), " -> ", type_name(entry.target),
                    "  (", entry.reason, ")\n");
  return lines +
         concat(count_types(plan), "; ", format_bytes(plan.total_bytes()), " of tensor data\n");
}

std::string stats_line(const QuantizeOutput& output, const QuantizeStats& stats) {
  char numbers[96];
  std::snprintf(numbers, sizeof numbers, "%.2f bits per weight, %.1f s", stats.bits_per_weight(),
                stats.seconds);
  return concat(output.path, ": ", output.plan.type_name, ", ", format_bytes(stats.bytes),
                " of tensor data, ", numbers, " (", count_types(output.plan), ")\n");
}

Json stats_json(const QuantizeOutput& output, const QuantizeStats& stats,
                const std::string& method) {
  return {{"name", output.path},
          {"type", output.plan.type_name},
          {"method", method},
          {"bytes", stats.bytes},
          {"source_bytes", stats.source_bytes},
          {"bpw", stats.bits_per_weight()},
          {"weights", stats.num_weights},
          {"tensors", stats.num_tensors},
          {"converted", stats.num_converted},
          {"seconds", stats.seconds}};
}

void print_json(const std::vector<Json>& objects, bool many) {
  const Json json = many ? Json(objects) : objects.front();
  std::cout << json.dump(1, ' ', false, Json::error_handler_t::replace) << '\n';
}

}  // namespace

void print_plans(std::span<const QuantizeOutput> outputs, const QuantizeReport& report) {
  std::vector<Json> objects;
  for (const QuantizeOutput& output : outputs) {
    if (report.json)
      objects.push_back(Json::parse(output.plan.to_json()));
    else
      std::cout << (report.many ? output.path + ":\n" : "") << plan_lines(output.plan);
  }
  if (report.json) print_json(objects, report.many);
  for (const QuantizeOutput& output : outputs) {
    const Plan& plan = output.plan;
    try {
      with_frame(report.many ? plan.type_name : "", [&] { check_encodable(plan); });
    } catch (const Error& error) {
      warn("without --dry-run this plan is refused: ", error.what());
    }
  }
}

void print_stats(std::span<const QuantizeOutput> outputs, std::span<const QuantizeStats> stats,
                 const std::string& method, const QuantizeReport& report) {
  std::vector<Json> objects;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (report.json)
      objects.push_back(stats_json(outputs[i], stats[i], method));
    else
      std::cout << stats_line(outputs[i], stats[i]);
  }
  if (report.json) print_json(objects, report.many);
}

}  // namespace nibble
