#include "quant/fake/master_training.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "base/checksum.h"
#include "base/error.h"
#include "quant/format/level_spacing.h"

namespace nibble {
namespace {

using Part = MasterTraining::Part;

constexpr const char *kLowRankA = ":low_rank_a", *kLowRankB = ":low_rank_b", *kStart = ":start",
                     *kReach = ":reach";

class Full : public MasterTraining {
 public:
  explicit Full(const FakeQuantizer& quantizer) : masters_(quantizer.weights()) {}
  std::vector<Part> parameters() const override { return {{"", masters_}}; }
  std::vector<torch::Tensor> gradients(const torch::Tensor& of_masters) const override {
    return {of_masters};
  }
  void apply(torch::Tensor&) override {}

 private:
  torch::Tensor masters_;
};

/// A matrix as a stack of one.
torch::Tensor stacked(const torch::Tensor& x) { return x.dim() == 3 ? x : x.unsqueeze(0); }

/// The masters are the sum itself, and what A and B have moved is added to it: with the relative
/// estimator masters follow their scales too. Each expert of a stack has factors of its own.
class LowRank : public MasterTraining {
 public:
  LowRank(const FakeQuantizer& quantizer, int64_t rank) {
    const torch::Tensor& masters = quantizer.weights();
    const int64_t rows = masters.size(-2), length = masters.size(-1);
    if (rank > std::min(rows, length))
      fail_usage("tensor '", quantizer.name(), "': ", rows, " rows of ", length,
                 " weights have no factors of rank ", rank, "; set a lower quant.lora_rank");
    // Of a size that makes one step of all of B as large, relative to W, as one of W would be.
    const double size = std::sqrt(masters.square().mean(torch::kFloat64).item<double>());
    Checksum seed;
    seed.update(std::as_bytes(std::span(quantizer.name())));
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed.value());
    std::vector<int64_t> a(masters.sizes().begin(), masters.sizes().end()), b = a;
    a.end()[-2] = b.back() = rank;
    a_ = at::normal(0.0, (size > 0 ? size : 1.0) / std::sqrt(static_cast<double>(rank)), a,
                    generator, torch::kFloat32)
             .to(masters.device());
    b_ = torch::zeros(b, masters.options());
    restored();
  }

  std::vector<Part> parameters() const override { return {{kLowRankA, a_}, {kLowRankB, b_}}; }
  std::vector<torch::Tensor> gradients(const torch::Tensor& of_masters) const override {
    return {b_.mT().matmul(of_masters), of_masters.matmul(a_.mT())};
  }
  bool maps_at_once() const override { return true; }
  void apply(torch::Tensor& masters) override {
    // B A - B0 A0 in two terms that are exactly zero where nothing moved.
    stacked(masters)
        .baddbmm_(stacked(b_ - applied_b_), stacked(a_))
        .baddbmm_(stacked(applied_b_), stacked(a_ - applied_a_));
    restored();
  }
  std::vector<Part> state() const override { return parameters(); }
  void restored() override {
    applied_a_ = a_.clone();
    applied_b_ = b_.clone();
  }

 private:
  torch::Tensor a_, b_;                  // [rank, row length], [rows, rank], or stacks of them
  torch::Tensor applied_a_, applied_b_;  // whose product the masters have
};

class WithinRounding : public MasterTraining {
 public:
  explicit WithinRounding(const FakeQuantizer& quantizer)
      : masters_(quantizer.weights()), start_(masters_.clone()), reach_(reach_of(quantizer)) {}

  std::vector<Part> parameters() const override { return {{"", masters_}}; }
  std::vector<torch::Tensor> gradients(const torch::Tensor& of_masters) const override {
    return {of_masters};
  }
  void apply(torch::Tensor& masters) override {
    const torch::Tensor groups = masters.view({reach_.size(0), -1});
    const torch::Tensor from = start_.view_as(groups);
    groups.copy_(at::minimum(at::maximum(groups, from - reach_), from + reach_));
  }
  std::vector<Part> state() const override { return {{kStart, start_}, {kReach, reach_}}; }

 private:
  /// Half the distance of two levels in each group of weights, [groups, 1].
  static torch::Tensor reach_of(const FakeQuantizer& quantizer) {
    const Format& format = quantizer.format();
    const torch::Tensor& masters = quantizer.weights();
    const std::vector<std::byte> blocks = quantizer.blocks();
    torch::Tensor steps = torch::empty({masters.numel() / format.group_size, 1}, torch::kFloat32);
    format.steps_of(blocks.data(), steps.mutable_data_ptr<float>(),
                    masters.numel() / format.block_size);
    return (steps.abs() * (0.5 * level_spacing(format.type))).to(masters.device());
  }

  torch::Tensor masters_, start_, reach_;
};

using Make = std::unique_ptr<MasterTraining> (*)(const FakeQuantizer&, int64_t rank);
struct Row {
  std::string_view name;
  Make make;
};
constexpr Row kRows[] = {
    {"full",
     [](const FakeQuantizer& quantizer, int64_t) -> std::unique_ptr<MasterTraining> {
       return std::make_unique<Full>(quantizer);
     }},
    {"lora",
     [](const FakeQuantizer& quantizer, int64_t rank) -> std::unique_ptr<MasterTraining> {
       return std::make_unique<LowRank>(quantizer, rank);
     }},
    {"rounding",
     [](const FakeQuantizer& quantizer, int64_t) -> std::unique_ptr<MasterTraining> {
       if (quantizer.format().num_scales == 0) return nullptr;  // no levels to round to
       return std::make_unique<WithinRounding>(quantizer);
     }},
};

}  // namespace

const std::vector<std::string>& master_state_suffixes() {
  static const std::vector<std::string> suffixes = {kLowRankA, kLowRankB, kStart, kReach};
  return suffixes;
}

std::vector<std::string> master_training_names() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

std::unique_ptr<MasterTraining> make_master_training(std::string_view name,
                                                     const FakeQuantizer& quantizer, int64_t rank) {
  for (const Row& row : kRows)
    if (row.name == name) return row.make(quantizer, rank);
  fail_usage("no way '", name, "' to train weights; full, lora, rounding or scales",
             did_you_mean(name, master_training_names()));
}

}  // namespace nibble
