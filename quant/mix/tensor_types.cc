#include "quant/mix/tensor_types.h"

#include <sstream>
#include <string_view>

#include "base/error.h"
#include "io/atomic_file.h"

namespace nibble {

GgmlType tensor_type_named(const std::string& name) {
  const GgmlTypeInfo* info = find_ggml_type(std::string_view(name));
  if (!info) fail_usage("unknown tensor type '", name, "'");
  return info->type;
}

TensorTypes::value_type parse_tensor_type(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == 0 || equals == std::string::npos) fail_usage("wants NAME=TYPE, found '", text, "'");
  return {text.substr(0, equals), tensor_type_named(text.substr(equals + 1))};
}

TensorTypes read_tensor_types(const std::string& path) {
  std::istringstream words(read_file(path));
  TensorTypes types;
  for (std::string word; words >> word;)
    types.push_back(with_frame(path, [&] { return parse_tensor_type(word); }));
  return types;
}

}  // namespace nibble
