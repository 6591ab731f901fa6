#include "quant/mix/sensitivity.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "quant/mix/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

TensorSensitivity read_tensor(const Json& object) {
  TensorSensitivity read;
  read.tensor = get<std::string>(object, "name");
  with_frame("'" + read.tensor + "'", [&] {
    read.shape = get_shape(object);
    const auto kld = get<Json>(object, "kld");
    for (const auto& [name, value] : kld.items()) {
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
  const Json json = parse_json(text);
  Sensitivity read;
  read.model = get<std::string>(json, "model");
  read.text = get<std::string>(json, "text");
  read.fingerprint = get<std::string>(json, "fingerprint");
  const auto list = get<Json>(json, "tensors");
  check(list.is_array(), "'tensors' wants an array, found ", list.type_name());
  for (size_t i = 0; i < list.size(); ++i) {
    read.tensors.push_back(with_frame(concat("tensor ", i), [&] { return read_tensor(list[i]); }));
    check(read.find(read.tensors.back().tensor) == &read.tensors.back(), "tensor '",
          read.tensors.back().tensor, "' comes twice");
  }
  return read;
}

}  // namespace nibble
