// What llama.cpp's backends make of the activations that enter a matmul. The weight's type decides:
// a quantized weight is multiplied with activations of 8 bits, rounded in blocks as they come
// (sources: ggml/src/ggml-cpu/ggml-cpu.c, vec_dot_type; ggml/src/ggml-quants.c,
// quantize_row_q8_0_ref and quantize_row_q8_K_ref; ggml/src/ggml-cuda/quantize.cu).
#pragma once

#include <functional>
#include <string>

#include "model/model.h"
#include "quant/fake/torch.h"

namespace nibble {

enum class ActivationBackend { kNone, kLlamaCpu, kLlamaCuda };

/// "none", "llama_cpu", "llama_cuda". Throws Error (usage) for another name, with the nearest one.
ActivationBackend parse_activation_backend(const std::string& name);

const char* activation_backend_name(ActivationBackend backend);

/// Of what enters a matmul with a weight of that type.
ActivationRounding activation_rounding(GgmlType weight, ActivationBackend backend);

/// x [N, in] float32, rounded; the gradient passes straight through. The blocks of the rounding
/// divide `in`. Halves round to even, as ggml's vector code has it.
torch::Tensor round_activations(const torch::Tensor& x, ActivationRounding rounding);

/// From now on the model's matmuls see what the backend's would, if each weight had the type that
/// `type_of` says: by default the one in the file that it came from. For matmuls in float32 only:
/// bfloat16 rounds about as coarsely.
void set_activation_rounding(
    Model& model, ActivationBackend backend,
    const std::function<GgmlType(const Weight&)>& type_of = [](const Weight& weight) {
      return weight.source;
    });

}  // namespace nibble
