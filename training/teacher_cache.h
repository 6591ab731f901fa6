// What a teacher says of every sequence that a training reads, asked once and kept in a file: of
// each position a record of its K likeliest tokens (top_k_records.h). While the training runs the
// teacher is not in memory, and a later epoch, a resumed run and another run of the same text,
// teacher and K ask nothing.
//
// The file is a safetensors file that ends with a checksum, written aside and renamed. "sequences"
// I64 [S] are the rows of the training data that were asked about, ascending; "records" U8 [S * L,
// bytes] theirs; "held_out" U8 [H, bytes] those of what is held out, and "held_out_states" [M, E]
// the teacher's states at the first M of these, from which its whole predictions come about again:
// what K hides is measured on them. Metadata says what all that is of. It is read as hostile.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/safetensors.h"
#include "training/data.h"
#include "training/student.h"
#include "training/top_k_records.h"
#include "training/trainer.h"

namespace nibble {

/// Held-out positions at most (but for one batch) on which what K hides is measured.
constexpr int64_t kMaxMeasured = 2048;

/// What a training reads.
struct TeacherQuestions {
  const TextData* data = nullptr;
  std::vector<int64_t> sequences;  // of data->train, ascending
  const std::vector<Batch>* held_out = nullptr;
};

/// What is lost by K, on held-out positions.
struct TopKCost {
  int64_t positions = 0;
  double beyond = 0;           // mean probability that the teacher gives the others
  double kl = 0, kl_seen = 0;  // mean KL of the student as it is: over all tokens, of the outcomes
};

class TeacherCache {
 public:
  /// Takes the file (options.loss.teacher_cache, or the run folder's) where it is of these
  /// questions, teacher and settings. Else the teacher is loaded, asked and let go of: what is in
  /// the run folder is replaced, with a note; a file that the options name is refused. Says what
  /// the file takes.
  TeacherCache(const GgufFile& source, const TrainOptions& options,
               const TeacherQuestions& questions, const std::string& run_dir);

  /// Records of training sequences, [rows.size() * L, bytes] uint8. Throws for one that is not
  /// there.
  torch::Tensor records(const std::vector<int64_t>& rows) const;
  /// Of one of the held-out batches.
  torch::Tensor held_out(size_t batch) const;
  /// The process's memory while the teacher was asked, as predicted; 0: the file was there.
  int64_t asked_bytes() const { return asked_bytes_; }

  /// Loads what of the teacher makes logits of states, for as long as this takes.
  TopKCost cost(Student& student, const GgufFile& source, const TrainOptions& options) const;
  /// The same as a note.
  void say_cost(Student& student, const GgufFile& source, const TrainOptions& options) const;

 private:
  using Identity = std::map<std::string, std::string>;
  void open(const Identity& identity);
  /// Whether the file is there and is what is wanted. Refuses one that is not, where it was named.
  bool open_old(const Identity& identity, bool named);
  void make(std::unique_ptr<Model> teacher, const TrainOptions& options, const Identity& identity);
  int64_t held_out_positions() const;
  /// Records of so many positions from each of the given ones on.
  torch::Tensor read(const char* entry, const std::vector<int64_t>& firsts,
                     int64_t positions) const;

  TeacherQuestions questions_;
  TopKRecords layout_;
  std::string path_;
  std::optional<SafetensorsFile> file_;
  std::vector<int64_t> sequences_;  // that the file has
  int64_t asked_bytes_ = 0;
};

}  // namespace nibble
