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
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "io/gguf.h"
#include "model/model.h"
#include "quant/mix/plan.h"
#include "training/block_states.h"
#include "training/checkpoint.h"
#include "training/starting_point.h"
#include "training/student.h"
#include "training/trainer.h"

namespace nibble {

struct TrainedBlock {
  std::vector<TrainedTensor> tensors;
  double error_before = 0;  // mean loss where it started, of some batches
  double error_after = 0;   // mean loss now
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
  std::unique_ptr<Model> load_part(const ModelPart& part) const;
  /// Quantized, from where it starts.
  std::unique_ptr<Student> student_of(std::unique_ptr<Model> part) const;
  /// Finds what an error in each block's output costs (training/block_fisher.h).
  void keep_metrics(const std::string& scratch_folder);
  void take_metric();
  void set_targets(Model& block);
  /// difference [N, D], by the block's metric.
  torch::Tensor weighed(const torch::Tensor& difference) const;
  void train(Student& student);
  /// The loss of what a block made of a batch.
  double error_of(size_t batch, const torch::Tensor& made) const;
  /// The mean loss of some batches.
  double first_error(Model& block) const;
  /// What the block makes of its inputs takes their place: the next one's. The mean loss of all
  /// batches.
  double pass_on(Model& block);

  const GgufFile& source_;
  const Plan& plan_;
  TrainOptions options_;
  const std::vector<Batch>& batches_;
  const StartingPoints& start_;
  Model* started_;
  ModelShape shape_;
  int64_t next_ = 0;
  BlockStates quantized_, full_;
  std::optional<ScratchFile> metrics_;  // [D, D] of each block; none: the identity of all
  torch::Tensor metric_;                // the block's that trains now
  std::optional<Progress> progress_;
};

/// All blocks, one after the other: where training goes on from, and in `model`, which `start` is
/// for, the values of what is not quantized. Shows progress.
StartingPoints blockwise_start(const GgufFile& source, const Plan& plan,
                               const TrainOptions& options, const std::vector<Batch>& batches,
                               const StartingPoints& start, Model& model,
                               const std::string& scratch_folder);

}  // namespace nibble
