#include "training/teacher_cache.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "quant/fake/torch_device.h"
#include "training/learner.h"
#include "training/memory.h"
#include "training/memory_estimate.h"
#include "training/teacher.h"

namespace nibble {
namespace {

constexpr const char* kSequences = "sequences";
constexpr const char* kRecords = "records";
constexpr const char* kHeldOut = "held_out";
constexpr const char* kStates = "held_out_states";
constexpr int64_t kFloatBytes = sizeof(float);
constexpr const char* kLayoutKey = "nibble.teacher_cache";

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

/// Of all bytes; of a file in several parts, of the first and of all tensors.
uint64_t file_hash(const GgufFile& file) {
  Checksum checksum;
  const MappedFile first(file.path());
  checksum.update(first.bytes());
  if (file.file_bytes() == static_cast<int64_t>(first.bytes().size())) return checksum.value();
  for (const GgufTensor& tensor : file.tensors()) {
    checksum.update(tensor.data);
    file.release(tensor);
  }
  return checksum.value();
}

uint64_t text_hash(const TeacherQuestions& questions) {
  Checksum checksum;
  checksum.update(std::as_bytes(std::span(&questions.data->fingerprint, 1)));
  for (const Batch& batch : *questions.held_out)  // of a mixture its choice follows the seed
    checksum.update({static_cast<const std::byte*>(batch.tokens.const_data_ptr()),
                     static_cast<size_t>(batch.tokens.nbytes())});
  return checksum.value();
}

/// The first way in which a file is not what is wanted, or "".
std::string difference(const std::map<std::string, std::string>& found,
                       const std::map<std::string, std::string>& wanted) {
  for (const auto& [key, value] : wanted) {
    const auto there = found.find(key);
    if (there == found.end()) return "is no teacher cache: no metadata '" + key + "'";
    if (there->second != value)
      return concat("is of ", key, ' ', there->second, ", wanted ", value);
  }
  return "";
}

void check_shape(const SafetensorsEntry& entry, const std::string& dtype,
                 const std::vector<int64_t>& shape) {
  check(entry.dtype == dtype && entry.shape == shape, "entry '", entry.name, "' is ", entry.dtype,
        " of ", entry.data.size(), " bytes, wanted ", dtype, " of another shape");
}

std::span<const std::byte> bytes_of(const torch::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()),
          static_cast<size_t>(tensor.nbytes())};
}

/// The teacher's file: the source's own where options name none.
class TeacherFile {
 public:
  TeacherFile(const GgufFile& source, const TrainOptions& options) : file_(&source) {
    if (options.teacher.empty()) return;
    with_frame("teacher", [&] { check_teacher(options.teacher, source); });
    file_ = &other_.emplace(GgufFile::open(options.teacher));
  }
  const GgufFile& operator*() const { return *file_; }
  std::unique_ptr<Model> load(const TrainOptions& options, const ModelPart& part = {}) const {
    const torch::Device device = torch_device(options.device);
    std::unique_ptr<Model> teacher = load_model(*file_, device, part);
    teacher->set_compute_dtype(parse_compute_dtype(options.dtype, device));
    teacher->keep_matrices_cast();
    return teacher;
  }

 private:
  const GgufFile* file_;
  std::optional<GgufFile> other_;
};

/// States and records of all positions of a batch.
struct Answer {
  torch::Tensor states, records;
};

Answer ask(Model& teacher, const Batch& batch, const TopKRecords& layout, int64_t chunk) {
  const torch::NoGradGuard no_grad;
  Answer answer;
  answer.states = teacher.hidden(batch).flatten(0, 1).to(teacher.compute_dtype());
  std::vector<torch::Tensor> pieces;
  for (const torch::Tensor& states : answer.states.split(chunk))
    pieces.push_back(layout.encode(teacher.logits_of(states).cpu()));
  answer.records = at::cat(pieces);
  return answer;
}

}  // namespace

TeacherCache::TeacherCache(const GgufFile& source, const TrainOptions& options,
                           const TeacherQuestions& questions, const std::string& run_dir)
    : questions_(questions),
      layout_(options.loss.teacher_top_k, model_shape(source).vocab_size),
      path_(options.loss.teacher_cache.empty() ? run_dir + "/teacher_cache.safetensors"
                                               : options.loss.teacher_cache) {
  const TeacherFile teacher(source, options);
  const torch::Dtype dtype = parse_compute_dtype(options.dtype, torch_device(options.device));
  const ModelShape shape = model_shape(*teacher);
  check(shape.vocab_size == model_shape(source).vocab_size, "the teacher has ", shape.vocab_size,
        " logits, the model ", model_shape(source).vocab_size);
  const Identity identity = {{kLayoutKey, "1"},
                             {"teacher", hex(file_hash(*teacher))},
                             {"text", hex(text_hash(questions))},
                             {"teacher_top_k", std::to_string(options.loss.teacher_top_k)},
                             {"dtype", dtype == torch::kFloat32 ? "float32" : "bfloat16"}};
  const int64_t length = questions.data->train.sequence_length();
  const int64_t tokens =
      static_cast<int64_t>(questions.sequences.size()) * length + held_out_positions();
  const int64_t text = questions.data->train.tokens.numel() + held_out_positions();
  const bool there = open_old(identity, !options.loss.teacher_cache.empty());
  note("teacher cache ", path_, ": the ", options.loss.teacher_top_k, " likeliest of ",
       shape.vocab_size, " tokens, ", layout_.bytes(),
       " bytes a position: ", format_bytes(tokens * layout_.bytes()), " for the ", tokens,
       " that are read, which ", there ? "are there" : "the teacher is asked for", "; ",
       format_bytes(text * layout_.bytes()), " for the whole text");
  if (there) return;
  asked_bytes_ = resident_memory_bytes() + asking_bytes(*teacher, options);
  const int64_t limit = resident_memory_bytes() + available_memory_bytes();
  check(options.device.cuda || asked_bytes_ <= limit, "asking the teacher needs about ",
        format_bytes(asked_bytes_), " of memory, and there is ", format_bytes(limit), ": ",
        options.stream_teacher ? "" : "set stream_teacher: true, ",
        "make the teacher cache on a machine with more, or take a smaller teacher");
  make(teacher.load(options, {.on_use = options.stream_teacher}), options, identity);
  give_back_freed_memory();
  open(identity);
}

bool TeacherCache::open_old(const Identity& identity, bool named) {
  if (!std::filesystem::exists(path_)) return false;
  try {
    open(identity);
    return true;
  } catch (const Error& error) {
    if (named) fail("loss.teacher_cache: ", error.what(), "; remove the file or name another");
    note(error.what(), "; the teacher is asked anew");
    return false;
  }
}

int64_t TeacherCache::held_out_positions() const {
  int64_t positions = 0;
  for (const Batch& batch : *questions_.held_out) positions += batch.tokens.numel();
  return positions;
}

void TeacherCache::open(const Identity& identity) {
  file_ = SafetensorsFile::open(path_);
  with_frame(path_, [&] {
    const std::string differs = difference(file_->metadata(), identity);
    check(differs.empty(), differs);
  });
  file_->verify_checksum();
  with_frame(path_, [&] {
    const SafetensorsEntry& rows = file_->entry(kSequences);
    const auto count = static_cast<int64_t>(rows.data.size() / sizeof(int64_t));
    check_shape(rows, "I64", {count});
    sequences_.resize(count);
    std::memcpy(sequences_.data(), rows.data.data(), rows.data.size());
    check(std::is_sorted(sequences_.begin(), sequences_.end(), std::less_equal<>()),
          "its sequences do not ascend");
    int64_t missing = 0;
    for (const int64_t row : questions_.sequences)
      missing += !std::binary_search(sequences_.begin(), sequences_.end(), row);
    check(missing == 0, "has not ", missing, " of the ", questions_.sequences.size(),
          " sequences that are read");
    const int64_t length = questions_.data->train.sequence_length();
    check_shape(file_->entry(kRecords), "U8", {count * length, layout_.bytes()});
    check_shape(file_->entry(kHeldOut), "U8", {held_out_positions(), layout_.bytes()});
  });
  for (const SafetensorsEntry& entry : file_->entries()) file_->release(entry);
}

void TeacherCache::make(std::unique_ptr<Model> teacher, const TrainOptions& options,
                        const Identity& identity) {
  const PackedData& data = questions_.data->train;
  const int64_t length = data.sequence_length();
  const auto together = options.micro_batch_tokens / length;
  const auto count = static_cast<int64_t>(questions_.sequences.size());
  const std::vector<Batch>& held_out = *questions_.held_out;
  Progress bar("asking the teacher", count, "sequences");
  const auto ask_about = [&](const Batch& batch) {
    return ask(*teacher, batch, layout_, options.loss.chunk_positions);
  };

  int64_t measured = 0;
  std::vector<torch::Tensor> states, records;
  for (const Batch& batch : held_out) {
    Answer answer = ask_about(batch);
    if (measured < kMaxMeasured) {
      states.push_back(answer.states.to(torch::kFloat32).cpu());
      measured += answer.states.size(0);
    }
    records.push_back(answer.records);
  }
  const torch::Tensor none = torch::empty({0, 1});
  const torch::Tensor kept = states.empty() ? none : at::cat(states);
  const std::vector<SafetensorsEntry> entries = {
      {kSequences, "I64", {count}, {}},
      {kStates, "F32", kept.sizes().vec(), {}},
      {kHeldOut, "U8", {held_out_positions(), layout_.bytes()}, {}},
      {kRecords, "U8", {count * length, layout_.bytes()}, {}}};
  const auto write_records = [&](const SafetensorsSink& sink) {
    int64_t done = 0;
    for (const std::vector<int64_t>& rows : in_pieces(questions_.sequences, together)) {
      sink(bytes_of(ask_about(data.at(rows)).records));
      bar.update(done += static_cast<int64_t>(rows.size()));
    }
  };
  const auto write = [&](const SafetensorsEntry& entry, const SafetensorsSink& sink) {
    if (entry.name == kSequences) return sink(std::as_bytes(std::span(questions_.sequences)));
    if (entry.name == kStates) return sink(bytes_of(kept));
    if (entry.name == kRecords) return write_records(sink);
    for (const torch::Tensor& each : records) sink(bytes_of(each));
  };
  create_folders(folder_of(path_));
  write_safetensors(path_, entries, identity, write, {.checksum = true});
}

torch::Tensor TeacherCache::read(const char* name, const std::vector<int64_t>& firsts,
                                 int64_t positions) const {
  const SafetensorsEntry& entry = file_->entry(name);
  const int64_t bytes = positions * layout_.bytes();
  torch::Tensor records = torch::empty(
      {static_cast<int64_t>(firsts.size()) * positions, layout_.bytes()}, torch::kUInt8);
  auto* to = static_cast<std::byte*>(records.mutable_data_ptr());
  for (const int64_t first : firsts) {
    std::memcpy(to, entry.data.data() + first * layout_.bytes(), bytes);
    to += bytes;
  }
  file_->release(entry);  // or all of the file would count as this process's memory
  return records;
}

torch::Tensor TeacherCache::records(const std::vector<int64_t>& rows) const {
  const int64_t length = questions_.data->train.sequence_length();
  std::vector<int64_t> firsts;
  for (const int64_t row : rows) {
    const auto found = std::lower_bound(sequences_.begin(), sequences_.end(), row);
    check(found != sequences_.end() && *found == row, path_, ": has not sequence ", row);
    firsts.push_back((found - sequences_.begin()) * length);
  }
  return read(kRecords, firsts, length);
}

torch::Tensor TeacherCache::held_out(size_t batch) const {
  int64_t first = 0;
  for (size_t i = 0; i < batch; ++i) first += questions_.held_out->at(i).tokens.numel();
  return read(kHeldOut, {first}, questions_.held_out->at(batch).tokens.numel());
}

void TeacherCache::say_cost(Student& student, const GgufFile& source,
                            const TrainOptions& options) const {
  const TopKCost cost = this->cost(student, source, options);
  if (cost.positions == 0) return;
  char text[200];
  std::snprintf(text, sizeof text,
                "%.3g %% of the teacher's probability is beyond them; KL at the start on %lld "
                "held-out positions: %.4g, of which %.2g is not seen",
                100 * cost.beyond, static_cast<long long>(cost.positions), cost.kl,
                std::max(0.0, cost.kl - cost.kl_seen));
  note("top ", options.loss.teacher_top_k, " tokens: ", text);
}

TopKCost TeacherCache::cost(Student& student, const GgufFile& source,
                            const TrainOptions& options) const {
  const SafetensorsEntry& entry = file_->entry(kStates);
  const TeacherFile file(source, options);
  const std::unique_ptr<Model> ends = file.load(options, {0, 0, true});
  const int64_t width = ends->shape().width;
  check(entry.dtype == "F32" && entry.shape.size() == 2 && entry.shape[1] == width, path_,
        ": the teacher's states are not ", width, " wide");
  const torch::Dtype dtype = student.model().compute_dtype();
  ChunkedLoss loss(options.loss.chunk_positions, dtype);
  TopKCost cost;
  LossSums of_all, of_outcomes;
  int64_t first = 0;
  for (size_t i = 0; i < questions_.held_out->size() && first < entry.shape[0]; ++i) {
    const torch::NoGradGuard no_grad;
    const Batch& batch = questions_.held_out->at(i);
    const int64_t positions = batch.tokens.numel();
    check(first + positions <= entry.shape[0], path_, ": the states end within a batch");
    torch::Tensor states = torch::empty({positions, width});
    std::memcpy(states.mutable_data_ptr(), entry.data.data() + first * width * kFloatBytes,
                states.nbytes());
    states = states.to(student.model().device(), dtype);
    const torch::Tensor hidden = student.model().hidden(batch).flatten(0, 1);
    of_all += loss.run(loss_inputs(student.model(), ends.get(), batch, hidden, states), nullptr);
    const LossInputs seen = loss_inputs(student.model(), nullptr, batch, hidden, held_out(i));
    of_outcomes += loss.run(seen, nullptr);
    const auto* record = static_cast<const std::byte*>(seen.teacher_top.const_data_ptr());
    for (int64_t row = 0; row < seen.teacher_top.size(0); ++row, record += layout_.bytes())
      cost.beyond += std::exp(layout_.decode(record).others);
    first += positions;
  }
  cost.positions = of_all.kl_positions;
  if (cost.positions > 0) cost.beyond /= static_cast<double>(cost.positions);
  cost.kl = of_all.mean_kl();
  cost.kl_seen = of_outcomes.mean_kl();
  return cost;
}

}  // namespace nibble
