#include "training/awq_start.h"

#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "quant/fake/awq.h"
#include "quant/fake/on_grid.h"

namespace nibble {
namespace {

/// Mean or summed squares of what enters each column, by the matrix' name. [in] float32, of a stack
/// [experts, in]
using Energies = std::map<std::string, torch::Tensor>;

void add_energy(Energies& energies, const Weight& weight, int64_t expert,
                const torch::Tensor& energy) {
  torch::Tensor& sum = energies[weight.name];
  if (!sum.defined())
    sum = expert == kNoExpert ? torch::zeros_like(energy)
                              : torch::zeros({weight.value.size(0), energy.size(0)});
  (expert == kNoExpert ? sum : sum.select(0, expert)).add_(energy);
}

/// Of an expert that no position reached all columns count alike.
torch::Tensor importance_of(const torch::Tensor& energy) {
  if (energy.dim() == 1) return energy;
  return energy.masked_fill(energy.eq(0).all(1, /*keepdim=*/true), 1);
}

const Format& format_of(const Plan& plan, const std::string& tensor) {
  const PlanEntry* entry = plan.find(tensor);
  check(entry, "the plan has no tensor '", tensor, "'");
  return require_format(entry->target);
}

/// Factors for a link, moved in the model. Returns those of the channels.
torch::Tensor scale_channels(const ChannelLink& link, const Plan& plan,
                             const torch::Tensor& hessian) {
  std::vector<AwqMatrix> matrices;
  for (const Weight* taker : link.takers)
    matrices.push_back({&format_of(plan, taker->name), taker->value.detach().contiguous()});
  const AwqFactors factors = awq_factors(matrices, hessian, link.maker_row, link.num_rows());
  move_factors(link, factors.of_rows, factors.of_channels);
  return factors.of_channels;
}

StartingPoints searched(Model& model, const Plan& plan, const Energies& energies) {
  StartingPoints points;
  Progress progress("search", static_cast<int64_t>(energies.size()), "tensors");
  for (const auto& [name, energy] : energies) {
    with_frame(concat("tensor '", name, "'"), [&, &tensor = name, &energy = energy] {
      const Format& format = format_of(plan, tensor);
      if (format.num_scales == 0) return;
      const torch::Tensor weights = model.find_weight(tensor)->value.detach().clone();
      points[tensor] = {weights, chosen_scales(format, weights, importance_of(energy)), {}};
    });
    progress.update(static_cast<int64_t>(points.size()));
  }
  return points;
}

}  // namespace

void move_factors(const ChannelLink& link, const torch::Tensor& of_rows,
                  const torch::Tensor& of_channels) {
  const torch::NoGradGuard no_grad;
  for (Weight* maker : link.makers) {
    const torch::Tensor value = maker->value.detach().narrow(0, link.first_row, of_rows.size(0));
    value.div_(value.dim() > 1 ? of_rows.unsqueeze(1) : of_rows);
  }
  for (Weight* taker : link.takers) taker->value.detach().mul_(of_channels);
}

StartingPoints awq_start(Model& model, const Plan& plan, const std::vector<Batch>& batches,
                         int64_t max_hessian_bytes) {
  const torch::NoGradGuard no_grad;
  const std::vector<ChannelLink> links = model.channel_links();
  check(!links.empty(), "AWQ knows nothing of the architecture ", model.shape().architecture);
  Energies energies;
  visit_hessians(
      model, batches, max_hessian_bytes, "AWQ",
      [&](const std::vector<Weight*>& weights, int64_t expert, const torch::Tensor& hessian) {
        const auto link = std::find_if(links.begin(), links.end(), [&](const ChannelLink& each) {
          return each.takers == weights;
        });
        torch::Tensor energy = hessian.diagonal().clone();
        if (link != links.end())
          with_frame(concat("tensor '", weights.front()->name, "'"),
                     [&] { energy.div_(scale_channels(*link, plan, hessian).square()); });
        for (const Weight* weight : weights) add_energy(energies, *weight, expert, energy);
      });
  return searched(model, plan, energies);
}

StartingPoints imatrix_start(Model& model, const Plan& plan, const std::vector<Batch>& batches) {
  const torch::NoGradGuard no_grad;
  check(!batches.empty(), "an importance matrix needs text");
  Energies energies;
  const MatmulObservation observation(
      model,
      [&](const torch::Tensor& x, const std::vector<const Weight*>& weights, int64_t expert) {
        const torch::Tensor energy = x.square().sum(0).cpu();
        for (const Weight* weight : weights) add_energy(energies, *weight, expert, energy);
      });
  for (const Batch& batch : batches) model.hidden(batch);
  return searched(model, plan, energies);
}

}  // namespace nibble
