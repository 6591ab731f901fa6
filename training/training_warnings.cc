// What a finished run's figures say against it.
#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "training/diagnosis.h"

namespace nibble {
namespace {

/// Below this share nothing that a model says comes from codes that moved.
constexpr double kMovedAtLeast = 1e-5;
/// How far above its lowest value the last held-out loss must lie: neighbouring evaluations of a
/// run that goes well differ by less.
constexpr double kTurnedUp = 1.02;
/// Evaluations after the best one that make it a turn, and that `early_stop` is suggested with.
constexpr int64_t kTurnEvaluations = 2;
constexpr int kEarlyStop = 3;
/// How far above the start's the lowest held-out loss must lie, so that it is not a run that stands
/// still.
constexpr double kWorse = 1.001;
/// A search clamps a few weights in a hundred by intention, in 2-bit types more: both this share
/// and twice that of the start must be exceeded.
constexpr double kManyClamped = 0.1;
constexpr double kClampedGrowth = 2;
/// Share of groups that newly lie at their floor.
constexpr double kManyAtFloor = 0.01;
/// Of half a step: how far all weights must be able to go for this share of them to change codes.
constexpr double kMovingShare = 0.1;
/// Half the distance to the next float32 is at least this share of a number.
constexpr double kHalfUlp = 0x1p-25;

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", value);
  return text;
}

std::string percent(double share) { return short_number(100 * share) + " %"; }

std::string nothing_moved(const Diagnosis& diagnosis, const TrainOptions& options) {
  const TensorDiagnosis all = diagnosis.total();
  const bool may_move = options.quant.weights == "full";
  if (!may_move || all.weights == 0 || share_of(all.moved, all.weights) >= kMovedAtLeast) return "";
  const auto steps = static_cast<double>(std::max<int64_t>(1, diagnosis.step));
  // Adam moves a weight by at most about the learning rate a step; the next code begins half a
  // step away, less for most.
  const double rate = options.optimizer.learning_rate, way = all.mean_step / 2;
  const std::string what = concat("no code moved in ", diagnosis.step, " steps: ");
  if (options.optimizer.relative) return what + "raise optimizer.learning_rate, or train longer";
  if (rate * steps >= way)
    return what +
           "the loss gives the weights no gradient that would; is the source on the grid of its "
           "type already (weight_error_start in diagnosis.json)?";
  return concat(
      what, "with optimizer.learning_rate ", short_number(rate), " a weight goes at most about ",
      short_number(rate * steps), ", where codes are ", short_number(2 * way), " apart",
      rate < all.mean_step * kHalfUlp ? " (float32 masters even round steps as small as that away)"
                                      : "",
      "; raise it (at ", short_number(kMovingShare * way / steps),
      " about one code in ten can move), or train longer");
}

/// Mean loss of the steps in (begin, end].
double mean_loss(const std::vector<StepMetrics>& metrics, int64_t begin, int64_t end) {
  double sum = 0;
  int64_t count = 0;
  for (const StepMetrics& m : metrics) {
    if (m.step <= std::max<int64_t>(0, begin) || m.step > end) continue;
    sum += m.loss;
    ++count;
  }
  return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

/// What ships is of a step after the start, which no checkpoint holds.
std::string worse_than_start(const TrainOptions& options, const std::vector<StepMetrics>& metrics) {
  const StepMetrics *start = nullptr, *best = nullptr;
  for (const StepMetrics& m : metrics) {
    if (m.held_out_loss < 0) continue;
    const StepMetrics*& of = m.step == 0 ? start : best;
    if (!of || m.held_out_loss < of->held_out_loss) of = &m;
  }
  if (!start || !best || best->held_out_loss <= kWorse * start->held_out_loss) return "";
  return concat("training made it worse: the held-out loss was ",
                short_number(start->held_out_loss), " at the start and ",
                short_number(best->held_out_loss), " at its lowest, at step ", best->step,
                ", which ships; start.gguf of the run is the better file. Lower ",
                options.quant.weights == "scales" ? "optimizer.scale_learning_rate"
                                                  : "optimizer.learning_rate",
                ", or train longer");
}

std::string overfitted(const TrainOptions& options, const std::vector<StepMetrics>& metrics) {
  std::vector<StepMetrics> evaluated;
  for (const StepMetrics& m : metrics)
    if (m.step > 0 && m.held_out_loss >= 0) evaluated.push_back(m);
  const auto best = std::min_element(
      evaluated.begin(), evaluated.end(),
      [](const auto& a, const auto& b) { return a.held_out_loss < b.held_out_loss; });
  if (evaluated.end() - best <= kTurnEvaluations) return "";
  const StepMetrics& last = evaluated.back();
  if (last.held_out_loss < kTurnedUp * best->held_out_loss) return "";
  const int64_t since = last.step - best->step;
  if (mean_loss(metrics, best->step, last.step) >=
      mean_loss(metrics, best->step - since, best->step))
    return "";
  return concat(
      "the held-out loss turned up after step ", best->step, ", from ",
      short_number(best->held_out_loss), " to ", short_number(last.held_out_loss), " at step ",
      last.step, ", while the training loss fell: overfitting. Step ", best->step,
      " ships; give data.files more text, lower optimizer.learning_rate",
      options.early_stop > 0 ? "" : concat(", or save the time with early_stop: ", kEarlyStop));
}

const char* what_moves_scales(const TrainOptions& options) {
  return options.quant.scales == "learned" ? "optimizer.scale_learning_rate"
                                           : "optimizer.learning_rate";
}

std::string many_clamped(const Diagnosis& diagnosis, const TrainOptions& options) {
  const TensorDiagnosis* worst = nullptr;
  int64_t count = 0;
  const auto share = [](const TensorDiagnosis& t) { return share_of(t.clamped, t.weights); };
  for (const TensorDiagnosis& tensor : diagnosis.tensors) {
    if (share(tensor) <= kManyClamped ||
        share(tensor) <= kClampedGrowth * share_of(tensor.clamped_start, tensor.weights))
      continue;
    ++count;
    if (!worst || share(tensor) > share(*worst)) worst = &tensor;
  }
  if (!worst) return "";
  return concat(
      "in ", count, count == 1 ? " tensor" : " tensors", " more than ", percent(kManyClamped),
      " of the weights left the range of their scales, where no gradient reaches them "
      "(most in ",
      worst->tensor, ": ", percent(share_of(worst->clamped_start, worst->weights)),
      " at the start, ", percent(share(*worst)), " now): lower ",
      options.quant.scales == "learned" ? "optimizer.learning_rate or optimizer.scale_learning_rate"
                                        : "optimizer.learning_rate");
}

std::string many_at_floor(const Diagnosis& diagnosis, const TrainOptions& options) {
  const TensorDiagnosis all = diagnosis.total();
  const double before = share_of(all.floored_start, all.groups);
  const double after = share_of(all.floored, all.groups);
  if (after - before <= kManyAtFloor) return "";
  const auto worst = std::max_element(diagnosis.tensors.begin(), diagnosis.tensors.end(),
                                      [](const TensorDiagnosis& a, const TensorDiagnosis& b) {
                                        return share_of(a.floored - a.floored_start, a.groups) <
                                               share_of(b.floored - b.floored_start, b.groups);
                                      });
  return concat(percent(after), " of the groups of weights have a scale at its floor (",
                percent(before), " at the start; most in ", worst->tensor,
                "): their weights are all one value and stay so; lower ",
                what_moves_scales(options));
}

}  // namespace

std::vector<std::string> training_warnings(const Diagnosis& diagnosis, const TrainOptions& options,
                                           const std::vector<StepMetrics>& metrics) {
  std::vector<std::string> warnings;
  for (std::string& line : std::vector<std::string>{
           nothing_moved(diagnosis, options), worse_than_start(options, metrics),
           overfitted(options, metrics), many_clamped(diagnosis, options),
           many_at_floor(diagnosis, options)})
    if (!line.empty()) warnings.push_back(std::move(line));
  return warnings;
}

}  // namespace nibble
