#include "model/recompute.h"

#include <utility>

namespace nibble {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct HeldBlock : torch::CustomClassHolder {
  explicit HeldBlock(Block held) : block(std::move(held)) {}
  Block block;
};

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& x, Block block) {
    const torch::Tensor y = block(x);
    ctx->save_for_backward({x});
    ctx->saved_data["block"] =
        c10::IValue::make_capsule(c10::make_intrusive<HeldBlock>(std::move(block)));
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto held = ctx->saved_data["block"].toCapsule();
    const torch::Tensor x = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    const torch::AutoGradMode with_gradients(true);
    const torch::Tensor y = static_cast<HeldBlock&>(*held).block(x);
    torch::autograd::backward({y}, {grads[0]});
    return {x.grad(), torch::Tensor()};
  }
};

}  // namespace

torch::Tensor recompute_in_backward(Block block, const torch::Tensor& x) {
  if (!torch::GradMode::is_enabled()) return block(x);
  // The block's weights want gradients even where its input does not.
  return Recompute::apply(x.requires_grad() ? x : x.detach().requires_grad_(true),
                          std::move(block));
}

}  // namespace nibble
