// From a trained checkpoint to the GGUF file that ships. Codes and scales are derived, never
// searched for again: every tensor's blocks are decoded and compared, weight by weight and with the
// hash that was stored when the checkpoint was evaluated, before the file gets its name. What the
// run did not train is carried over with its values unchanged, but for layers that predict further
// tokens, which no run trains: they are rounded as nibble quantize rounds.
//
// Metadata: the source's, tokenizer included, with general.file_type, general.quantization_version
// and these of nibble's own:
//   nibble.version, nibble.method, nibble.config_hash, nibble.step
//   nibble.source_hash     SHA-256 of the source file (the first part of a split one), as sha256sum
//   prints it nibble.tensor_hashes   u64 each, in file order: content_hash of the decoded weights
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "export/verify.h"
#include "io/gguf.h"
#include "quant/mix/plan.h"
#include "training/checkpoint.h"

namespace nibble {

struct ExportInfo {
  std::string method = "qat";
  std::string config_hash;     // SHA-256 of the resolved configuration; "": no such key
  int64_t max_part_bytes = 0;  // of tensor data in one file; 0: there is one
};

struct ExportStats {
  std::vector<std::string> paths;            // that were written
  int64_t num_tensors = 0, num_trained = 0;  // of them, from the checkpoint
  int64_t weights_checked = 0;               // compared bit for bit
  int64_t tensor_bytes = 0, file_bytes = 0;
  double bits_per_weight = 0;  // tensor bytes over all weights
  double seconds = 0;
};

/// Writes `out_path`, or its parts, aside and renames when every tensor has passed. Holds one
/// tensor's blocks and weights at a time beside the checkpoint. Throws Error, and leaves an old
/// file as it was, for a tensor whose blocks do not decode to its W^ or whose W^ has not the stored
/// hash (tensor, row, column, wanted, found), for one that plan, checkpoint and source do not agree
/// on, and for one that the plan quantizes but the run did not train, unless nothing is lost by it
/// or it predicts further tokens.
ExportStats export_checkpoint(const GgufFile& source, const Plan& plan,
                              const Checkpoint& checkpoint, const std::string& out_path,
                              const ExportInfo& info);
/// The same from a file; errors name it.
ExportStats export_checkpoint(const GgufFile& source, const Plan& plan,
                              const std::string& checkpoint_path, const std::string& out_path,
                              const ExportInfo& info);

/// W^ of a trained tensor, float32, in the shape of its masters or of what its blocks hold.
torch::Tensor materialized(const TrainedTensor& tensor);
/// The W^ of all that a checkpoint, which must outlive it, trained: for verify().
TrainedWeights trained_weights(const Checkpoint& checkpoint);

/// A float32 CPU tensor's values, in order.
std::span<const float> values_of(const torch::Tensor& tensor);

}  // namespace nibble
