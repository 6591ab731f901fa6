// What a llama, or one of its relatives, is apart from its weights: sizes, norms, rotary positions
// and windows, out of a GGUF file's keys <architecture>.*.
#pragma once

#include <cstdint>
#include <string>

#include "io/gguf.h"
#include "model/llama_tensors.h"
#include "model/model.h"
#include "model/rope.h"

namespace nibble {

struct LlamaOptions {
  ModelShape shape;
  /// That predict further tokens: blocks of the file after the model's, which has no part in them.
  int64_t mtp_layers = 0;
  int64_t first_block = 0;  // of a model that has some of them: shape.num_layers from here on
  int64_t num_heads = 0, num_kv_heads = 0, head_size = 0, feed_forward = 0;
  /// Of a mixture: experts that a position goes through, and how wide each of them is.
  int64_t experts_used = 0, expert_feed_forward = 0;
  int64_t shared_feed_forward = 0;  // of the expert that every position goes through
  double norm_epsilon = 0;
  RopeOptions rope;
  /// Of documents of more than that many positions, where the model has a rotation of their own; 0:
  /// it has none.
  int64_t long_from = 0;
  RopeOptions long_rope;
  /// Positions that layers with a window attend to, 0: there are none; their rotation.
  int64_t window = 0;
  RopeOptions window_rope;
  DeltaNetSizes delta;
  double attention_scale = 0, attention_cap = 0;  // as AttentionRule has them
  /// What embeddings, what each half of a block adds, and the last norm's result are multiplied by.
  double embedding_scale = 1, residual_scale = 1, output_scale = 1;
  LlamaArchitecture architecture = {};

  /// Of block `block`, counted from the model's first: whether its heads are turned, and whether it
  /// has a window.
  bool turns(int64_t block) const {
    const int64_t period = architecture.unturned_period;
    return period == 0 || block % period < period - 1;
  }
  bool has_window(int64_t block) const {
    return window > 0 && block % architecture.window_period < architecture.window_period - 1;
  }
};

/// From the keys <architecture>.*. Throws for an architecture that llama_architectures() lacks, and
/// for a missing or impossible key, naming it.
LlamaOptions read_llama_options(const GgufFile& file);
/// The keys from which read_llama_options() reads `options` again, general.architecture with them.
/// Of rope, dimensions and base only: a new model scales nothing.
GgufMetadata llama_metadata(const LlamaOptions& options);
}  // namespace nibble
