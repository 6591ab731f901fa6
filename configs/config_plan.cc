// Which tensor gets which type, as a configuration says it.
#include "base/error.h"
#include "configs/config.h"
#include "model/model.h"
#include "quant/format/registry.h"
#include "quant/mix/tensor_types.h"

namespace nibble {

PlanOptions plan_options(const RunConfig& config) {
  const std::string& type = config.train.quant.type;
  PlanOptions options;
  options.type_name = type == "none" ? "F32" : type;
  options.allow_requantize = true;  // of a source that is decoded; training starts from float32
  options.pure = config.mix.pure;
  if (const Format* format = find_format(config.mix.output_tensor_type))
    options.output_type = format->type;
  if (const Format* format = find_format(config.mix.token_embedding_type))
    options.token_embedding_type = format->type;
  for (const std::string& text : config.mix.tensor_type)
    options.tensor_types.push_back(parse_tensor_type(text));
  if (!config.mix.tensor_types.empty())
    for (const auto& type : read_tensor_types(config.mix.tensor_types))
      options.tensor_types.push_back(type);
  return options;
}

Plan run_plan(const RunConfig& config, const GgufFile& source) {
  if (config.train.loss.load_balance > 0 && model_shape(source).num_experts == 0)
    fail_usage("loss.load_balance: has no effect, since ", source.path(), " has no experts");
  if (config.init_file().empty()) return make_plan(source, plan_options(config));
  return with_frame("init.file",
                    [&] { return plan_like(source, GgufFile::open(config.init_file())); });
}

}  // namespace nibble
