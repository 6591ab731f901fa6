#include "model/layers.h"

#include "model/kernels.h"
#include "model/made_weight.h"

namespace nibble {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// sum += a b, in float32; an undefined sum is 0.
void add_matmul(torch::Tensor& sum, const torch::Tensor& a, const torch::Tensor& b) {
  if (!sum.defined()) {
    sum = at::mm(a, b).to(torch::kFloat32);
  } else if (a.scalar_type() == torch::kFloat32) {
    sum.addmm_(a, b);
  } else {
    sum.add_(at::mm(a, b));
  }
}

/// Where a weight's gradient belongs: its own grad() when it is a leaf, else the value that
/// backward returns.
torch::Tensor& gradient_of(torch::Tensor& weight, torch::Tensor& returned) {
  return weight.is_leaf() ? weight.mutable_grad() : returned;
}

/// After a backward pass has added to it.
void gradient_added(const torch::Tensor& weight) {
  if (weight.is_leaf()) run_gradient_hook(weight);
}

class Project : public torch::autograd::Function<Project> {
 public:
  static variable_list forward(AutogradContext* ctx, const torch::Tensor& x, at::TensorList weights,
                               torch::Dtype dtype) {
    ctx->set_materialize_grads(false);
    const torch::Tensor input = x.to(dtype);
    variable_list saved = {input}, outputs;
    for (const torch::Tensor& weight : weights) {
      saved.push_back(weight);
      outputs.push_back(at::linear(input, values_of(weight, dtype)).to(torch::kFloat32));
    }
    ctx->save_for_backward(std::move(saved));
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list saved = ctx->get_saved_variables();
    const torch::Tensor& input = saved[0];
    const torch::Dtype dtype = input.scalar_type();
    variable_list result(grads.size() + 2);  // x, the weights, dtype
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!grads[i].defined()) continue;
      torch::Tensor& weight = saved[i + 1];
      const torch::Tensor grad = grads[i].to(dtype);
      if (ctx->needs_input_grad(0)) add_matmul(result[0], grad, values_of(weight.detach(), dtype));
      if (!weight.requires_grad()) continue;
      add_matmul(gradient_of(weight, result[i + 1]), grad.t(), input);
      gradient_added(weight);
    }
    return result;
  }
};

class Embed : public torch::autograd::Function<Embed> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& table,
                               const torch::Tensor& tokens) {
    ctx->save_for_backward({table, tokens});
    return rows_of(table, tokens);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list saved = ctx->get_saved_variables();
    torch::Tensor& table = saved[0];
    torch::Tensor returned;
    torch::Tensor& gradient = gradient_of(table, returned);
    if (!gradient.defined())
      gradient = torch::zeros(table.sizes(), table.options().requires_grad(false));
    // Of the two that add repeated tokens up, each device's adds in a fixed order.
    if (gradient.is_cpu())
      gradient.index_add_(0, saved[1], grads[0]);
    else
      gradient.index_put_({saved[1]}, grads[0], /*accumulate=*/true);
    gradient_added(table);
    return {returned, torch::Tensor()};
  }
};

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& x,
                               const torch::Tensor& weight, double epsilon) {
    torch::Tensor y = torch::empty_like(x), inverse_rms = torch::empty({x.size(0)}, x.options());
    rms_norm_forward(x.data_ptr<float>(), weight.data_ptr<float>(), static_cast<float>(epsilon),
                     x.size(0), x.size(1), y.data_ptr<float>(), inverse_rms.data_ptr<float>());
    ctx->save_for_backward({x, weight, inverse_rms});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list saved = ctx->get_saved_variables();
    const torch::Tensor &x = saved[0], &inverse_rms = saved[2];
    torch::Tensor& weight = saved[1];
    const torch::Tensor grad_y = grads[0].contiguous();
    torch::Tensor grad_x = torch::empty_like(grad_y), returned;
    float* grad_weight = nullptr;
    if (weight.requires_grad()) {
      torch::Tensor& gradient = gradient_of(weight, returned);
      if (!gradient.defined()) gradient = torch::zeros({weight.size(0)}, x.options());
      grad_weight = gradient.data_ptr<float>();
    }
    rms_norm_backward(x.data_ptr<float>(), weight.data_ptr<float>(), inverse_rms.data_ptr<float>(),
                      grad_y.data_ptr<float>(), x.size(0), x.size(1), grad_x.data_ptr<float>(),
                      grad_weight);
    if (grad_weight) gradient_added(weight);
    return {grad_x, returned, torch::Tensor()};
  }
};

class Swiglu : public torch::autograd::Function<Swiglu> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& gate,
                               const torch::Tensor& up) {
    torch::Tensor y = torch::empty_like(gate);
    swiglu_forward(gate.data_ptr<float>(), up.data_ptr<float>(), gate.numel(), y.data_ptr<float>());
    ctx->save_for_backward({gate, up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor &gate = saved[0], &up = saved[1];
    const torch::Tensor grad_y = grads[0].contiguous();
    torch::Tensor grad_gate = torch::empty_like(gate), grad_up = torch::empty_like(up);
    swiglu_backward(gate.data_ptr<float>(), up.data_ptr<float>(), grad_y.data_ptr<float>(),
                    gate.numel(), grad_gate.data_ptr<float>(), grad_up.data_ptr<float>());
    return {grad_gate, grad_up};
  }
};

// Of clamped_swiglu().
constexpr double kSlope = 1.702, kLimit = 7;

class ClampedSwiglu : public torch::autograd::Function<ClampedSwiglu> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& gate,
                               const torch::Tensor& up) {
    ctx->save_for_backward({gate, up});
    const torch::Tensor clamped = gate.clamp_max(kLimit);
    return (clamped * kSlope).sigmoid_().mul_(clamped).mul_(up.clamp(-kLimit, kLimit).add_(1));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor gate = saved[0].clamp_max(kLimit), up = saved[1].clamp(-kLimit, kLimit);
    const torch::Tensor share = (gate * kSlope).sigmoid_();
    const torch::Tensor slope = share * (1 + kSlope * gate * (1 - share));
    return {grads[0] * (up + 1) * slope * (saved[0] <= kLimit),
            grads[0] * gate * share * (saved[1].abs() <= kLimit)};
  }
};

}  // namespace

void run_gradient_hook(const torch::Tensor& leaf) {
  const auto& hook = torch::autograd::impl::post_acc_grad_hooks(leaf);
  if (hook) (*hook)(leaf);
}

std::vector<torch::Tensor> project(const torch::Tensor& x,
                                   const std::vector<torch::Tensor>& weights, torch::Dtype dtype) {
  // As a TensorList: apply() does not look for variables inside a std::vector.
  return Project::apply(x, at::TensorList(weights), dtype);
}

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                     torch::Dtype dtype) {
  const torch::Tensor y = project(x, {weight}, dtype)[0];
  return bias.defined() ? y + bias : y;
}

torch::Tensor embed_tokens(const torch::Tensor& table, const torch::Tensor& tokens) {
  return Embed::apply(table, tokens);
}

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double epsilon) {
  if (x.is_cpu()) return RmsNorm::apply(x.contiguous(), weight.contiguous(), epsilon);
  return aten_rms_norm(x, weight, epsilon);
}

torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up) {
  if (gate.is_cpu()) return Swiglu::apply(gate.contiguous(), up.contiguous());
  return aten_swiglu(gate, up);
}

torch::Tensor geglu(const torch::Tensor& gate, const torch::Tensor& up) {
  return at::gelu(gate, "tanh") * up;
}

torch::Tensor clamped_swiglu(const torch::Tensor& gate, const torch::Tensor& up) {
  return ClampedSwiglu::apply(gate, up);
}

torch::Tensor soft_cap(const torch::Tensor& x, double cap) {
  return cap > 0 ? cap * at::tanh(x / cap) : x;
}

torch::Tensor aten_rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double epsilon) {
  return at::rms_norm(x, {x.size(-1)}, weight, epsilon);
}

torch::Tensor aten_swiglu(const torch::Tensor& gate, const torch::Tensor& up) {
  return at::silu(gate) * up;
}

}  // namespace nibble
