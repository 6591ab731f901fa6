#include "training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/stop_signal.h"
#include "io/atomic_file.h"
#include "io/line_file.h"
#include "io/mapped_file.h"
#include "model/activation_rounding.h"
#include "model/llama_tensors.h"
#include "quant/fake/torch_device.h"
#include "training/blockwise.h"
#include "training/calibrate.h"
#include "training/checkpoint.h"
#include "training/data.h"
#include "training/learner.h"
#include "training/memory.h"
#include "training/memory_estimate.h"
#include "training/metrics.h"
#include "training/model_file.h"
#include "training/name_patterns.h"
#include "training/options_json.h"
#include "training/schedule.h"
#include "training/stored_start.h"
#include "training/teacher.h"
#include "training/teacher_cache.h"

namespace nibble {
namespace {

/// The most that a teacher's states may take.
constexpr int64_t kMaxTeacherBytes = int64_t{1} << 30;

constexpr const char* kStopNotice =
    "\nstopping: a checkpoint follows after this step (a second signal ends at once)\n";

std::string checkpoint_path(const std::string& run_dir, const char* name) {
  return concat(run_dir, "/checkpoints/", name, ".safetensors");
}

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
  if (parse_activation_backend(options.quant.activations) != ActivationBackend::kNone &&
      options.dtype != "float32")
    fail_usage("quant.activations: ", options.quant.activations, " wants dtype: float32, found ",
               options.dtype, ", which rounds activations about as coarsely");
  if (options.quant.weights == "scales" && options.device.cuda)
    fail_usage("quant.weights: scales alone train on the CPU only");
}

/// What a run is gone on from.
struct Latest {
  Checkpoint checkpoint;
  bool last_is_whole = true;  // false: it is missing or damaged, this is the one before
};

/// Nothing where there is no checkpoint yet.
std::optional<Latest> load_latest(const std::string& run_dir) {
  const std::string last = checkpoint_path(run_dir, "last");
  const std::string previous = checkpoint_path(run_dir, "previous");
  const bool has_previous = std::filesystem::exists(previous);
  if (!std::filesystem::exists(last)) {  // killed between two renames, or removed by hand
    if (!has_previous) return std::nullopt;
    warn(last, ": is missing; going on from ", previous);
    return Latest{load_checkpoint(previous), false};
  }
  const MappedFile readable(last);  // throws: what may not be read is not damaged
  try {
    return Latest{load_checkpoint(last), true};
  } catch (const Error& error) {
    if (!has_previous)
      fail(error.what(), "; there is no checkpoint before it: train without --resume");
    warn(error.what(), "; going on from the one before it, ", previous);
    return Latest{load_checkpoint(previous), false};
  }
}

/// A forgotten --resume must not cost a run unseen: its checkpoints stay until the first new one.
void warn_of_unfinished(const std::string& run_dir) {
  const std::string last = checkpoint_path(run_dir, "last");
  try {
    if (!std::filesystem::exists(last) || load_checkpoint(last).moments.empty()) return;
  } catch (const Error&) {
    return;  // not one that could be gone on with
  }
  warn(run_dir,
       " holds a run that was stopped before its end; this one begins anew and its first "
       "checkpoint replaces it (--resume would go on)");
}

bool is_whole(const std::string& path) {
  try {
    load_checkpoint(path);
    return true;
  } catch (const Error& error) {
    warn(error.what(), "; the best from here on is kept instead");
    return false;
  }
}

TrainResult result_of(const Checkpoint& last, const std::string& run_dir) {
  TrainResult result;
  const bool has_best = last.best_step >= 0;
  result.checkpoint = checkpoint_path(run_dir, "last");
  result.best_checkpoint = checkpoint_path(run_dir, has_best ? "best" : "last");
  result.best_step = has_best ? last.best_step : last.step;
  result.steps = last.step;
  result.tokens = last.tokens;
  result.seconds = last.seconds;
  return result;
}

/// After a newer checkpoint is whole.
void prune(const std::string& run_dir, const std::vector<const char*>& names) {
  std::error_code ignored;  // an old file that stays does no harm
  for (const char* name : names) std::filesystem::remove(checkpoint_path(run_dir, name), ignored);
}

/// The run is over: only what ships stays, though a kill came between the last checkpoint and here.
TrainResult finish(const Checkpoint& last, const std::string& run_dir) {
  prune(run_dir, {"previous"});
  if (last.best_step < 0) prune(run_dir, {"best"});
  return result_of(last, run_dir);
}

class Run {
 public:
  /// fresh: it starts; else go_on_from() follows.
  Run(const GgufFile& source, const Plan& plan, const TrainOptions& options, std::string run_dir,
      bool fresh);

  void go_on_from(const Latest& latest);
  TrainResult train();

 private:
  double seconds() const {
    const auto now = std::chrono::steady_clock::now();
    return earlier_seconds_ + std::chrono::duration<double>(now - start_).count();
  }
  double progress() const {
    return run_progress(tokens_, num_steps_ * options_.batch_tokens, seconds(),
                        options_.max_minutes);
  }
  bool due(int64_t every) const { return every > 0 && step_ % every == 0; }
  bool stops_early() const {
    return options_.early_stop > 0 && evaluations_since_best_ >= options_.early_stop;
  }
  int64_t teacher_bytes(const GgufFile& source) const;
  int64_t sequences_together() const {
    return options_.micro_batch_tokens / options_.data.sequence_length;
  }
  StepResult learn_from(const std::vector<int64_t>& rows, double rate_factor);
  StepMetrics take_step();
  void evaluate(StepMetrics& metrics);
  Checkpoint state() const;
  void save_best();
  void save_last();
  void report(const StepMetrics& metrics);
  void show(Progress& bar, const StepMetrics& metrics) const;

  const Plan& plan_;
  TrainOptions options_;
  std::string run_dir_;
  TextData data_;
  std::unique_ptr<Model> teacher_;
  std::unique_ptr<TeacherCache> teacher_cache_;  // in its place
  std::unique_ptr<Student> student_;
  std::unique_ptr<Learner> learner_;
  std::vector<Batch> held_out_;
  std::vector<torch::Tensor> held_out_answers_;  // the teacher's
  // Of each training sequence, where epochs come again and it is kept; else empty.
  std::vector<torch::Tensor> teacher_hidden_;
  std::optional<LineFile> metrics_file_;
  std::vector<StepMetrics> metrics_;
  bool continued_ = false;     // what is in checkpoints/ is of this run
  bool last_is_whole_ = true;  // false: `last` is damaged and must not become `previous`
  int64_t predicted_bytes_ = 0;
  int64_t num_steps_, step_ = 0, tokens_ = 0, best_step_ = -1, evaluations_since_best_ = 0;
  double held_out_loss_ = -1, best_loss_ = -1, earlier_seconds_ = 0, step_seconds_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Run::Run(const GgufFile& source, const Plan& plan, const TrainOptions& options, std::string run_dir,
         bool fresh)
    : plan_(plan),
      options_(options),
      run_dir_(std::move(run_dir)),
      num_steps_(options.max_tokens / options.batch_tokens) {
  with_frame("quant.frozen", [&] { NamePatterns(options.quant.frozen).check_all_name(plan); });
  const int64_t context = model_shape(source).context_length;
  if (options.data.sequence_length > context)
    fail_usage("data.sequence_length is ", options.data.sequence_length,
               ", the model's context is ", context);
  data_ = TextData::load(options.data, source.metadata(), options.seed);
  const bool distils = loss_shares(options.loss).kl > 0;
  const bool has_teacher = distils && options.loss.teacher_top_k == 0;
  const int64_t kept = has_teacher ? teacher_bytes(source) : 0;
  if (kept > 0) teacher_hidden_.resize(data_.train.num_sequences());
  if (!options.device.cuda) {  // the prediction is of this machine's memory, not of a GPU's
    predicted_bytes_ = check_memory(source, plan, options, resident_memory_bytes() + kept,
                                    available_memory_bytes() - kept)
                           .total();
    note("memory: about ", format_bytes(predicted_bytes_), " at the peak");
  }
  const int64_t most = std::max<int64_t>(1, kMaxHeldOutTokens / options.data.sequence_length);
  for (const std::vector<int64_t>& rows :
       in_pieces(held_out_sequences(data_.held_out, options.seed, most), sequences_together()))
    held_out_.push_back(data_.held_out.at(rows));
  held_out_answers_.resize(held_out_.size());
  if (distils && !has_teacher) {
    const int64_t draws = num_steps_ * options.batch_tokens / options.data.sequence_length;
    teacher_cache_ = std::make_unique<TeacherCache>(
        source, options,
        TeacherQuestions{&data_, sequences_of_draws(options.seed, draws, data_.train), &held_out_},
        run_dir_);
    predicted_bytes_ = std::max(predicted_bytes_, teacher_cache_->asked_bytes());
    for (size_t i = 0; i < held_out_.size(); ++i)
      held_out_answers_[i] = teacher_cache_->held_out(i);
  }
  const torch::Device device = torch_device(options.device);
  const bool calibrates = fresh && options.quant.type != "none" &&
                          is_calibrated(options.quant.initial) && options.quant.scales != "dynamic";
  // Where codes are stored, the source's weights are wanted one by one, but by a calibration.
  const bool stores = options.quant.weights == "scales";
  std::unique_ptr<Model> model = load_model(source, device, {.on_use = stores && !calibrates});
  StartingPoints start;
  if (has_teacher && !options.teacher.empty())
    teacher_ = with_frame("teacher", [&] {
      return load_teacher(options.teacher, source, device, options.stream_teacher);
    });
  else if (has_teacher && (stores || options.stream_teacher))
    teacher_ = load_model(source, device, {.on_use = options.stream_teacher});
  else if (has_teacher)
    teacher_ = std::move(model);
  if (!options.quant.init_file.empty())
    model = load_stored(options.quant.init_file, start);
  else if (!model)
    model = copy_model(*teacher_);
  model->set_activation_checkpointing(options.activation_checkpointing);
  QuantOptions quant = options.quant;
  if (!fresh)
    quant.initial = "rtn";  // the checkpoint's takes its place: the quickest will do
  else if (calibrates)
    start = starting_points(quant.initial, *model, plan,
                            calibration_batches(data_.train, quant.calibration_tokens, options.seed,
                                                calibration_batch_tokens(quant.initial)));
  create_folders(run_dir_ + "/checkpoints");
  if (fresh && quant.type != "none" && options.blockwise.tokens > 0)
    start = blockwise_start(source, plan, options,
                            calibration_batches(data_.train, options.blockwise.tokens, options.seed,
                                                options.blockwise.batch_tokens),
                            start, *model, run_dir_);
  student_ = std::make_unique<Student>(std::move(model), &plan, quant, start);
  if (!student_->trains()) fail_usage("quant.frozen leaves nothing that trains");
  learner_ = std::make_unique<Learner>(*student_, teacher_.get(), options);

  if (fresh && quant.type != "none")
    write_model_file(run_start_path(run_dir_), source, plan, student_->tensors());
  if (fresh && teacher_cache_) teacher_cache_->say_cost(*student_, source, options);
}

/// What the teacher's states of all training sequences take, or 0 where they are not to be kept:
/// every sequence comes once, they are too large, or a micro-batch holds several sequences. (A
/// teacher that sees a sequence in another company may round otherwise, and a resumed run must have
/// the bits of one that was never stopped.)
int64_t Run::teacher_bytes(const GgufFile& source) const {
  const int64_t tokens = data_.train.tokens.numel();
  if (options_.micro_batch_tokens != options_.data.sequence_length ||
      num_steps_ * options_.batch_tokens <= tokens)
    return 0;
  const torch::Dtype dtype = parse_compute_dtype(options_.dtype, torch_device(options_.device));
  const std::string& other = options_.teacher;
  const int64_t width = other.empty() ? source.tensor(kTokenEmbedding).row_length()
                                      : GgufFile::open(other).tensor(kTokenEmbedding).row_length();
  const int64_t bytes = tokens * width * static_cast<int64_t>(c10::elementSize(dtype));
  return bytes <= kMaxTeacherBytes ? bytes : 0;
}

void Run::go_on_from(const Latest& latest) {
  const Checkpoint& saved = latest.checkpoint;
  student_->restore(saved.tensors);
  learner_->optimizer().restore(saved.moments, saved.step);
  step_ = saved.step;
  tokens_ = saved.tokens;
  earlier_seconds_ = saved.seconds;
  held_out_loss_ = saved.held_out_loss;
  if (saved.best_step >= 0 && is_whole(checkpoint_path(run_dir_, "best"))) {
    best_loss_ = saved.best_held_out_loss;
    best_step_ = saved.best_step;
    for (const StepMetrics& m : read_metrics(run_dir_))
      evaluations_since_best_ += m.step > best_step_ && m.step <= step_ && m.held_out_loss >= 0;
  }
  continued_ = true;
  last_is_whole_ = latest.last_is_whole;
}

StepResult Run::learn_from(const std::vector<int64_t>& rows, double rate_factor) {
  std::vector<Batch> batches;
  std::vector<torch::Tensor> answers;
  for (const std::vector<int64_t>& some : in_pieces(rows, sequences_together())) {
    batches.push_back(data_.train.at(some));
    if (teacher_cache_) answers.push_back(teacher_cache_->records(some));
  }
  if (teacher_hidden_.empty())
    return learner_->step(batches, rate_factor, teacher_cache_ ? &answers : nullptr);
  for (const int64_t row : rows) answers.push_back(teacher_hidden_[row]);
  const StepResult result = learner_->step(batches, rate_factor, &answers);
  for (size_t i = 0; i < rows.size(); ++i) teacher_hidden_[rows[i]] = answers[i];
  return result;
}

StepMetrics Run::take_step() {
  const double begun = seconds();
  const int64_t sequences = options_.batch_tokens / options_.data.sequence_length;
  const std::vector<int64_t> rows = step_sequences(options_.seed, step_, sequences, data_.train);
  const double factor = learning_rate_factor(
      run_progress(tokens_ + options_.batch_tokens, num_steps_ * options_.batch_tokens,
                   begun + step_seconds_, options_.max_minutes),
      options_.optimizer);
  std::string batch;
  for (int64_t row : rows) batch += (batch.empty() ? "" : ", ") + std::to_string(row);
  const StepResult step = with_frame(concat("step ", step_ + 1, ", batch of sequences ", batch),
                                     [&] { return learn_from(rows, factor); });
  ++step_;
  tokens_ += options_.batch_tokens;
  step_seconds_ = seconds() - begun;

  StepMetrics metrics;
  metrics.step = step_;
  metrics.tokens = tokens_;
  metrics.loss = step.loss;
  metrics.kl = step.sums.mean_kl();
  metrics.ce = step.sums.mean_ce();
  metrics.load_balance = step.load_balance;
  metrics.unreached = step.num_unreached;
  metrics.learning_rate =
      factor * (options_.quant.weights == "scales" ? options_.optimizer.scale_learning_rate
                                                   : options_.optimizer.learning_rate);
  metrics.grad_norm = step.grad_norm;
  metrics.tokens_per_second = static_cast<double>(options_.batch_tokens) / step_seconds_;
  metrics.seconds = seconds();
  return metrics;
}

void Run::evaluate(StepMetrics& metrics) {
  if (held_out_.empty()) return;
  LossSums sums;
  for (size_t i = 0; i < held_out_.size(); ++i)
    sums += learner_->evaluate(held_out_[i], held_out_answers_[i]);
  metrics.held_out_kl = sums.mean_kl();
  metrics.held_out_ce = sums.mean_ce();
  metrics.held_out_loss = held_out_loss_ = learner_->mean_loss(sums);
  if (step_ == 0) return;
  ++evaluations_since_best_;
  if (best_step_ < 0 || held_out_loss_ < best_loss_) {
    evaluations_since_best_ = 0;
    best_loss_ = held_out_loss_;
    best_step_ = step_;
    save_best();
  }
}

Checkpoint Run::state() const {
  Checkpoint checkpoint;
  checkpoint.step = step_;
  checkpoint.tokens = tokens_;
  checkpoint.seed = options_.seed;
  checkpoint.seconds = seconds();
  checkpoint.held_out_loss = held_out_loss_;
  checkpoint.best_held_out_loss = best_loss_;
  checkpoint.best_step = best_step_;
  checkpoint.plan = plan_;
  checkpoint.options_json = options_json(options_);
  checkpoint.tensors = student_->tensors();
  return checkpoint;
}

void Run::save_best() {
  save_checkpoint(checkpoint_path(run_dir_, "best"), state());
  if (!continued_) prune(run_dir_, {"last", "previous"});
  continued_ = true;
}

void Run::save_last() {
  metrics_file_->sync();
  Checkpoint checkpoint = state();
  checkpoint.moments = learner_->optimizer().moments();
  const bool keep = continued_ && last_is_whole_;
  save_checkpoint(checkpoint_path(run_dir_, "last"), checkpoint,
                  keep ? checkpoint_path(run_dir_, "previous") : "");
  if (!continued_) prune(run_dir_, {"best", "previous"});
  continued_ = last_is_whole_ = true;
}

void Run::report(const StepMetrics& metrics) {
  metrics_file_->append(metrics_line(metrics));
  metrics_.push_back(metrics);
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
  const std::string path = metrics_path(run_dir_);
  write_file(path, step_ > 0 ? metrics_until(run_dir_, step_) : "");
  metrics_file_.emplace(path);
  start_ = std::chrono::steady_clock::now();
  give_back_freed_memory();  // what reading and calibrating took
  if (step_ == 0) {
    StepMetrics at_start;
    evaluate(at_start);
    if (at_start.held_out_loss >= 0) report(at_start);
  }
  const bool timed = options_.max_minutes > 0;
  Progress bar("training", timed ? static_cast<int64_t>(60 * options_.max_minutes) : num_steps_,
               timed ? "seconds" : "steps");
  const StopRequest stop(kStopNotice);
  bool over = step_ >= num_steps_ || progress() >= 1, stopping = false;
  while (!over && !stopping) {
    StepMetrics metrics = take_step();
    over = step_ == num_steps_ || progress() >= 1;
    if (over || due(options_.evaluate_every)) evaluate(metrics);
    over |= stops_early();
    report(metrics);
    show(bar, metrics);
    stopping = stop.requested();
    if (!over && (stopping || due(options_.checkpoint_every))) save_last();
  }
  bar.finish();
  if (stops_early() && step_ < num_steps_)
    note("stopped early, at step ", step_, ": no lower held-out loss in ", evaluations_since_best_,
         " evaluations");
  const Checkpoint end = state();
  if (over) save_checkpoint(checkpoint_path(run_dir_, "last"), end);
  TrainResult result = over ? finish(end, run_dir_) : result_of(end, run_dir_);
  result.metrics = std::move(metrics_);
  result.complete = over;
  result.stopped = stop.requested();
  result.predicted_bytes = predicted_bytes_;
  return result;
}

}  // namespace

TrainResult train(const GgufFile& source, const Plan& plan, const TrainOptions& options,
                  const std::string& run_dir, bool resume) {
  check_options(options);
  keep_freed_memory();
  if (!resume) warn_of_unfinished(run_dir);
  std::optional<Latest> latest = resume ? load_latest(run_dir) : std::nullopt;
  if (latest) {
    const Checkpoint& saved = latest->checkpoint;
    check(saved.options_json == options_json(options) && saved.plan.to_json() == plan.to_json(),
          checkpoint_path(run_dir, latest->last_is_whole ? "last" : "previous"),
          ": was made with other options or another plan; train without --resume, or in a new "
          "folder");
    if (saved.moments.empty()) return finish(saved, run_dir);
  }
  Run run(source, plan, options, run_dir, /*fresh=*/!latest);
  if (latest) run.go_on_from(*latest);
  latest.reset();
  return run.train();
}

}  // namespace nibble
