#include "model/hf/window_layers.h"

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {

void check_window_layers(const nlohmann::json& config, int64_t period, int64_t num_layers) {
  for (const char* key : {"sliding_window_pattern", "_sliding_window_pattern"})
    check(int_field(config, key).value_or(period) == period, "key '", key,
          "': ", int_field(config, key).value_or(0),
          "; nibble has windows in all but each layer number ", period);
  const nlohmann::json* types = array_field(config, "layer_types");
  if (!types) return;
  check(static_cast<int64_t>(types->size()) >= num_layers, "key 'layer_types': wants ", num_layers,
        " of them, found ", types->size());
  for (int64_t i = 0; i < num_layers; ++i)
    check((*types)[static_cast<size_t>(i)] ==
              (i % period < period - 1 ? "sliding_attention" : "full_attention"),
          "key 'layer_types': layer ", i, " is another than all but each layer number ", period,
          " with a window");
}

}  // namespace nibble
