#include "quant/mix/rules.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"

namespace nibble {
namespace {

constexpr std::string_view kBlockPrefix = "blk.";

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

struct RolePart {
  std::string_view part;  // of the tensor's name
  TensorRole role;
};

// llama-quantize looks in this order, which decides for a name that holds two of the parts.
constexpr RolePart kRoleParts[] = {
    {"attn_qkv.weight", TensorRole::kAttentionV},
    {"attn_kv_b.weight", TensorRole::kAttentionV},
    {"attn_v.weight", TensorRole::kAttentionV},
    {"attn_k.weight", TensorRole::kAttentionK},
    {"attn_q.weight", TensorRole::kAttentionQ},
    {"attn_output.weight", TensorRole::kAttentionOutput},
    {"ffn_up", TensorRole::kFfnUp},
    {"ffn_gate", TensorRole::kFfnGate},
    {"ffn_down", TensorRole::kFfnDown},
};

struct KeptName {
  std::string_view part;  // of the tensor's name
  std::string_view reason;
};

constexpr KeptName kKeptNames[] = {
    {"_norm.weight", "norm"},
    {"ffn_gate_inp.weight", "router"},
    {"ffn_gate_tid2eid.weight", "router table"},
    {"altup", "very small"},
    {"laurel", "very small"},
    {"per_layer_model_proj", "small"},
    {"ssm_conv1d", "small convolution"},
    {"shortconv.conv.weight", "small convolution"},
    {"indexer.k_proj.weight", "small indexer"},
    {"indexer.q_proj.weight", "small indexer"},
    {"time_mix_first.weight", "small RWKV weight"},
    {"time_mix_w0.weight", "small RWKV weight"},
    {"time_mix_w1.weight", "small RWKV weight"},
    {"time_mix_w2.weight", "small RWKV weight"},
    {"time_mix_v0.weight", "small RWKV weight"},
    {"time_mix_v1.weight", "small RWKV weight"},
    {"time_mix_v2.weight", "small RWKV weight"},
    {"time_mix_a0.weight", "small RWKV weight"},
    {"time_mix_a1.weight", "small RWKV weight"},
    {"time_mix_a2.weight", "small RWKV weight"},
    {"time_mix_g1.weight", "small RWKV weight"},
    {"time_mix_g2.weight", "small RWKV weight"},
    {"time_mix_decay_w1.weight", "small RWKV weight"},
    {"time_mix_decay_w2.weight", "small RWKV weight"},
    {"time_mix_lerp_fused.weight", "small RWKV weight"},
    {"attn_rel_b.weight", "relative position bias"},
    {".position_embd", "position embedding"},
    {"sam.pos_embd", "position embedding"},
    {"sam.neck.", "vision tower"},
    {"sam.net_", "vision tower"},
    {".rel_pos", "relative position"},
    {".patch_embd", "patch embedding"},
    {".patch_merger", "patch merger"},
    {"a.rvq.codebook", "audio codebook"},
    {"mm.a.code_embd", "audio codebook"},
};

constexpr std::string_view kKeptInGlm5Next[] = {
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
};

/// The layer that a name says and where its digits are.
struct NamedLayer {
  int64_t layer;
  size_t begin, end;
};

/// Of "blk.7." wherever it stands first, as llama-quantize prunes "enc.blk.7." with "blk.7.".
std::optional<NamedLayer> find_layer(std::string_view name) {
  const char* const end = name.data() + name.size();
  for (size_t at = name.find(kBlockPrefix); at != std::string_view::npos;
       at = name.find(kBlockPrefix, at + 1)) {
    const size_t begin = at + kBlockPrefix.size();
    int64_t layer;
    const auto [rest, error] = std::from_chars(name.data() + begin, end, layer);
    if (error == std::errc() && rest != end && *rest == '.')
      return NamedLayer{layer, begin, static_cast<size_t>(rest - name.data())};
  }
  return std::nullopt;
}

}  // namespace

TensorRole role_of(std::string_view name) {
  if (name == "output.weight") return TensorRole::kOutput;
  if (name == "token_embd.weight" || name == "per_layer_token_embd.weight")
    return TensorRole::kTokenEmbedding;
  for (const RolePart& row : kRoleParts)
    if (contains(name, row.part)) return row.role;
  return TensorRole::kOther;
}

std::string_view role_name(TensorRole role) {
  switch (role) {
    case TensorRole::kTokenEmbedding:
      return "embedding";
    case TensorRole::kOutput:
      return "output";
    case TensorRole::kAttentionV:
      return "attn_v";
    case TensorRole::kAttentionK:
      return "attn_k";
    case TensorRole::kAttentionQ:
      return "attn_q";
    case TensorRole::kAttentionOutput:
      return "attn_output";
    case TensorRole::kFfnUp:
      return "ffn_up";
    case TensorRole::kFfnGate:
      return "ffn_gate";
    case TensorRole::kFfnDown:
      return "ffn_down";
    case TensorRole::kOther:
      break;
  }
  return "of no role";
}

std::string_view kept_because(std::string_view name, const std::vector<int64_t>& shape,
                              std::string_view architecture) {
  if (num_dimensions(shape) < 2) return "fewer than 2 dimensions";
  // llama-quantize compares find()'s place with size - 6, which meet in "nowhere" for five letters.
  if (!name.ends_with("weight") && name.size() != 5) return "not a weight";
  if (name == "position_embd.weight") return "position embedding";
  if (name == "token_types.weight") return "token types";
  for (const KeptName& kept : kKeptNames)
    if (contains(name, kept.part)) return kept.reason;
  if (architecture == "glm5-next")
    for (const std::string_view part : kKeptInGlm5Next)
      if (contains(name, part)) return "small glm5-next weight";
  return "";
}

GgmlType type_that_fits(GgmlType type, int64_t row_length) {
  const auto fits = [&](GgmlType t) { return row_length % ggml_type_info(t).block_size == 0; };
  if (fits(type)) return type;
  GgmlType second = type;
  switch (type) {
    case GgmlType::kIQ1_S:
    case GgmlType::kIQ1_M:
    case GgmlType::kIQ2_XXS:
    case GgmlType::kIQ2_XS:
    case GgmlType::kIQ2_S:
    case GgmlType::kIQ3_XXS:
    case GgmlType::kIQ3_S:
    case GgmlType::kIQ4_XS:
      second = GgmlType::kIQ4_NL;
      break;
    case GgmlType::kQ2_0:
    case GgmlType::kQ2_K:
    case GgmlType::kQ3_K:
    case GgmlType::kTQ1_0:
    case GgmlType::kTQ2_0:
      second = GgmlType::kQ4_0;
      break;
    case GgmlType::kQ4_K:
      second = GgmlType::kQ5_0;
      break;
    case GgmlType::kQ5_K:
      second = GgmlType::kQ5_1;
      break;
    case GgmlType::kQ6_K:
      second = GgmlType::kQ8_0;
      break;
    default:
      check(ggml_type_info(type).block_size <= 32, "no type is defined to take the place of ",
            type_name(type), " for rows of ", row_length, " weights");
  }
  return fits(second) ? second : GgmlType::kF16;
}

std::optional<int64_t> layer_of(std::string_view name) {
  const std::optional<NamedLayer> found = find_layer(name);
  if (!found || found->begin != kBlockPrefix.size()) return std::nullopt;
  return found->layer;
}

bool is_in_layers(std::string_view name, const std::vector<int64_t>& layers) {
  const std::optional<NamedLayer> found = find_layer(name);
  return found && std::find(layers.begin(), layers.end(), found->layer) != layers.end();
}

std::string name_after_pruning(const std::string& name, const std::vector<int64_t>& pruned) {
  const std::optional<NamedLayer> found = find_layer(name);
  if (!found) return name;
  const auto before =
      std::count_if(pruned.begin(), pruned.end(), [&](int64_t p) { return p < found->layer; });
  return concat(name.substr(0, found->begin), found->layer - before, name.substr(found->end));
}

int num_dimensions(const std::vector<int64_t>& shape) {
  size_t count = shape.size();
  while (count > 1 && shape[count - 1] == 1) --count;
  return static_cast<int>(std::max<size_t>(count, 1));
}

bool is_quantized(GgmlType type) { return ggml_type_info(type).block_size > 1; }

}  // namespace nibble
