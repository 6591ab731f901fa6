#include "training/optimizer.h"

#include <cmath>
#include <optional>
#include <utility>

#include "base/error.h"

namespace nibble {

namespace {

/// Root mean square, [] float32 on the CPU; 1 for a tensor of zeros, which has no size of its own.
torch::Tensor size_of(const torch::Tensor& value) {
  const double size = std::sqrt(value.square().mean(torch::kFloat64).item<double>());
  return torch::full({}, size > 0 ? size : 1.0, torch::kFloat32);
}

}  // namespace

void AdamW::add(const std::string& name, ParameterGroup group, torch::Tensor parameter) {
  const torch::NoGradGuard no_grad;
  torch::Tensor value = parameter.detach();
  const torch::TensorOptions value_options = value.options();
  torch::Tensor moment1 = torch::zeros_like(value), moment2 = torch::zeros_like(value);
  torch::Tensor unit;
  if (options_.relative)
    unit = (group == ParameterGroup::kScales ? torch::ones({}) : size_of(value)) * coarseness_;
  parameters_.push_back({name, group, std::move(value), std::move(moment1), std::move(moment2),
                         torch::zeros({}, value_options), std::move(unit)});
}

void AdamW::step(const std::vector<torch::Tensor>& gradients, double rate_factor, double norm) {
  const torch::NoGradGuard no_grad;
  check(gradients.size() == parameters_.size(), "optimizer: ", gradients.size(), " gradients for ",
        parameters_.size(), " parameters");
  // The kernel divides gradients on its way: clipping costs no pass of its own.
  torch::Tensor divisor;
  if (!parameters_.empty() && options_.clip_norm > 0 && norm > options_.clip_norm)
    divisor = torch::full({}, norm / options_.clip_norm, parameters_.front().steps.options());
  for (ParameterGroup group :
       {ParameterGroup::kMatrix, ParameterGroup::kScales, ParameterGroup::kVector})
    step_group(group, gradients, rate_factor, divisor);
}

void AdamW::Together::add(const Parameter& parameter, const torch::Tensor& gradient) {
  values.push_back(parameter.value);
  grads.push_back(gradient);
  moments1.push_back(parameter.moment1);
  moments2.push_back(parameter.moment2);
  steps.push_back(parameter.steps);
}

void AdamW::step_group(ParameterGroup group, const std::vector<torch::Tensor>& gradients,
                       double rate_factor, const torch::Tensor& divisor) {
  Together together;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& parameter = parameters_[i];
    if (parameter.group != group || !gradients[i].defined()) continue;
    if (!parameter.unit.defined()) {
      together.add(parameter, gradients[i]);
      continue;
    }
    Together alone;
    alone.add(parameter, gradients[i]);
    step_together(alone, group, rate_factor, parameter.unit.item<float>(), divisor);
  }
  step_together(together, group, rate_factor, 1, divisor);
}

void AdamW::step_together(Together& together, ParameterGroup group, double rate_factor, double unit,
                          const torch::Tensor& divisor) {
  if (together.values.empty()) return;
  at::_foreach_add_(together.steps, 1);
  const double rate =
      group == ParameterGroup::kScales ? options_.scale_learning_rate : options_.learning_rate;
  const double decay = group == ParameterGroup::kMatrix ? options_.weight_decay / unit : 0.0;
  at::_fused_adamw_(together.values, together.grads, together.moments1, together.moments2,
                    /*max_exp_avg_sqs=*/{}, together.steps, rate * rate_factor * unit,
                    options_.beta1, options_.beta2, decay, options_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false,
                    divisor.defined() ? std::optional<at::Tensor>(divisor) : std::nullopt);
}

std::map<std::string, torch::Tensor> AdamW::moments() const {
  std::map<std::string, torch::Tensor> all;
  for (const Parameter& parameter : parameters_) {
    all[parameter.name + ":moment1"] = parameter.moment1;
    all[parameter.name + ":moment2"] = parameter.moment2;
    all[parameter.name + ":steps"] = parameter.steps;
    if (parameter.unit.defined()) all[parameter.name + ":unit"] = parameter.unit;
  }
  return all;
}

void AdamW::restore(const std::map<std::string, torch::Tensor>& moments, int64_t steps) {
  const torch::NoGradGuard no_grad;
  const auto copy = [&](const std::string& name, torch::Tensor& into) {
    const auto found = moments.find(name);
    check(found != moments.end(), "no optimizer state '", name, "'");
    check(found->second.sizes() == into.sizes(), "optimizer state '", name,
          "' has another shape than its parameter");
    into.copy_(found->second);
  };
  for (Parameter& parameter : parameters_) {
    copy(parameter.name + ":moment1", parameter.moment1);
    copy(parameter.name + ":moment2", parameter.moment2);
    if (parameter.unit.defined()) copy(parameter.name + ":unit", parameter.unit);
    if (moments.contains(parameter.name + ":steps"))
      copy(parameter.name + ":steps", parameter.steps);
    else  // of a checkpoint that was written before experts had steps of their own
      parameter.steps.fill_(static_cast<double>(steps));
  }
}

}  // namespace nibble
