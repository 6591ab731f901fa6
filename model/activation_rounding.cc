#include "model/activation_rounding.h"

#include "base/error.h"
#include "quant/format/registry.h"

namespace nibble {
namespace {

/// d = the block's largest magnitude / 127, q = round(x / d). stored_half: d is a float16 where it
/// is multiplied with, though not where q is found. (Q8_K's d is negative where the largest value
/// is positive, which changes no d q.)
torch::Tensor round_blocks(const torch::Tensor& x, int64_t block, bool stored_half) {
  const torch::Tensor blocks = x.reshape({x.size(0), -1, block});
  const torch::Tensor d = blocks.abs().amax(-1, /*keepdim=*/true) / 127;
  const torch::Tensor inverse = at::where(d > 0, d.reciprocal(), torch::zeros_like(d));
  const torch::Tensor codes = (blocks * inverse).round_().clamp_(-127, 127);
  return (codes * (stored_half ? d.to(torch::kFloat16).to(torch::kFloat32) : d)).view_as(x);
}

torch::Tensor rounded(const torch::Tensor& x, ActivationRounding rounding) {
  switch (rounding) {
    case ActivationRounding::kNone:
      return x;
    case ActivationRounding::kFloat16:
      return x.to(torch::kFloat16).to(torch::kFloat32);
    case ActivationRounding::kBfloat16:
      return x.to(torch::kBFloat16).to(torch::kFloat32);
    case ActivationRounding::kQ8_0:
      return round_blocks(x, 32, /*stored_half=*/true);
    case ActivationRounding::kQ8_K:
      return round_blocks(x, 256, /*stored_half=*/false);
  }
  return x;
}

}  // namespace

const char* activation_backend_name(ActivationBackend backend) {
  switch (backend) {
    case ActivationBackend::kNone:
      return "none";
    case ActivationBackend::kLlamaCpu:
      return "llama_cpu";
    case ActivationBackend::kLlamaCuda:
      return "llama_cuda";
  }
  return "";
}

ActivationBackend parse_activation_backend(const std::string& name) {
  for (const auto backend :
       {ActivationBackend::kNone, ActivationBackend::kLlamaCpu, ActivationBackend::kLlamaCuda})
    if (name == activation_backend_name(backend)) return backend;
  fail_usage("no activations '", name, "'; none, llama_cpu or llama_cuda",
             did_you_mean(name, {"none", "llama_cpu", "llama_cuda"}));
}

ActivationRounding activation_rounding(GgmlType weight, ActivationBackend backend) {
  if (backend == ActivationBackend::kNone) return ActivationRounding::kNone;
  switch (weight) {
    case GgmlType::kF32:
      return ActivationRounding::kNone;
    case GgmlType::kF16:
      return ActivationRounding::kFloat16;
    case GgmlType::kBF16:
      return ActivationRounding::kBfloat16;
    default:
      break;
  }
  if (backend == ActivationBackend::kLlamaCuda) return ActivationRounding::kQ8_0;
  return require_decoder(weight).block_size == 256 ? ActivationRounding::kQ8_K
                                                   : ActivationRounding::kQ8_0;
}

torch::Tensor round_activations(const torch::Tensor& x, ActivationRounding rounding) {
  if (rounding == ActivationRounding::kNone) return x;
  torch::Tensor difference;
  {
    const torch::NoGradGuard no_grad;
    difference = rounded(x.detach(), rounding) - x.detach();
  }
  return x + difference;
}

void set_activation_rounding(Model& model, ActivationBackend backend,
                             const std::function<GgmlType(const Weight&)>& type_of) {
  check(backend == ActivationBackend::kNone || model.compute_dtype() == torch::kFloat32,
        "activations are rounded in float32 only");
  for (Weight* weight : model.weights())
    if (weight->value.dim() == 2)
      weight->activations = activation_rounding(type_of(*weight), backend);
}

}  // namespace nibble
