#include "quant/mix/json_fields.h"

namespace nibble {

using Json = nlohmann::ordered_json;

Json parse_json(const std::string& text) {
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    fail("no JSON: error at byte ", error.byte);
  } catch (const nlohmann::json::exception&) {
    fail("no JSON that can be read (a number or string out of range)");
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

}  // namespace nibble
