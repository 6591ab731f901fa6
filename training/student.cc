#include "training/student.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "model/activation_rounding.h"
#include "model/made_weight.h"
#include "quant/mix/quantize_file.h"
#include "training/calibrate.h"
#include "training/name_patterns.h"
#include "training/stored_start.h"

namespace nibble {
namespace {

bool all_finite(const torch::Tensor& tensor) { return at::isfinite(tensor).all().item<bool>(); }

/// Maps what a backward pass adds to dL/dW^ to the scales of stored codes and lets go of it, so
/// that no two weights' gradients exist at once.
class ToScales : public torch::autograd::PostAccumulateGradHook {
 public:
  /// Both must outlive it.
  ToScales(const FakeQuantizer& quantizer, torch::Tensor& ratio_gradients)
      : quantizer_(quantizer), ratio_gradients_(ratio_gradients) {}
  void operator()(const torch::Tensor& weight) override {
    if (!weight.grad().defined()) return;  // autograd's own call: it has nothing to add
    const torch::NoGradGuard no_grad;
    quantizer_.add_scale_gradients(weight.grad().contiguous(), ratio_gradients_);
    weight.mutable_grad() = torch::Tensor();
  }

 private:
  const FakeQuantizer& quantizer_;
  torch::Tensor& ratio_gradients_;
};

/// Adds to a sum that may have no terms yet.
void add_to(torch::Tensor& sum, const torch::Tensor& term) {
  if (!term.defined()) return;
  if (sum.defined())
    sum.add_(term);
  else
    sum = term;
}

/// Maps what a backward pass adds to dL/dW^ to the parameters in the masters' place, and lets go of
/// it.
class ToParameters : public torch::autograd::PostAccumulateGradHook {
 public:
  /// All must outlive it.
  ToParameters(FakeQuantizer& quantizer, const MasterTraining& masters,
               std::vector<torch::Tensor>& gradients, torch::Tensor& ratio_gradients)
      : quantizer_(quantizer),
        masters_(masters),
        gradients_(gradients),
        ratio_gradients_(ratio_gradients) {}
  void operator()(const torch::Tensor& weight) override {
    if (!weight.grad().defined()) return;  // autograd's own call: it has nothing to add
    const torch::NoGradGuard no_grad;
    const FakeQuantizer::Gradients mapped = quantizer_.backward(weight.grad().contiguous());
    const std::vector<torch::Tensor> terms = masters_.gradients(mapped.weights);
    gradients_.resize(terms.size());
    for (size_t i = 0; i < terms.size(); ++i) add_to(gradients_[i], terms[i]);
    add_to(ratio_gradients_, mapped.scale_ratios);
    weight.mutable_grad() = torch::Tensor();
  }

 private:
  FakeQuantizer& quantizer_;
  const MasterTraining& masters_;
  std::vector<torch::Tensor>& gradients_;
  torch::Tensor& ratio_gradients_;
};

void copy_saved(const std::string& name, const torch::Tensor& saved, torch::Tensor& into) {
  check(saved.defined() == into.defined() && (!into.defined() || saved.sizes() == into.sizes()),
        "tensor '", name, "': the checkpoint holds another shape or scale mode");
  if (into.defined()) into.copy_(saved);
}

void restore_training(const TrainedTensor& saved, MasterTraining& masters) {
  for (MasterTraining::Part& part : masters.state()) {
    const auto found = std::find_if(
        saved.training_state.begin(), saved.training_state.end(),
        [&](const MasterTraining::Part& other) { return other.suffix == part.suffix; });
    check(found != saved.training_state.end(), "the checkpoint has no '", saved.name, part.suffix,
          "'");
    copy_saved(saved.name + part.suffix, found->value, part.value);
  }
  masters.restored();
}

}  // namespace

Student::Student(std::unique_ptr<Model> model, const Plan* plan, const QuantOptions& options,
                 const StartingPoints& start)
    : model_(std::move(model)) {
  const torch::NoGradGuard no_grad;
  const bool quantized = plan && options.type != "none";
  const bool scales_only = options.weights == "scales";
  const ScaleMode asked_mode = parse_scale_mode(options.scales);
  const NamePatterns frozen_names(options.frozen);
  // A calibration's starting points come in `start`; a search is for what has none.
  const EncodeMethod initial =
      is_calibrated(options.initial) ? EncodeMethod::kSearch : method_named(options.initial);
  const std::vector<Weight*> weights = model_->weights();
  Progress progress("initial scales", static_cast<int64_t>(weights.size()), "tensors");
  for (Weight* weight : weights) {
    Trainable& trainable = trainables_.emplace_back();
    trainable.weight = weight;
    progress.update(static_cast<int64_t>(trainables_.size()));
    const bool frozen = frozen_names.match(weight->name);
    trainable.frozen = frozen;
    weight->value.set_requires_grad(!scales_only && !frozen);
    if (!quantized) continue;
    const PlanEntry* entry = plan->find(weight->name);
    check(entry, "the plan has no tensor '", weight->name, "'");
    if (entry->target == GgmlType::kF32) {
      weight->value = values_of(weight->value);
      weight->value.set_requires_grad(options.weights == "full" && !frozen);
      continue;
    }
    if (scales_only) {
      trainable.quantizer.emplace(
          stored_quantizer(*weight, entry->target, !frozen, start, initial));
      continue;
    }
    // Scales that do not train are as they were found; those that follow the weights still do.
    const ScaleMode mode =
        frozen && asked_mode == ScaleMode::kLearned ? ScaleMode::kFrozen : asked_mode;
    if (const auto point = start.find(weight->name); point != start.end()) {
      const StartingPoint& from = point->second;
      trainable.quantizer.emplace(
          weight->name, require_format(entry->target), mode, from.weights,
          from.scales.defined() ? torch::ones_like(from.scales) : torch::Tensor(), from.scales);
      continue;
    }
    trainable.quantizer.emplace(weight->name, require_format(entry->target), mode,
                                weight->value.detach().clone(), torch::Tensor(), initial);
  }
  if (quantized)
    set_activation_rounding(*model_, parse_activation_backend(options.activations),
                            [&](const Weight& weight) { return plan->find(weight.name)->target; });
  set_estimator(parse_estimator(options.estimator));
  if (scales_only)
    train_stored_scales();
  else
    train_masters(options);
  materialize();
}

void Student::train_masters(const QuantOptions& options) {
  for (Trainable& trainable : trainables_) {
    if (!trainable.quantizer || trainable.frozen) continue;
    trainable.masters =
        make_master_training(options.weights, *trainable.quantizer, options.lora_rank);
    if (!trainable.masters) trainable.weight->value.set_requires_grad(false);
    if (trainable.maps_at_once())
      torch::autograd::impl::set_post_acc_grad_hooks(
          trainable.weight->value,
          std::make_unique<ToParameters>(*trainable.quantizer, *trainable.masters,
                                         trainable.mapped_gradients, trainable.ratio_gradients));
  }
}

void Student::train_stored_scales() {
  int64_t num_trained = 0, num_left = 0;
  for (Trainable& trainable : trainables_) {
    if (!trainable.quantizer) continue;
    const FakeQuantizer& quantizer = *trainable.quantizer;
    torch::Tensor& value = trainable.weight->value;
    value = made_weight(quantizer.sizes(), value.device(),
                        [&quantizer](int64_t first, torch::Tensor& out) {
                          quantizer.materialize_rows(first, out);
                        });
    if (trainable.frozen) continue;
    const bool learns = trainable.learns_scales();
    ++(learns ? num_trained : num_left);
    if (!learns) continue;
    value.set_requires_grad(true);
    torch::autograd::impl::set_post_acc_grad_hooks(
        value, std::make_unique<ToScales>(quantizer, trainable.ratio_gradients));
  }
  if (num_trained == 0)
    fail_usage(
        "quant.weights is scales, but no tensor that is not frozen has scales that can be trained");
  if (num_left > 0)
    note(num_left, " of ", num_left + num_trained,
         " quantized tensors stay as they are: their types have no scales that can be trained");
}

bool Student::Trainable::learns_scales() const {
  return quantizer && !frozen && quantizer->mode() == ScaleMode::kLearned &&
         quantizer->scale_ratios().defined();
}

std::vector<MasterTraining::Part> Student::Trainable::parameters() const {
  if (!trains_weights()) return {};
  return masters ? masters->parameters() : std::vector<MasterTraining::Part>{{"", weight->value}};
}

void Student::set_estimator(const Estimator& estimator) {
  bool has_two_levels = false, is_quantized = false;
  for (Trainable& trainable : trainables_) {
    if (!trainable.quantizer) continue;
    trainable.quantizer->set_estimator(estimator);
    is_quantized = true;
    has_two_levels |= trainable.quantizer->format().type == GgmlType::kQ1_0;
  }
  if (estimator.bent_sign > 0 && is_quantized && !has_two_levels)
    fail_usage(
        "quant.estimator sign is for types of two levels (Q1_0), of which the plan has none");
}

bool Student::trains() const {
  return std::any_of(trainables_.begin(), trainables_.end(), [](const Trainable& trainable) {
    return trainable.weight->value.requires_grad();
  });
}

double Student::coarseness() const {
  const torch::NoGradGuard no_grad;
  double sum = 0, count = 0;
  for (const Trainable& trainable : trainables_) {
    if (!trainable.quantizer || !trainable.trains_weights()) continue;
    const torch::Tensor& masters = trainable.quantizer->weights();
    const double distance = trainable.quantizer->level_distance();
    const double size = std::sqrt(masters.square().mean(torch::kFloat64).item<double>());
    if (distance == 0 || size == 0) continue;
    sum += distance / size * static_cast<double>(masters.numel());
    count += static_cast<double>(masters.numel());
  }
  return count > 0 ? sum / count : 1;
}

void Student::add_parameters(AdamW& optimizer) const {
  for (const Trainable& trainable : trainables_) {
    const std::string& name = trainable.weight->name;
    const bool matrix = trainable.weight->value.dim() > 1 && !name.ends_with(".bias");
    const auto add = [&](const std::string& of, ParameterGroup group, const torch::Tensor& whole) {
      for (int64_t i = 0; i < trainable.num_parts(); ++i)
        optimizer.add(trainable.weight->is_stack() ? concat(of, ':', i) : of, group,
                      trainable.part(whole, i));
    };
    for (const auto& [suffix, value] : trainable.parameters())
      add(name + suffix, matrix ? ParameterGroup::kMatrix : ParameterGroup::kVector, value);
    if (trainable.learns_scales())
      add(name + ":scale_ratios", ParameterGroup::kScales, trainable.quantizer->scale_ratios());
  }
}

void Student::update() {
  const torch::NoGradGuard no_grad;
  for (Trainable& trainable : trainables_)
    if (trainable.masters) trainable.masters->apply(trainable.quantizer->weights());
  materialize();
}

torch::Tensor Student::Trainable::part(const torch::Tensor& whole, int64_t index) const {
  if (!weight->is_stack()) return whole;
  return whole.view({num_parts(), -1, whole.size(-1)}).select(0, index);
}

int64_t Student::add_gradients(const Trainable& trainable, const torch::Tensor& whole) {
  const int64_t parts = trainable.num_parts();
  const bool is_stack = trainable.weight->is_stack();
  if (!whole.defined() || !is_stack) {
    gradients_.resize(gradients_.size() + parts, whole);
    return is_stack ? parts : 0;
  }
  const torch::Tensor reached = whole.view({parts, -1}).any(1).cpu();
  int64_t unreached = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const bool is_reached = reached.const_data_ptr<bool>()[i];
    gradients_.push_back(is_reached ? trainable.part(whole, i) : torch::Tensor());
    unreached += !is_reached;
  }
  return unreached;
}

int64_t Student::add_gradients(const Trainable& trainable,
                               const std::vector<torch::Tensor>& parameters) {
  int64_t unreached = trainable.num_parts();
  for (const torch::Tensor& whole : parameters)
    unreached = std::min(unreached, add_gradients(trainable, whole));
  return unreached;
}

void Student::materialize() {
  const torch::NoGradGuard no_grad;
  for (Trainable& trainable : trainables_)
    if (trainable.quantizer && !trainable.quantizer->is_stored())
      trainable.quantizer->materialize(trainable.weight->value);
}

double Student::backward() {
  const torch::NoGradGuard no_grad;
  gradients_.clear();
  num_unreached_ = 0;
  const bool on_cpu = model_->device().is_cpu();
  double sum = 0;
  for (Trainable& trainable : trainables_) {
    const bool learned = trainable.learns_scales();
    if (!trainable.trains_weights()) {
      if (!learned) continue;
      const torch::Tensor& mapped = trainable.ratio_gradients;
      if (mapped.defined()) sum += squared_norm(mapped);
      num_unreached_ += add_gradients(trainable, mapped);
      continue;
    }
    if (trainable.maps_at_once()) {
      trainable.mapped_gradients.resize(trainable.parameters().size());
      std::vector<torch::Tensor> mapped = trainable.mapped_gradients;
      num_unreached_ += add_gradients(trainable, mapped);
      if (learned) add_gradients(trainable, mapped.emplace_back(trainable.ratio_gradients));
      if (on_cpu)
        for (const torch::Tensor& each : mapped) sum += each.defined() ? squared_norm(each) : 0;
      continue;
    }
    torch::Tensor gradient = trainable.weight->value.grad();
    if (!gradient.defined()) {  // a weight that this batch did not use
      num_unreached_ +=
          add_gradients(trainable, std::vector<torch::Tensor>(trainable.parameters().size()));
      if (learned) add_gradients(trainable, torch::Tensor());
      continue;
    }
    gradient = gradient.contiguous();
    if (!trainable.quantizer) {
      if (on_cpu) sum += squared_norm(gradient);
      num_unreached_ += add_gradients(trainable, gradient);
      continue;
    }
    FakeQuantizer::Gradients mapped =
        trainable.quantizer->backward(gradient, trainable.ratio_gradients);
    sum += mapped.squared_norm;
    num_unreached_ += add_gradients(trainable, mapped.weights);
    if (learned) add_gradients(trainable, trainable.ratio_gradients = mapped.scale_ratios);
  }
  return std::sqrt(on_cpu ? sum : squared_norm_of_all(gradients_));
}

void Student::clear_gradients() {
  gradients_.clear();
  for (Trainable& trainable : trainables_) {
    trainable.weight->value.mutable_grad() = torch::Tensor();
    trainable.mapped_gradients.clear();
    if (!trainable.trains_weights() || trainable.maps_at_once())
      trainable.ratio_gradients = torch::Tensor();
  }
}

std::string Student::first_bad_weight() const {
  for (const Trainable& trainable : trainables_) {
    if (!all_finite(values_of(trainable.weight->value))) return trainable.weight->name;
    if (!trainable.quantizer) continue;
    const torch::Tensor& masters = trainable.quantizer->weights();
    if (masters.defined() && !all_finite(masters)) return "masters of " + trainable.weight->name;
    const torch::Tensor& ratios = trainable.quantizer->scale_ratios();
    if (ratios.defined() && !all_finite(ratios)) return "scales of " + trainable.weight->name;
  }
  return "";
}

std::string Student::first_bad_gradient() const {
  for (const Trainable& trainable : trainables_) {
    const torch::Tensor& gradient = trainable.weight->value.grad();
    if (gradient.defined() && !all_finite(gradient)) return "gradient of " + trainable.weight->name;
    for (const torch::Tensor& mapped : trainable.mapped_gradients)
      if (mapped.defined() && !all_finite(mapped)) return "gradient of " + trainable.weight->name;
    const torch::Tensor& of_scales = trainable.ratio_gradients;
    if (!trainable.trains_weights() && of_scales.defined() && !all_finite(of_scales))
      return "gradient of the scales of " + trainable.weight->name;
  }
  return "";
}

std::vector<TrainedTensor> Student::tensors() const {
  std::vector<TrainedTensor> all;
  for (const Trainable& trainable : trainables_) {
    const Weight& weight = *trainable.weight;
    TrainedTensor& tensor = all.emplace_back();
    tensor.name = weight.name;
    tensor.materialized_hash = content_hash(values_of(weight.value.detach()));
    tensor.weights = weight.value.detach();
    if (!trainable.quantizer) continue;
    tensor.type = trainable.quantizer->format().type;
    tensor.mode = trainable.quantizer->mode();
    tensor.weights = trainable.quantizer->weights();
    tensor.blocks = trainable.quantizer->stored_blocks();
    tensor.scale_ratios = trainable.quantizer->scale_ratios();
    if (!trainable.quantizer->is_stored())  // else they are in the blocks
      tensor.initial_scales = trainable.quantizer->initial_scales();
    if (trainable.masters) tensor.training_state = trainable.masters->state();
  }
  return all;
}

void Student::restore(const std::vector<TrainedTensor>& tensors) {
  const torch::NoGradGuard no_grad;
  check(tensors.size() == trainables_.size(), "the checkpoint has ", tensors.size(),
        " tensors, the model ", trainables_.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TrainedTensor& saved = tensors[i];
    Trainable& trainable = trainables_[i];
    const GgmlType type = trainable.quantizer ? trainable.quantizer->format().type : GgmlType::kF32;
    check(saved.name == trainable.weight->name && saved.type == type, "the checkpoint has '",
          saved.name, "' as ", type_name(saved.type), " where the model has '",
          trainable.weight->name, "' as ", type_name(type));
    if (!trainable.quantizer) {
      torch::Tensor value = trainable.weight->value.detach();
      copy_saved(saved.name, saved.weights, value);
      continue;
    }
    copy_saved(saved.name, saved.weights, trainable.quantizer->weights());
    if (trainable.masters) restore_training(saved, *trainable.masters);
    copy_saved(saved.name, saved.scale_ratios, trainable.quantizer->scale_ratios());
    if (trainable.quantizer->is_stored())
      trainable.quantizer->copy_blocks(saved.blocks);
    else
      copy_saved(saved.name, saved.initial_scales, trainable.quantizer->initial_scales());
  }
  materialize();
}

}  // namespace nibble
