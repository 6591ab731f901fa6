#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"
#include "quant/mix/json_fields.h"
#include "quant/mix/plan.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

PlanEntry read_entry(const Json& object) {
  PlanEntry entry;
  entry.tensor = get<std::string>(object, "name");
  with_frame("'" + entry.tensor + "'", [&] {
    entry.shape = get_shape(object);
    entry.source = get_type(object, "source");
    entry.target = get_type(object, "target");
    entry.reason = get<std::string>(object, "reason");
    const int64_t row = entry.shape.empty() ? 1 : entry.shape[0];
    for (const GgmlType type : {entry.source, entry.target})
      check(row % ggml_type_info(type).block_size == 0, "rows of ", row, " weights cannot be ",
            type_name(type));
  });
  return entry;
}

}  // namespace

std::string Plan::to_json() const {
  Json tensors = Json::array();
  for (const PlanEntry& entry : entries)
    tensors.push_back({{"name", entry.tensor},
                       {"shape", entry.shape},
                       {"source", nibble::type_name(entry.source)},
                       {"target", nibble::type_name(entry.target)},
                       {"reason", entry.reason}});
  const Json plan = {
      {"type", type_name}, {"file_type", file_type}, {"tensors", std::move(tensors)}};
  return plan.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Plan Plan::from_json(const std::string& text) {
  return with_frame("plan", [&] {
    const Json json = parse_json(text);
    Plan plan;
    plan.type_name = get<std::string>(json, "type");
    plan.file_type = get<int>(json, "file_type");
    const Json tensors = get<Json>(json, "tensors");
    check(tensors.is_array(), "'tensors': wants an array, found ", tensors.type_name());
    std::unordered_set<std::string> seen;
    for (size_t i = 0; i < tensors.size(); ++i) {
      plan.entries.push_back(
          with_frame(concat("tensor ", i), [&] { return read_entry(tensors[i]); }));
      check(seen.insert(plan.entries.back().tensor).second, "tensor '", plan.entries.back().tensor,
            "' comes twice");
    }
    return plan;
  });
}

}  // namespace nibble
