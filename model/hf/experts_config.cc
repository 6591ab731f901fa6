#include "model/hf/experts_config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "model/hf/json_fields.h"

namespace nibble {

/// GGUF has experts in every block, weighted to a sum of 1.
void read_experts_config(const nlohmann::json& config, const LlamaArchitecture& architecture,
                         LlamaSizes& sizes) {
  const bool local = find_field(config, "num_local_experts");
  sizes.num_experts = count_field(config, local ? "num_local_experts" : "num_experts");
  constexpr int64_t kMost = 1024;  // LLAMA_MAX_EXPERTS in llama.cpp src/llama-hparams.h
  check(sizes.num_experts > 1 && sizes.num_experts <= kMost, "a mixture of ", sizes.num_experts,
        " experts; llama.cpp takes up to ", kMost);
  sizes.experts_used = count_field(config, "num_experts_per_tok");
  check(sizes.experts_used <= sizes.num_experts, "key 'num_experts_per_tok': ", sizes.experts_used,
        " of ", sizes.num_experts, " experts");
  sizes.expert_feed_forward = sizes.feed_forward;
  if (architecture.name == "llama") return;
  if (architecture.has_sinks) {
    // Constants in llama.cpp's graph as in nibble.
    for (const auto& [key, wanted] : {std::pair{"swiglu_alpha", 1.702}, {"swiglu_limit", 7.0}}) {
      const double found = number_field(config, key).value_or(wanted);
      check(found == wanted, "key '", key, "': ", found, "; a ", architecture.name, " file has ",
            wanted);
    }
    return;
  }
  sizes.expert_feed_forward = count_field(config, "moe_intermediate_size");
  if (architecture.has_shared_expert)
    sizes.shared_feed_forward = count_field(config, "shared_expert_intermediate_size");
  check(bool_field(config, "norm_topk_prob").value_or(false),
        "key 'norm_topk_prob' is not true: a GGUF file's weights of experts sum to 1");
  const nlohmann::json* dense = array_field(config, "mlp_only_layers");
  check(!dense || dense->empty(), "key 'mlp_only_layers': nibble has experts in all layers");
  const int64_t step = int_field(config, "decoder_sparse_step").value_or(1);
  check(step == 1, "key 'decoder_sparse_step': ", step, "; nibble has experts in all layers");
}

}  // namespace nibble
