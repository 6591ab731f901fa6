#include "model/experts.h"

#include "model/layers.h"
#include "model/made_weight.h"

namespace nibble {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Calls body(expert, first row, rows) for each expert that has some.
template <class Body>
void for_each_reached(at::IntArrayRef counts, const Body& body) {
  int64_t first = 0;
  for (size_t expert = 0; expert < counts.size(); first += counts[expert++])
    if (counts[expert] > 0) body(static_cast<int64_t>(expert), first, counts[expert]);
}

/// sum += a b, in float32.
void add_matmul(torch::Tensor sum, const torch::Tensor& a, const torch::Tensor& b) {
  if (a.scalar_type() == torch::kFloat32)
    sum.addmm_(a, b);
  else
    sum.add_(at::mm(a, b));
}

class ProjectExperts : public torch::autograd::Function<ProjectExperts> {
 public:
  static variable_list forward(AutogradContext* ctx, const torch::Tensor& x,
                               const std::vector<int64_t>& counts, at::TensorList weights,
                               torch::Dtype dtype) {
    ctx->set_materialize_grads(false);
    const torch::Tensor input = x.to(dtype);
    variable_list saved = {input}, outputs;
    for (const torch::Tensor& weight : weights) {
      saved.push_back(weight);
      torch::Tensor output = torch::empty({x.size(0), weight.size(1)}, x.options());
      for_each_reached(counts, [&](int64_t expert, int64_t first, int64_t rows) {
        output.narrow(0, first, rows)
            .copy_(at::linear(input.narrow(0, first, rows), matrix_of(weight, expert, dtype)));
      });
      outputs.push_back(std::move(output));
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["counts"] = counts;
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list saved = ctx->get_saved_variables();
    const std::vector<int64_t> counts = ctx->saved_data["counts"].toIntVector();
    const torch::Tensor& input = saved[0];
    const torch::Dtype dtype = input.scalar_type();
    variable_list result(grads.size() + 3);  // x, counts, the weights, dtype
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!grads[i].defined()) continue;
      torch::Tensor& weight = saved[i + 1];
      const torch::Tensor grad = grads[i].to(dtype);
      if (ctx->needs_input_grad(0)) {
        if (!result[0].defined())
          result[0] = torch::zeros_like(input, input.options().dtype(torch::kFloat32));
        for_each_reached(counts, [&](int64_t expert, int64_t first, int64_t rows) {
          add_matmul(result[0].narrow(0, first, rows), grad.narrow(0, first, rows),
                     matrix_of(weight.detach(), expert, dtype));
        });
      }
      if (!weight.requires_grad()) continue;
      torch::Tensor& gradient = weight.is_leaf() ? weight.mutable_grad() : result[i + 2];
      if (!gradient.defined())
        gradient = torch::zeros(weight.sizes(), weight.options().requires_grad(false));
      for_each_reached(counts, [&](int64_t expert, int64_t first, int64_t rows) {
        add_matmul(gradient.select(0, expert), grad.narrow(0, first, rows).t(),
                   input.narrow(0, first, rows));
      });
      if (weight.is_leaf()) run_gradient_hook(weight);
    }
    return result;
  }
};

struct HeldBalance : torch::CustomClassHolder {
  explicit HeldBalance(std::shared_ptr<const LoadBalance> held) : balance(std::move(held)) {}
  std::shared_ptr<const LoadBalance> balance;
};

class AddBalanceGradient : public torch::autograd::Function<AddBalanceGradient> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& probabilities,
                               std::shared_ptr<const LoadBalance> balance) {
    ctx->saved_data["balance"] =
        c10::IValue::make_capsule(c10::make_intrusive<HeldBalance>(std::move(balance)));
    return probabilities.view_as(probabilities);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto held = ctx->saved_data["balance"].toCapsule();
    return {grads[0] + static_cast<HeldBalance&>(*held).balance->gradient(), torch::Tensor()};
  }
};

}  // namespace

Routing route(const torch::Tensor& probabilities, int64_t experts_used, LoadBalance* balance) {
  const torch::Tensor experts = std::get<1>(at::topk(probabilities.detach(), experts_used, -1));
  const torch::Tensor all = balance ? balance->add(probabilities, experts) : probabilities;
  const torch::Tensor largest = all.gather(-1, experts);
  return {largest / largest.sum(-1, /*keepdim=*/true), experts};
}

ExpertRows rows_by_expert(const torch::Tensor& experts, int64_t num_experts) {
  const torch::Tensor flat = experts.flatten();
  const torch::Tensor order = at::argsort(flat, /*stable=*/true, 0, /*descending=*/false);
  const torch::Tensor rows =
      torch::empty_like(order).scatter_(0, order, at::arange(order.numel(), order.options()));
  const torch::Tensor counts = at::bincount(flat, {}, num_experts).cpu();
  return {order.floor_divide(experts.size(1)),
          rows,
          flat.index_select(0, order),
          {counts.const_data_ptr<int64_t>(), counts.const_data_ptr<int64_t>() + num_experts}};
}

int64_t mixture_bytes(const MixtureSizes& sizes, int64_t used) {
  constexpr int64_t kFull = sizeof(float), kIndex = sizeof(int64_t);
  // The router has its input in float32 in any case.
  const int64_t router = sizes.width * (kFull - used) + sizes.num_experts * kFull;
  // For each expert used: its input, gate, up, their product, the result; its weight before and
  // after they sum to 1, and three numbers that say where it is, one more where its bias is.
  const int64_t each = sizes.width * (used + kFull) + sizes.feed_forward * (2 * kFull + used) +
                       2 * kFull + (sizes.has_biases ? 4 : 3) * kIndex;
  // Of the shared one: gate, up, their product, the result, and what it counts.
  const int64_t shared =
      sizes.shared_feed_forward > 0
          ? sizes.shared_feed_forward * (2 * kFull + used) + (sizes.width + 1) * kFull
          : 0;
  return router + sizes.experts_used * each + shared;
}

std::vector<torch::Tensor> project_experts(const torch::Tensor& x,
                                           const std::vector<int64_t>& counts,
                                           const std::vector<torch::Tensor>& weights,
                                           torch::Dtype dtype) {
  // As a TensorList: apply() does not look for variables inside a std::vector.
  return ProjectExperts::apply(x, counts, at::TensorList(weights), dtype);
}

torch::Tensor LoadBalance::add(const torch::Tensor& probabilities, const torch::Tensor& experts) {
  if (!complete_) {
    const torch::Tensor rows =
        at::bincount(experts.flatten(), {}, probabilities.size(1)).to(torch::kFloat32);
    const torch::Tensor sums = probabilities.detach().sum(0);
    rows_ = rows_.defined() ? rows_ + rows : rows;
    probabilities_ = probabilities_.defined() ? probabilities_ + sums : sums;
    positions_ += probabilities.size(0);
  }
  return AddBalanceGradient::apply(probabilities, shared_from_this());
}

double LoadBalance::loss() const {
  if (positions_ == 0) return 0;
  const auto positions = static_cast<double>(positions_);
  return (rows_ * probabilities_).sum().item<double>() * static_cast<double>(rows_.numel()) /
         (positions * positions);
}

torch::Tensor LoadBalance::gradient() const {
  const auto positions = static_cast<double>(positions_);
  return rows_ * (weight_ * static_cast<double>(rows_.numel()) / (positions * positions));
}

}  // namespace nibble
