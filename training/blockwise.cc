#include "training/blockwise.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "base/error.h"
#include "model/made_weight.h"
#include "quant/fake/torch_device.h"
#include "training/block_fisher.h"
#include "training/data.h"
#include "training/learner.h"
#include "training/optimizer.h"
#include "training/schedule.h"
#include "training/stored_start.h"

namespace nibble {
namespace {

// Of all of them, for the error that a block starts with: it is shown alone.
constexpr size_t kErrorBatches = 32;
// The rest is the identity's, so that no direction is free: what few tokens found to cost nothing
// may cost something.
constexpr double kFisherShare = 0.97;

/// What a block's own training minds of a run's options: everything in it trains, if not by
/// rounding alone.
TrainOptions stage_options(TrainOptions options) {
  if (options.quant.weights != "rounding") options.quant.weights = "full";
  options.quant.init_file.clear();
  options.optimizer.relative = true;
  options.optimizer.learning_rate = options.blockwise.learning_rate;
  options.optimizer.scale_learning_rate = options.blockwise.scale_learning_rate;
  return options;
}

/// A position's share of the loss for a squared error of 1 there, [N, 1]. A position whose target
/// is zero says nothing.
torch::Tensor position_weights(const torch::Tensor& target) {
  const torch::Tensor energy = target.square().sum(1, /*keepdim=*/true);
  return at::where(energy > 0, energy.reciprocal(), torch::zeros_like(energy)) /
         static_cast<double>(target.size(0));
}

double loss_of(const torch::Tensor& difference, const torch::Tensor& weighed,
               const torch::Tensor& weights) {
  return (difference * weighed * weights).sum().item<double>();
}

/// As the next stage takes it up: masters in the middle of their codes. Training leaves many of
/// them at the border between two codes (Nagel et al. 2022, "Overcoming Oscillations in
/// Quantization-Aware Training"), and the first steps of an optimizer without moments would tip
/// them over: on a llama of 6 million weights in Q2_0 the KLD doubled in ten steps of scales alone.
StartingPoint start_from(const TrainedTensor& tensor) {
  StartingPoint point;
  point.weights = tensor.weights;
  if (!tensor.scale_ratios.defined()) return point;
  point.scales = tensor.initial_scales * tensor.scale_ratios.detach().clamp_min(0);
  point.weights = torch::empty_like(tensor.weights);
  restore_quantizer(tensor).materialize(point.weights);
  return point;
}

/// As a stage of scales alone takes it up: an eighth of the masters' memory and less.
StartingPoint stored_start_from(const TrainedTensor& tensor) {
  StartingPoint point;
  point.blocks = block_tensor(restore_quantizer(tensor).blocks(), tensor.weights.sizes().vec());
  return point;
}

}  // namespace

Blockwise::Blockwise(const GgufFile& source, const Plan& plan, const TrainOptions& options,
                     const std::vector<Batch>& batches, const StartingPoints& start, Model* started,
                     const std::string& scratch_folder)
    : source_(source),
      plan_(plan),
      options_(stage_options(options)),
      batches_(batches),
      start_(start),
      started_(started),
      shape_(model_shape(source)),
      quantized_(scratch_folder, batches, shape_.width),
      full_(scratch_folder, batches, shape_.width) {
  check(!batches.empty(), "block-wise reconstruction needs text");
  if (options_.blockwise.fisher_tokens > 0) keep_metrics(scratch_folder);
  progress_.emplace("blocks", num_blocks(), "blocks");
}

void Blockwise::keep_metrics(const std::string& scratch_folder) {
  metrics_.emplace(scratch_folder);
  std::vector<Batch> some;
  for (int64_t tokens = 0;
       some.size() < batches_.size() && tokens < options_.blockwise.fisher_tokens;
       tokens += some.back().tokens.numel())
    some.push_back(batches_[some.size()]);
  visit_block_fisher([this](const ModelPart& part) { return load_part(part); }, shape_, some,
                     options_.seed, scratch_folder,
                     [this](int64_t block, const torch::Tensor& fisher) {
                       const torch::Tensor metric =
                           kFisherShare * fisher + (1 - kFisherShare) * torch::eye(shape_.width);
                       write_tensor(*metrics_, block * static_cast<int64_t>(metric.nbytes()),
                                    metric);
                     });
}

void Blockwise::take_metric() {
  if (!metrics_) return;
  const int64_t bytes = shape_.width * shape_.width * static_cast<int64_t>(sizeof(float));
  metric_ = read_tensor(*metrics_, next_ * bytes, {shape_.width, shape_.width})
                .to(torch_device(options_.device));
}

torch::Tensor Blockwise::weighed(const torch::Tensor& difference) const {
  return metric_.defined() ? difference.matmul(metric_) : difference;
}

std::unique_ptr<Model> Blockwise::load_part(const ModelPart& part) const {
  const torch::Device device = torch_device(options_.device);
  std::unique_ptr<Model> loaded = load_model(source_, device, part);
  loaded->set_compute_dtype(parse_compute_dtype(options_.dtype, device));
  return loaded;
}

std::unique_ptr<Student> Blockwise::student_of(std::unique_ptr<Model> part) const {
  if (started_)
    for (Weight* weight : part->weights())
      weight->value.copy_(values_of(started_->find_weight(weight->name)->value));
  return std::make_unique<Student>(std::move(part), &plan_, options_.quant, start_);
}

std::vector<TrainedTensor> Blockwise::take_ends() {
  const torch::NoGradGuard no_grad;
  std::unique_ptr<Model> ends = load_part({0, 0, true});
  for (size_t i = 0; i < batches_.size(); ++i) full_.put(i, ends->embed(batches_[i]));
  const std::unique_ptr<Student> student = student_of(std::move(ends));
  for (size_t i = 0; i < batches_.size(); ++i)
    quantized_.put(i, student->model().embed(batches_[i]));
  return student->tensors();
}

TrainedBlock Blockwise::train_block() {
  const torch::AutoGradMode with_gradients(true);
  const std::string name = concat("block ", next_);
  std::unique_ptr<Model> block = load_part({next_, 1, false});
  take_metric();
  set_targets(*block);
  const std::unique_ptr<Student> student = student_of(std::move(block));
  const double before = first_error(student->model());
  if (student->trains()) with_frame(name, [&] { train(*student); });
  const double after = pass_on(student->model());
  char text[64];
  std::snprintf(text, sizeof text, "%s: error %.4f -> %.4f", name.c_str(), before, after);
  progress_->update(++next_, text);
  return {student->tensors(), before, after};
}

/// What the unquantized block makes of its inputs takes their place: the next one's inputs.
void Blockwise::set_targets(Model& block) {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < batches_.size(); ++i)
    full_.put(i, block.blocks(full_.get(i).to(block.device()), batches_[i]));
}

double Blockwise::error_of(size_t batch, const torch::Tensor& made) const {
  const torch::Tensor target = full_.get(batch).to(made.device()), difference = made - target;
  return loss_of(difference, weighed(difference), position_weights(target));
}

double Blockwise::first_error(Model& block) const {
  const torch::NoGradGuard no_grad;
  const size_t stride = (batches_.size() + kErrorBatches - 1) / kErrorBatches;
  double sum = 0, count = 0;
  for (size_t i = 0; i < batches_.size(); i += stride, ++count)
    sum += error_of(i, block.blocks(quantized_.get(i).to(block.device()), batches_[i]));
  return sum / count;
}

double Blockwise::pass_on(Model& block) {
  const torch::NoGradGuard no_grad;
  double sum = 0;
  for (size_t i = 0; i < batches_.size(); ++i) {
    const torch::Tensor made = block.blocks(quantized_.get(i).to(block.device()), batches_[i]);
    sum += error_of(i, made);
    quantized_.put(i, made);
  }
  return sum / static_cast<double>(batches_.size());
}

void Blockwise::train(Student& student) {
  Model& block = student.model();
  AdamW optimizer(options_.optimizer, student.coarseness());
  student.add_parameters(optimizer);
  const auto count = static_cast<int64_t>(batches_.size());
  const int64_t steps = count * options_.blockwise.epochs;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t i = step_sequences(options_.seed, step, 1, count).front();
    const torch::Tensor target = full_.get(i).to(block.device());
    const torch::Tensor x = quantized_.get(i).to(block.device());
    const torch::Tensor made = block.blocks(x, batches_[i]);
    const torch::Tensor difference = made.detach() - target, weights = position_weights(target);
    const torch::Tensor pull = weighed(difference);
    const double loss = loss_of(difference, pull, weights);
    check(std::isfinite(loss), "step ", step + 1, ": loss is ", loss);
    made.backward(2 * pull * weights);
    const double norm = student.backward();
    check(std::isfinite(norm), "step ", step + 1, ": gradient norm is ", norm);
    optimizer.step(student.gradients(),
                   learning_rate_factor(static_cast<double>(step + 1) / static_cast<double>(steps),
                                        options_.optimizer),
                   norm);
    student.clear_gradients();
    student.update();
  }
}

StartingPoints blockwise_start(const GgufFile& source, const Plan& plan,
                               const TrainOptions& options, const std::vector<Batch>& batches,
                               const StartingPoints& start, Model& model,
                               const std::string& scratch_folder) {
  const torch::NoGradGuard no_grad;
  Blockwise stage(source, plan, options, batches, start, &model, scratch_folder);
  StartingPoints points;
  const auto keep = [&](const std::vector<TrainedTensor>& tensors) {
    for (const TrainedTensor& tensor : tensors) {
      if (tensor.type == GgmlType::kF32)
        model.find_weight(tensor.name)->value = tensor.weights;
      else
        points[tensor.name] =
            options.quant.weights == "scales" ? stored_start_from(tensor) : start_from(tensor);
    }
  };
  keep(stage.take_ends());
  for (int64_t i = 0; i < stage.num_blocks(); ++i) keep(stage.train_block().tensors);
  return points;
}

}  // namespace nibble
