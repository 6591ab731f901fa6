#include "quant/mix/mix.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {
namespace {

// Short names, since the rules below are best read as a table.
using F = FileType;
using T = GgmlType;

/// A tensor's place among those of its role.
struct Place {
  int64_t index, count;
  bool is_in_first(int64_t parts) const { return index < count / parts; }
  bool is_in_middle() const { return !is_in_first(8) && index < 7 * count / 8; }
  /// The first and the last eighth, and every third tensor between them.
  bool gets_more_bits() const { return !is_in_middle() || (index - count / 8) % 3 == 2; }
};

/// The codebooks of less than 3 bits have rules of their own.
bool is_below_3_bits(F file_type) {
  switch (file_type) {
    case F::kIQ1_S:
    case F::kIQ1_M:
    case F::kIQ2_XXS:
    case F::kIQ2_XS:
    case F::kIQ2_S:
    case F::kIQ2_M:
      return true;
    default:
      return false;
  }
}

T output(const MixFacts& facts, const FileTypeInfo& file_type, int64_t row_length) {
  const bool divides = row_length % ggml_type_info(file_type.tensor_type).block_size == 0;
  if (file_type.type == F::kMXFP4_MOE || facts.architecture == "falcon" || !divides)
    return T::kQ8_0;
  if (is_below_3_bits(file_type.type) || file_type.type == F::kIQ3_XXS) return T::kQ5_K;
  return file_type.type == F::kQ8_0 ? T::kQ8_0 : T::kQ6_K;
}

/// Of a token embedding that is not the output.
T token_embedding(const FileTypeInfo& file_type) {
  switch (file_type.type) {
    case F::kIQ1_S:
    case F::kIQ1_M:
    case F::kIQ2_XXS:
    case F::kIQ2_XS:
      return T::kQ2_K;
    case F::kIQ2_S:
    case F::kIQ2_M:
    case F::kIQ3_XXS:
      return T::kIQ3_S;
    case F::kTQ1_0:
    case F::kTQ2_0:
    case F::kQ2_0:
      return T::kQ4_K;
    default:
      return file_type.tensor_type;
  }
}

/// Matrices of experts lie in one tensor of three dimensions, but in bailingmoe3 others do so too.
T mxfp4_moe(const MixFacts& facts, const std::vector<int64_t>& shape, TensorRole role) {
  const bool is_ffn =
      role == TensorRole::kFfnUp || role == TensorRole::kFfnGate || role == TensorRole::kFfnDown;
  const bool may_be_expert = is_ffn || facts.architecture != "bailingmoe3";
  return shape.size() > 2 && shape[2] > 1 && may_be_expert ? T::kMXFP4 : T::kQ8_0;
}

T below_3_bits(const MixFacts& facts, const FileTypeInfo& file_type, TensorRole role, Place place) {
  const bool is_iq2_s_or_m = file_type.type == F::kIQ2_S || file_type.type == F::kIQ2_M;
  const bool is_iq1 = file_type.type == F::kIQ1_S || file_type.type == F::kIQ1_M;
  const T more_bits = is_iq2_s_or_m ? T::kIQ3_S : T::kQ2_K;
  switch (role) {
    case TensorRole::kAttentionV:
      return facts.heads_per_kv_head >= 4 || facts.num_experts >= 4 ? T::kQ4_K : more_bits;
    case TensorRole::kAttentionK:
      return facts.num_experts == 8 ? T::kQ4_K : file_type.tensor_type;
    case TensorRole::kFfnDown:
      return place.is_in_first(8) ? more_bits : file_type.tensor_type;
    case TensorRole::kAttentionOutput:
      return facts.num_experts == 8 ? T::kQ5_K
             : is_iq1               ? T::kIQ2_XXS
             : is_iq2_s_or_m        ? T::kIQ3_S
                                    : file_type.tensor_type;
    default:
      return file_type.tensor_type;
  }
}

T attention_v_by_file_type(const MixFacts& facts, const FileTypeInfo& file_type, Place place) {
  const T same = file_type.tensor_type;
  const bool is_small = facts.heads_per_kv_head >= 4;
  switch (file_type.type) {
    case F::kQ2_K:
      return is_small ? T::kQ4_K : T::kQ3_K;
    case F::kQ2_K_S:
    case F::kIQ3_XS:
    case F::kIQ3_S:
      return is_small ? T::kQ4_K : same;
    case F::kIQ3_XXS:
      return is_small ? T::kQ4_K : facts.has_imatrix ? same : T::kIQ3_S;
    case F::kIQ3_M:
      return T::kQ4_K;
    case F::kQ3_K_M:
      return place.index < 2 ? T::kQ5_K : T::kQ4_K;
    case F::kQ3_K_L:
      return T::kQ5_K;
    case F::kIQ4_NL:
    case F::kIQ4_XS:
      return is_small ? T::kQ5_K : same;
    case F::kQ4_K_M:
    case F::kQ5_K_M:
      return place.gets_more_bits() ? T::kQ6_K : same;
    case F::kQ4_K_S:
      return place.index < 4 ? T::kQ5_K : same;
    default:
      return same;
  }
}

/// In a 70B model 8 heads share each V, and beside 8 experts it is smaller still: more bits cost
/// little.
T attention_v(const MixFacts& facts, const FileTypeInfo& file_type, Place place) {
  if (facts.num_experts == 8) return T::kQ8_0;
  const T type = attention_v_by_file_type(facts, file_type, place);
  return facts.is_70b && (type == T::kQ3_K || type == T::kQ4_K) ? T::kQ5_K : type;
}

T attention_q(const FileTypeInfo& file_type) {
  switch (file_type.type) {
    case F::kIQ3_XS:
      return T::kIQ3_XXS;
    case F::kIQ3_XXS:
      return T::kIQ2_S;
    default:
      return file_type.tensor_type;
  }
}

T attention_k(const MixFacts& facts, const FileTypeInfo& file_type) {
  return facts.num_experts == 8 ? T::kQ8_0 : attention_q(file_type);
}

T attention_output(const MixFacts& facts, const FileTypeInfo& file_type) {
  const T same = file_type.tensor_type;
  if (facts.architecture == "falcon") return file_type.type == F::kQ3_K_L ? T::kQ4_K : same;
  if (facts.num_experts == 8) {
    switch (file_type.type) {
      case F::kQ2_K:
      case F::kIQ3_XXS:
      case F::kIQ3_XS:
      case F::kIQ3_S:
      case F::kIQ3_M:
      case F::kQ3_K_S:
      case F::kQ3_K_M:
      case F::kIQ4_NL:
      case F::kIQ4_XS:
      case F::kQ4_K_S:
      case F::kQ4_K_M:
        return T::kQ5_K;
      default:
        return same;
    }
  }
  switch (file_type.type) {
    case F::kQ2_K:
      return T::kQ3_K;
    case F::kIQ3_XXS:
      return T::kIQ3_S;
    case F::kQ3_K_M:
    case F::kIQ3_M:
      return T::kQ4_K;
    case F::kQ3_K_L:
      return T::kQ5_K;
    default:
      return same;
  }
}

T ffn_down_of_falcon(const FileTypeInfo& file_type, Place place) {
  switch (file_type.type) {
    case F::kQ3_K_M:
      return place.is_in_first(16) ? T::kQ5_K : place.gets_more_bits() ? T::kQ4_K : T::kQ3_K;
    case F::kQ3_K_L:
      return T::kQ4_K;
    case F::kQ4_K_M:
      return place.is_in_first(16) ? T::kQ6_K : place.gets_more_bits() ? T::kQ5_K : T::kQ4_K;
    default:
      return file_type.tensor_type;
  }
}

T ffn_down(const MixFacts& facts, const FileTypeInfo& file_type, Place place) {
  const T same = file_type.tensor_type;
  const bool early = place.is_in_first(8), is_falcon = facts.architecture == "falcon";
  switch (file_type.type) {
    case F::kQ2_K:
      return T::kQ3_K;
    case F::kQ2_K_S:
      return early ? T::kQ4_K : same;
    case F::kIQ3_XXS:
      return facts.has_imatrix ? same : early ? T::kQ4_K : T::kQ3_K;
    case F::kIQ3_M:
      return early || (facts.num_experts == 8 && place.gets_more_bits()) ? T::kQ4_K : same;
    case F::kQ3_K_M:
      if (is_falcon) return ffn_down_of_falcon(file_type, place);
      return place.is_in_first(16) ? T::kQ5_K : T::kQ4_K;
    case F::kQ3_K_L:
      return is_falcon ? ffn_down_of_falcon(file_type, place) : T::kQ5_K;
    case F::kQ4_K_M:
      if (is_falcon) return ffn_down_of_falcon(file_type, place);
      return place.gets_more_bits() ? T::kQ6_K : same;
    case F::kQ5_K_M:
      return place.gets_more_bits() ? T::kQ6_K : same;
    case F::kQ4_K_S:
      return early && !is_falcon ? T::kQ5_K : same;
    case F::kIQ4_NL:
    case F::kIQ4_XS:
      return early && !facts.has_imatrix ? T::kQ5_K : same;
    case F::kQ4_0:
      return early && facts.has_imatrix ? T::kQ4_1 : same;
    case F::kQ5_0:
      return early && facts.has_imatrix ? T::kQ5_1 : same;
    default:
      return same;
  }
}

T ffn_gate_or_up(const FileTypeInfo& file_type, Place place) {
  return file_type.type == F::kIQ3_XS && place.is_in_middle() ? T::kIQ3_XXS : file_type.tensor_type;
}

T of_3_bits_or_more(const MixFacts& facts, const FileTypeInfo& file_type, TensorRole role,
                    Place place) {
  switch (role) {
    case TensorRole::kAttentionV:
      return attention_v(facts, file_type, place);
    case TensorRole::kAttentionK:
      return attention_k(facts, file_type);
    case TensorRole::kAttentionQ:
      return attention_q(file_type);
    case TensorRole::kAttentionOutput:
      return attention_output(facts, file_type);
    case TensorRole::kFfnDown:
      return ffn_down(facts, file_type, place);
    case TensorRole::kFfnGate:
    case TensorRole::kFfnUp:
      return ffn_gate_or_up(file_type, place);
    default:
      return file_type.tensor_type;
  }
}

/// The layers' first number, or the only one; 0 where the key is missing.
int64_t first_of(const GgufMetadata& metadata, const std::string& key, int64_t otherwise) {
  const GgufValue* value = metadata.find(key);
  if (!value || !std::holds_alternative<GgufArray>(*value))
    return metadata.get_int_or(key, otherwise);
  const std::vector<int64_t> per_layer = metadata.get_ints(key);
  return per_layer.empty() ? otherwise : per_layer[0];
}

/// Where llama.cpp's architectures say LLM_TYPE_70B (src/models/*.cpp).
bool is_70b(const MixFacts& facts, int64_t num_layers, bool is_gqa) {
  const std::string& architecture = facts.architecture;
  if (architecture == "jais2") return num_layers == 68;
  if (num_layers != 80) return false;
  if (architecture == "llama" || architecture == "llama-embed")
    return is_gqa && facts.num_experts != 8;
  return architecture == "qwen2" || architecture == "deci" || architecture == "olmo";
}

bool is_kept_at_8_bits(const MixFacts& facts, const std::string& name) {
  if (facts.architecture != "glm5-next") return false;
  for (const std::string_view part : {"attn_q_a", "attn_q_b", "nextn.eh_proj"})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

/// Matrices of experts may come in any order, so that there the name tells the layer.
Place place_of_ffn(const MixFacts& facts, const std::string& name, int64_t index) {
  if (facts.num_experts <= 1) return {index, facts.num_layers};
  const std::optional<int64_t> layer = layer_of(name);
  check(layer && *layer >= 0 && *layer < facts.num_layers, "its name should hold a layer below ",
        facts.num_layers);
  return {*layer, facts.num_layers};
}

}  // namespace

MixFacts mix_facts(const GgufMetadata& metadata, const std::vector<std::string>& tensor_names,
                   bool has_imatrix) {
  MixFacts facts;
  facts.architecture = metadata.get_string_or("general.architecture", "");
  const std::string prefix = facts.architecture + '.';
  facts.num_layers = metadata.get_int_or(prefix + "block_count", 0);
  facts.num_experts = metadata.get_int_or(prefix + "expert_count", 0);
  const int64_t heads = first_of(metadata, prefix + "attention.head_count", 0);
  const int64_t kv_heads = first_of(metadata, prefix + "attention.head_count_kv", heads);
  facts.heads_per_kv_head = kv_heads > 0 ? heads / kv_heads : 0;
  const int64_t predicting = metadata.get_int_or(prefix + "nextn_predict_layers", 0);
  facts.is_70b = is_70b(facts, facts.num_layers - predicting, heads != kv_heads);
  facts.has_imatrix = has_imatrix;
  facts.tied = true;
  for (const std::string& name : tensor_names) {
    const TensorRole role = role_of(name);
    facts.num_attention_v += role == TensorRole::kAttentionV;
    if (role == TensorRole::kOutput) facts.tied = false;
  }
  return facts;
}

GgmlType Mix::choose(const std::string& name, const std::vector<int64_t>& shape, TensorRole role) {
  if (is_kept_at_8_bits(facts_, name)) return T::kQ8_0;
  const int64_t row_length = shape.empty() ? 1 : shape[0];
  if (role == TensorRole::kOutput || (role == TensorRole::kTokenEmbedding && facts_.tied))
    return output(facts_, file_type_, row_length);
  if (file_type_.type == F::kMXFP4_MOE) return mxfp4_moe(facts_, shape, role);
  if (role == TensorRole::kTokenEmbedding) return token_embedding(file_type_);
  if (is_below_3_bits(file_type_.type)) {
    const int64_t index = role == TensorRole::kFfnDown ? num_ffn_down_++ : 0;
    return below_3_bits(facts_, file_type_, role, {index, facts_.num_layers});
  }
  Place place = {0, 0};
  if (role == TensorRole::kAttentionV) place = {num_attention_v_++, facts_.num_attention_v};
  if (role == TensorRole::kFfnDown) place = place_of_ffn(facts_, name, num_ffn_down_++);
  if (role == TensorRole::kFfnGate) place = place_of_ffn(facts_, name, num_ffn_gate_++);
  if (role == TensorRole::kFfnUp) place = place_of_ffn(facts_, name, num_ffn_up_++);
  return of_3_bits_or_more(facts_, file_type_, role, place);
}

}  // namespace nibble
