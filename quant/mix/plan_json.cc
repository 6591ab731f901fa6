#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"
#include "quant/mix/plan.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
T get(const Json& object, const char* key) {
  check(object.is_object(), "wants an object, found ", object.type_name());
  const auto found = object.find(key);
  check(found != object.end(), "has no '", key, "'");
  try {
    return found->template get<T>();
  } catch (const nlohmann::json::exception&) {
    fail("'", key, "' is of the wrong type, ", found->type_name());
  }
}

GgmlType get_type(const Json& object, const char* key) {
  const auto name = get<std::string>(object, key);
  const GgmlTypeInfo* info = find_ggml_type(std::string_view(name));
  check(info, "'", key, "': unknown tensor type '", name, "'");
  return info->type;
}

std::vector<int64_t> get_shape(const Json& object) {
  const Json sizes = get<Json>(object, "shape");
  check(sizes.is_array() && sizes.size() <= 4, "'shape': wants an array of at most 4 dimensions");
  std::vector<int64_t> shape;
  // A weight takes at most 8 bytes, so that nothing computed from such a shape overflows.
  int64_t bytes = 8;
  for (const Json& element : sizes) {
    const int64_t size = element.is_number_integer() ? element.get<int64_t>() : 0;
    check(size > 0 && !__builtin_mul_overflow(bytes, size, &bytes),
          "'shape': impossible dimension ", element.dump());
    shape.push_back(size);
  }
  return shape;
}

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

Json parse(const std::string& text) {
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    fail("no JSON: error at byte ", error.byte);
  }
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
    const Json json = parse(text);
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
