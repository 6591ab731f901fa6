// Types asked for by the names of tensors: NAME=TYPE, as llama-quantize's --tensor-type takes them
// and as tensor_type_file() (quant/mix/budget.h) writes them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "io/ggml_type.h"

namespace nibble {

/// NAME, a regular expression, and the type of the tensors that it matches (PlanOptions).
using TensorTypes = std::vector<std::pair<std::string, GgmlType>>;

/// A tensor's type by its name in any case. Throws Error (usage) for an unknown one.
GgmlType tensor_type_named(const std::string& name);
/// Of "attn_v=Q6_K". Throws Error (usage) for another text.
TensorTypes::value_type parse_tensor_type(const std::string& text);
/// Those of a file, separated by spaces or newlines. Errors name the file.
TensorTypes read_tensor_types(const std::string& path);

}  // namespace nibble
