// A training run's state in one safetensors file: master weights, scales, how far it got, the plan,
// and for a run that can go on the optimizer's moments. Written aside and renamed; a checksum over
// the whole file tells when a byte of it was damaged since.
//
// There is no state of a sampler or of random numbers: which sequences a step reads is a function
// of seed and step (training/data.h), and nothing else is random.
//
// Layout: per trained tensor NAME (GGUF's) an F32 entry "NAME" with the masters, or a U8 entry
// "NAME:blocks" where codes are stored (its scales are the initial ones),
// "NAME:scale_ratios" and "NAME:initial_scales" where scales exist, what else the way of training
// keeps (quant/fake/master_training.h: "NAME:low_rank_a", ...), and "NAME:moment1",
// "NAME:moment2", "NAME:scale_ratios:moment1", ... when moments are kept. Metadata: nibble.format =
// "2", nibble.state and nibble.tensors as JSON, nibble.plan (plan.json), nibble.options (JSON). The
// last entry is "checksum" (io/safetensors.h); layout "1" had none.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quant/fake/master_training.h"
#include "quant/fake/quantizer.h"
#include "quant/mix/plan.h"

namespace nibble {

struct TrainedTensor {
  std::string name;                            // GGUF's
  GgmlType type = GgmlType::kF32;              // that the plan gives it; kF32: trained as it is
  ScaleMode mode = ScaleMode::kLearned;        // meaningful where the type has scales
  torch::Tensor weights;                       // masters, float32, the Weight's shape; or
  torch::Tensor blocks;                        // stored, uint8, as FakeQuantizer has them
  torch::Tensor scale_ratios, initial_scales;  // float32, or undefined
  std::vector<MasterTraining::Part> training_state;  // empty in a file that only ships
  uint64_t materialized_hash = 0;                    // content_hash of W^ as it was evaluated
};

struct Checkpoint {
  int64_t step = 0, tokens = 0;
  uint64_t seed = 0;
  double seconds = 0;              // of training so far
  double held_out_loss = -1;       // -1: never evaluated
  double best_held_out_loss = -1;  // of the run so far; -1: never evaluated
  int64_t best_step = -1;
  Plan plan;
  std::string options_json;            // the TrainOptions, one JSON object
  std::vector<TrainedTensor> tensors;  // in the model's order
  /// Adam's moments by entry name ("blk.0.attn_q.weight:moment1"); empty in a file that only ships.
  std::map<std::string, torch::Tensor> moments;

  /// nullptr when the run did not train that tensor.
  const TrainedTensor* find(const std::string& name) const;
  /// Whether only scales were trained.
  bool has_stored_codes() const;
};

/// The state of a trained tensor as a quantizer, for materialize() and blocks(). Throws for a
/// tensor of type F32 without blocks.
FakeQuantizer restore_quantizer(const TrainedTensor& tensor);

/// Writes aside and renames. keep_old_as: the path that an old file of this name is renamed to when
/// the new one is on disk; "": it is replaced. Throws with path and the system's reason.
void save_checkpoint(const std::string& path, const Checkpoint& checkpoint,
                     const std::string& keep_old_as = "");
/// Tensors are read-only views of the mapped file, which lives as long as they do: a checkpoint
/// takes no memory beside the system's cache. (The file may be replaced or removed, not written
/// into.) Throws, naming the file, for one that nibble did not write, of a later layout, or in
/// which any byte was changed.
Checkpoint load_checkpoint(const std::string& path);

}  // namespace nibble
