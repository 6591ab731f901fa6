#include "quant/mix/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

const Json& field(const Json& object, const char* key) {
  check(object.is_object(), "wants an object, found ", object.type_name());
  const auto found = object.find(key);
  check(found != object.end(), "has no '", key, "'");
  return *found;
}

std::string text_field(const Json& object, const char* key) {
  const Json& value = field(object, key);
  check(value.is_string(), "'", key, "' wants a text, found ", value.type_name());
  return value.get<std::string>();
}

TensorSensitivity read_tensor(const Json& object) {
  TensorSensitivity read;
  read.tensor = text_field(object, "name");
  with_frame("'" + read.tensor + "'", [&] {
    for (const Json& size : field(object, "shape")) {
      check(size.is_number_integer() && size.get<int64_t>() > 0, "'shape': impossible dimension ",
            size.dump());
      read.shape.push_back(size.get<int64_t>());
    }
    for (const auto& [name, value] : field(object, "kld").items()) {
      const GgmlTypeInfo* info = find_ggml_type(std::string_view(name));
      check(info, "unknown tensor type '", name, "'");
      check(value.is_number() && std::isfinite(value.get<double>()), name, ": wants a KLD, found ",
            value.dump());
      read.kld.emplace_back(info->type, value.get<double>());
    }
  });
  return read;
}

}  // namespace

const double* TensorSensitivity::find(GgmlType type) const {
  const auto found =
      std::find_if(kld.begin(), kld.end(), [&](const auto& pair) { return pair.first == type; });
  return found == kld.end() ? nullptr : &found->second;
}

const TensorSensitivity* Sensitivity::find(std::string_view tensor) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const auto& each) { return each.tensor == tensor; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string Sensitivity::to_json() const {
  Json list = Json::array();
  for (const TensorSensitivity& tensor : tensors) {
    Json kld = Json::object();
    for (const auto& [type, value] : tensor.kld) kld[std::string(type_name(type))] = value;
    list.push_back({{"name", tensor.tensor}, {"shape", tensor.shape}, {"kld", std::move(kld)}});
  }
  const Json all = {
      {"model", model}, {"text", text}, {"fingerprint", fingerprint}, {"tensors", std::move(list)}};
  return all.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Sensitivity Sensitivity::from_json(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  check(!json.is_discarded(), "no JSON");
  Sensitivity read;
  read.model = text_field(json, "model");
  read.text = text_field(json, "text");
  read.fingerprint = text_field(json, "fingerprint");
  const Json& list = field(json, "tensors");
  check(list.is_array(), "'tensors' wants an array, found ", list.type_name());
  for (size_t i = 0; i < list.size(); ++i) {
    read.tensors.push_back(with_frame(concat("tensor ", i), [&] { return read_tensor(list[i]); }));
    check(read.find(read.tensors.back().tensor) == &read.tensors.back(), "tensor '",
          read.tensors.back().tensor, "' comes twice");
  }
  return read;
}

}  // namespace nibble
