#include "io/json.h"

#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace nibble {

nlohmann::json parse_json_object(std::string_view text, std::string_view what, int max_nesting,
                                 uint64_t first_byte) {
  using Json = nlohmann::json;
  std::vector<std::set<std::string>> keys(static_cast<size_t>(max_nesting) + 1);
  const auto guard = [&](int depth, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      check(depth < max_nesting, what, " is nested deeper than ", max_nesting, " levels");
      keys[static_cast<size_t>(depth) + 1].clear();
    } else if (event == Json::parse_event_t::key) {
      const auto name = value.get<std::string>();
      check(keys[static_cast<size_t>(depth)].insert(name).second, what, " names '", name,
            "' twice");
    }
    return true;
  };
  try {
    Json object = Json::parse(text, guard);
    check(object.is_object(), what, " is a JSON ", object.type_name(), ", not an object");
    return object;
  } catch (const Json::parse_error& error) {
    fail(what, " is not JSON, at byte offset ", first_byte + error.byte - 1);
  } catch (const Json::exception&) {
    fail(what, " is not JSON that can be read (a number or string out of range)");
  }
}

}  // namespace nibble
