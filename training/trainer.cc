#include "training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "training/checkpoint.h"
#include "training/data.h"
#include "training/learner.h"
#include "training/memory.h"
#include "training/memory_estimate.h"
#include "training/schedule.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

void check_options(const TrainOptions& options) {
  const int64_t length = options.data.sequence_length;
  if (length < 2) fail_usage("data.sequence_length is ", length, ", wanted 2 or more");
  if (options.batch_tokens < length || options.batch_tokens % length)
    fail_usage("batch_tokens is ", options.batch_tokens,
               ", wanted a multiple of data.sequence_length, ", length);
  if (options.micro_batch_tokens < length || options.micro_batch_tokens % length)
    fail_usage("micro_batch_tokens is ", options.micro_batch_tokens,
               ", wanted a multiple of data.sequence_length, ", length);
  if (options.max_tokens < options.batch_tokens)
    fail_usage("max_tokens is ", options.max_tokens, ", less than one step's batch_tokens, ",
               options.batch_tokens);
}

Json to_json(const TrainOptions& o) {
  return {
      {"data",
       {{"files", o.data.files},
        {"text_field", o.data.text_field},
        {"sequence_length", o.data.sequence_length},
        {"held_out", o.data.held_out},
        {"max_bytes", o.data.max_bytes}}},
      {"loss",
       {{"kind", o.loss.kind},
        {"ce_weight", o.loss.ce_weight},
        {"chunk_positions", o.loss.chunk_positions}}},
      {"optimizer",
       {{"learning_rate", o.optimizer.learning_rate},
        {"scale_learning_rate", o.optimizer.scale_learning_rate},
        {"weight_decay", o.optimizer.weight_decay},
        {"beta1", o.optimizer.beta1},
        {"beta2", o.optimizer.beta2},
        {"epsilon", o.optimizer.epsilon},
        {"clip_norm", o.optimizer.clip_norm},
        {"warmup", o.optimizer.warmup},
        {"final_ratio", o.optimizer.final_ratio}}},
      {"quant", {{"type", o.quant.type}, {"scales", o.quant.scales}, {"initial", o.quant.initial}}},
      {"batch_tokens", o.batch_tokens},
      {"micro_batch_tokens", o.micro_batch_tokens},
      {"max_tokens", o.max_tokens},
      {"max_minutes", o.max_minutes},
      {"evaluate_every", o.evaluate_every},
      {"checkpoint_every", o.checkpoint_every},
      {"dtype", o.dtype},
      {"activation_checkpointing", o.activation_checkpointing},
      {"seed", o.seed}};
}

std::string to_line(const StepMetrics& m) {
  Json line = {{"step", m.step}, {"tokens", m.tokens}, {"seconds", m.seconds}};
  if (m.step > 0)
    line.update({{"loss", m.loss},
                 {"kl", m.kl},
                 {"ce", m.ce},
                 {"learning_rate", m.learning_rate},
                 {"grad_norm", m.grad_norm},
                 {"tokens_per_second", m.tokens_per_second}});
  if (m.held_out_loss >= 0)
    line.update({{"held_out_loss", m.held_out_loss},
                 {"held_out_kl", m.held_out_kl},
                 {"held_out_ce", m.held_out_ce}});
  return line.dump() + "\n";
}

/// The lines of an earlier metrics.jsonl up to `step`: what a resumed run keeps.
std::string lines_until(const std::string& path, int64_t step) {
  std::istringstream lines(read_file(path));
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    const Json parsed = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object() && parsed.value("step", step + 1) <= step) kept += line + "\n";
  }
  return kept;
}

class Run {
 public:
  Run(const GgufFile& source, const Plan& plan, const TrainOptions& options, std::string run_dir);

  /// False when `last` says that the run was complete.
  bool resume();
  TrainResult train();

 private:
  std::string checkpoint_path(const char* name) const {
    return run_dir_ + "/checkpoints/" + name + ".safetensors";
  }
  double seconds() const {
    const auto now = std::chrono::steady_clock::now();
    return earlier_seconds_ + std::chrono::duration<double>(now - start_).count();
  }
  double progress() const {
    return run_progress(tokens_, num_steps_ * options_.batch_tokens, seconds(),
                        options_.max_minutes);
  }
  bool due(int64_t every) const { return every > 0 && step_ % every == 0; }
  std::vector<Batch> micro_batches(const std::vector<int64_t>& rows) const;
  StepMetrics take_step();
  void evaluate(StepMetrics& metrics);
  void save(const char* name, bool with_moments);
  void report(const StepMetrics& metrics);
  void show(Progress& bar, const StepMetrics& metrics) const;

  const Plan& plan_;
  TrainOptions options_;
  std::string run_dir_;
  TextData data_;
  std::unique_ptr<Model> teacher_;
  std::unique_ptr<Student> student_;
  std::unique_ptr<Learner> learner_;
  std::vector<Batch> held_out_;
  std::vector<torch::Tensor> held_out_teacher_;
  std::ofstream metrics_file_;
  TrainResult result_;
  int64_t num_steps_, step_ = 0, tokens_ = 0, best_step_ = -1;
  double held_out_loss_ = -1, best_loss_ = -1, earlier_seconds_ = 0, step_seconds_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Run::Run(const GgufFile& source, const Plan& plan, const TrainOptions& options, std::string run_dir)
    : plan_(plan),
      options_(options),
      run_dir_(std::move(run_dir)),
      num_steps_(options.max_tokens / options.batch_tokens) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::from_metadata(source.metadata());
  data_ = TextData::load(options.data, *tokenizer, options.seed);
  const bool distils = loss_shares(options.loss).kl > 0;
  result_.predicted_bytes =
      check_memory(source, plan, options, resident_memory_bytes(), available_memory_bytes())
          .total();
  note("memory: about ", format_bytes(result_.predicted_bytes), " at the peak");
  std::unique_ptr<Model> model = load_model(source);
  if (options.data.sequence_length > model->shape().context_length)
    fail_usage("data.sequence_length is ", options.data.sequence_length,
               ", the model's context is ", model->shape().context_length);
  if (distils) {
    teacher_ = std::move(model);
    model = copy_model(*teacher_);
  }
  model->set_activation_checkpointing(options.activation_checkpointing);
  student_ = std::make_unique<Student>(std::move(model), &plan, options.quant);
  learner_ = std::make_unique<Learner>(*student_, teacher_.get(), options);

  const int64_t length = options.data.sequence_length;
  const int64_t wanted =
      std::min(data_.held_out.num_sequences(), std::max<int64_t>(1, kMaxHeldOutTokens / length));
  const int64_t together = options.micro_batch_tokens / length;
  for (int64_t first = 0; first < wanted; first += together) {
    std::vector<int64_t> rows;
    for (int64_t row = first; row < std::min(wanted, first + together); ++row) rows.push_back(row);
    held_out_.push_back(data_.held_out.at(rows));
  }
  held_out_teacher_.resize(held_out_.size());
  std::filesystem::create_directories(run_dir_ + "/checkpoints");
}

bool Run::resume() {
  const std::string path = checkpoint_path("last");
  if (!std::filesystem::exists(path)) return true;
  Checkpoint saved = load_checkpoint(path);
  with_frame(path, [&] {
    check(
        saved.options_json == to_json(options_).dump() && saved.plan.to_json() == plan_.to_json(),
        "was made with other options or another plan; train without --resume, or in a new folder");
    student_->restore(saved.tensors);
    if (!saved.moments.empty()) learner_->optimizer().restore(saved.moments, saved.step);
  });
  step_ = saved.step;
  tokens_ = saved.tokens;
  earlier_seconds_ = saved.seconds;
  held_out_loss_ = saved.held_out_loss;
  best_loss_ = saved.best_held_out_loss;
  best_step_ = saved.best_step;
  return !saved.moments.empty();
}

std::vector<Batch> Run::micro_batches(const std::vector<int64_t>& rows) const {
  const auto together =
      static_cast<size_t>(options_.micro_batch_tokens / options_.data.sequence_length);
  std::vector<Batch> batches;
  for (size_t first = 0; first < rows.size(); first += together) {
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(first);
    const auto count = std::min(together, rows.size() - first);
    batches.push_back(data_.train.at({begin, begin + static_cast<std::ptrdiff_t>(count)}));
  }
  return batches;
}

StepMetrics Run::take_step() {
  const double begun = seconds();
  const int64_t sequences = options_.batch_tokens / options_.data.sequence_length;
  const std::vector<int64_t> rows =
      step_sequences(options_.seed, step_, sequences, data_.train.num_sequences());
  const double factor = learning_rate_factor(
      run_progress(tokens_ + options_.batch_tokens, num_steps_ * options_.batch_tokens,
                   begun + step_seconds_, options_.max_minutes),
      options_.optimizer);
  std::string batch;
  for (int64_t row : rows) batch += (batch.empty() ? "" : ", ") + std::to_string(row);
  const StepResult step = with_frame(concat("step ", step_ + 1, ", batch of sequences ", batch),
                                     [&] { return learner_->step(micro_batches(rows), factor); });
  ++step_;
  tokens_ += options_.batch_tokens;
  step_seconds_ = seconds() - begun;

  StepMetrics metrics;
  metrics.step = step_;
  metrics.tokens = tokens_;
  metrics.loss = step.loss;
  metrics.kl = step.sums.mean_kl();
  metrics.ce = step.sums.mean_ce();
  metrics.learning_rate = options_.optimizer.learning_rate * factor;
  metrics.grad_norm = step.grad_norm;
  metrics.tokens_per_second = static_cast<double>(options_.batch_tokens) / step_seconds_;
  metrics.seconds = seconds();
  return metrics;
}

void Run::evaluate(StepMetrics& metrics) {
  if (held_out_.empty()) return;
  LossSums sums;
  for (size_t i = 0; i < held_out_.size(); ++i)
    sums += learner_->evaluate(held_out_[i], held_out_teacher_[i]);
  metrics.held_out_kl = sums.mean_kl();
  metrics.held_out_ce = sums.mean_ce();
  metrics.held_out_loss = held_out_loss_ = learner_->mean_loss(sums);
  if (step_ > 0 && (best_step_ < 0 || held_out_loss_ < best_loss_)) {
    best_loss_ = held_out_loss_;
    best_step_ = step_;
    save("best", /*with_moments=*/false);
  }
}

void Run::save(const char* name, bool with_moments) {
  Checkpoint checkpoint;
  checkpoint.step = step_;
  checkpoint.tokens = tokens_;
  checkpoint.seed = options_.seed;
  checkpoint.seconds = seconds();
  checkpoint.held_out_loss = held_out_loss_;
  checkpoint.best_held_out_loss = best_loss_;
  checkpoint.best_step = best_step_;
  checkpoint.plan = plan_;
  checkpoint.options_json = to_json(options_).dump();
  checkpoint.tensors = student_->tensors();
  if (with_moments) checkpoint.moments = learner_->optimizer().moments();
  save_checkpoint(checkpoint_path(name), checkpoint);
}

void Run::report(const StepMetrics& metrics) {
  metrics_file_ << to_line(metrics) << std::flush;
  check(metrics_file_.good(), run_dir_, "/metrics.jsonl: cannot be written");
  result_.metrics.push_back(metrics);
}

void Run::show(Progress& bar, const StepMetrics& metrics) const {
  char text[96];
  std::snprintf(text, sizeof text, "loss %.4g, %.0f tokens/s", metrics.loss,
                metrics.tokens_per_second);
  std::string note = text;
  if (held_out_loss_ >= 0) {
    std::snprintf(text, sizeof text, ", held out %.4g", held_out_loss_);
    note += text;
  }
  const bool timed = options_.max_minutes > 0;
  bar.update(timed ? static_cast<int64_t>(progress() * 60 * options_.max_minutes) : step_, note);
}

TrainResult Run::train() {
  const std::string path = run_dir_ + "/metrics.jsonl";
  write_file(path, step_ > 0 && std::filesystem::exists(path) ? lines_until(path, step_) : "");
  metrics_file_.open(path, std::ios::app);
  start_ = std::chrono::steady_clock::now();
  if (step_ == 0) {
    StepMetrics at_start;
    evaluate(at_start);
    if (at_start.held_out_loss >= 0) report(at_start);
  }
  const bool timed = options_.max_minutes > 0;
  Progress bar("training", timed ? static_cast<int64_t>(60 * options_.max_minutes) : num_steps_,
               timed ? "seconds" : "steps");
  while (step_ < num_steps_ && progress() < 1) {
    StepMetrics metrics = take_step();
    const bool last = step_ == num_steps_ || progress() >= 1;
    if (last || due(options_.evaluate_every)) evaluate(metrics);
    report(metrics);
    show(bar, metrics);
    if (!last && due(options_.checkpoint_every)) save("last", /*with_moments=*/true);
  }
  bar.finish();
  save("last", /*with_moments=*/false);
  result_.checkpoint = checkpoint_path("last");
  result_.best_checkpoint = checkpoint_path(best_step_ < 0 ? "last" : "best");
  result_.best_step = best_step_ < 0 ? step_ : best_step_;
  result_.steps = step_;
  result_.tokens = tokens_;
  result_.seconds = seconds();
  return result_;
}

}  // namespace

TrainResult train(const GgufFile& source, const Plan& plan, const TrainOptions& options,
                  const std::string& run_dir, bool resume) {
  check_options(options);
  keep_freed_memory();
  Run run(source, plan, options, run_dir);
  if (resume && !run.resume())
    fail("'", run_dir, "' holds a finished run: there is nothing to resume");
  return run.train();
}

}  // namespace nibble
