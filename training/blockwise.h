// Block-wise reconstruction: each transformer block in turn is trained on its grid to give what the
// unquantized block gives. Its inputs are what the quantized blocks before it make, its targets
// what the unquantized ones make of theirs; the two are kept apart (sources: Li et al. 2021,
// "BRECQ", arXiv:2102.05426; Chen et al. 2024, "EfficientQAT", arXiv:2407.11062, its Block-AP).
//
// One block with its training state is in memory at a time, and the states of one batch; those of
// all batches lie in a scratch file. The loss is the squared error of each position over the
// squared norm of its target, which is what the norm behind the block sees.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/progress.h"
#include "io/gguf.h"
#include "io/scratch_file.h"
#include "model/model.h"
#include "quant/mix/plan.h"
#include "training/checkpoint.h"
#include "training/starting_point.h"
#include "training/student.h"
#include "training/trainer.h"

namespace nibble {

struct TrainedBlock {
  std::vector<TrainedTensor> tensors;
  double error_before = 0, error_after = 0;  // mean loss, where it started and now
};

class Blockwise {
 public:
  /// options: of it quant, optimizer (but for its rates), blockwise and dtype count. batches: at
  /// least one, of blockwise.batch_tokens each. start: where tensors start that it has; the others
  /// start where options.quant.initial puts them. started: nullptr, or the model that `start` is
  /// for, where its weights differ from the source's. All but `options` must outlive it.
  /// scratch_folder: takes two states of every position, 2 * width float32 each.
  Blockwise(const GgufFile& source, const Plan& plan, const TrainOptions& options,
            const std::vector<Batch>& batches, const StartingPoints& start, Model* started,
            const std::string& scratch_folder);

  int64_t num_blocks() const { return shape_.num_layers; }
  /// Not trained: the embedding, the output and the norm before it, on their grids.
  std::vector<TrainedTensor> take_ends();
  /// Trains the next block; take_ends() comes before the first. Throws Error naming it when the
  /// loss is not finite.
  TrainedBlock train_block();

 private:
  /// What goes into a block at each position of each batch.
  class States {
   public:
    /// positions: of the largest batch.
    States(const std::string& folder, int64_t positions, int64_t width)
        : file_(folder), positions_(positions), width_(width) {}
    void put(size_t batch, const torch::Tensor& states);
    torch::Tensor get(size_t batch, const Batch& of) const;

   private:
    int64_t offset(size_t batch) const;
    ScratchFile file_;
    int64_t positions_, width_;
  };
  std::unique_ptr<Model> load_part(const ModelPart& part) const;
  /// Quantized, from where it starts.
  std::unique_ptr<Student> student_of(std::unique_ptr<Model> part) const;
  void set_targets(Model& block);
  void train(Student& student);
  /// The mean loss over all batches. pass_on: what the block makes of its inputs then takes their
  /// place, as the next one's.
  double error_of(Model& block, bool pass_on);

  const GgufFile& source_;
  const Plan& plan_;
  TrainOptions options_;
  const std::vector<Batch>& batches_;
  const StartingPoints& start_;
  Model* started_;
  ModelShape shape_;
  int64_t next_ = 0;
  States quantized_, full_;
  Progress progress_;
};

/// All blocks, one after the other: where training goes on from, and in `model`, which `start` is
/// for, the values of what is not quantized. Shows progress.
StartingPoints blockwise_start(const GgufFile& source, const Plan& plan,
                               const TrainOptions& options, const std::vector<Batch>& batches,
                               const StartingPoints& start, Model& model,
                               const std::string& scratch_folder);

}  // namespace nibble
