// Every block format nibble can decode, encode and train, or only decode, as one row of functions
// over whole rows of weights. The rows are made from the format headers by a template over
// formats.def; nothing else lists formats.
//
// Scales: a format has kNumScales float parameters per block, in the order of its block (Q4_0: d;
// Q4_1: d, m; K-quants: d, dmin, t_0..., u_0...; NVFP4: d_0...). Training holds them as real
// numbers; snap() gives the nearest that the block can store, and everything after it works with
// snapped values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "io/ggml_type.h"
#include "quant/format/estimator.h"

namespace nibble {

/// How PTQ chooses scales and codes.
enum class EncodeMethod {
  kGgml,    // llama-quantize's own choice, byte for byte
  kRtn,     // scales from the range, codes by rounding to nearest
  kSearch,  // lowest (importance-weighted) squared error found; at most ggml's
};

struct Format {
  GgmlType type;
  std::string_view name;
  int64_t block_size;  // weights
  int64_t block_bytes;
  int num_scales;  // parameters per block; 0 for F32, F16, BF16
  int ftype;       // general.file_type of llama-quantize's plain mix of this type
  /// Scales are bytes (MXFP4: powers of two), one per group of weights, too far apart to train: in
  /// training they follow from the weights in every step.
  bool has_byte_scales;
  /// Levels are consecutive integers times the step; false for codebooks and single weights.
  bool has_even_levels;

  /// Decodes `num_blocks` blocks, bit-equal to ggml's to_float. `blocks` may be unaligned.
  void (*decode)(const std::byte* blocks, float* out, int64_t num_blocks);
  /// PTQ of one row of `length` weights (a multiple of block_size). importance: `length` weights of
  /// the squared error (an imatrix row), or nullptr. The row must hold finite numbers only.
  void (*encode)(const float* weights, const float* importance, std::byte* blocks, int64_t length,
                 EncodeMethod method);
  /// The scales that stored blocks hold: num_scales floats per block.
  void (*scales_of)(const std::byte* blocks, float* scales, int64_t num_blocks);
  /// The nearest scales that blocks can store (sign kept, |d| >= 2^-24 where d trains).
  void (*snap)(const float* scales, float* snapped, int64_t num_blocks);
  /// Codes of nearest value for given snapped scales.
  void (*encode_with)(const float* weights, const float* snapped, std::byte* blocks,
                      int64_t num_blocks);
  /// The training forward, fused: decode(encode_with(weights, snap(scales))), no block stored.
  void (*fake_quantize)(const float* weights, const float* scales, float* out, int64_t num_blocks);
  /// The training backward. grad_out: dL/dW^. Writes dL/dW (straight-through: grad_out in range, 0
  /// where the code was clamped) and dL/dscales (the estimator's, summed over the block).
  /// grad_weights may be grad_out.
  void (*fake_quantize_backward)(const float* weights, const float* scales, const float* grad_out,
                                 float* grad_weights, float* grad_scales, int64_t num_blocks,
                                 Estimator estimator);
  /// Moves weights along with their grid, from one to another of scales: each keeps its place
  /// between levels. Where a group has no step on either side, it moves with the offset alone.
  /// nullptr without scales.
  void (*follow)(float* weights, const float* from, const float* to, int64_t num_blocks);

  /// What the blocks store: the q of each weight (the level, where a codebook gives it).
  void (*codes_of)(const std::byte* blocks, int8_t* codes, int64_t num_blocks);
  /// And the step of each group of group_size weights. Both are nullptr for F32, F16, BF16.
  void (*steps_of)(const std::byte* blocks, float* steps, int64_t num_blocks);
  /// Training where codes stay as they are. Both are nullptr for F32, F16, BF16.
  /// Stores the nearest scales that the blocks can hold.
  void (*set_scales)(const float* scales, std::byte* blocks, int64_t num_blocks);
  /// dL/dscales, rounding passed straight through: q times grad_out, for a min grad_out itself,
  /// summed over the weights of each group; of the blocks only the codes are read.
  void (*scale_gradients)(const std::byte* blocks, const float* scales, const float* grad_out,
                          float* grad_scales, int64_t num_blocks);
  int64_t group_size;  // weights
  /// Of a format that is only decoded: the type to encode instead. Such a format has no scales, and
  /// nullptr for all functions but decode, codes_of and steps_of.
  GgmlType nearest;

  double bits_per_weight() const { return 8.0 * block_bytes / block_size; }
};

/// All formats that nibble encodes, in formats.def order.
std::span<const Format> formats();
/// All that it decodes: formats(), and after them those that are only decoded.
std::span<const Format> decoders();
/// nullptr when nibble does not encode the type.
const Format* find_format(GgmlType type);
const Format* find_format(std::string_view name);  // case-insensitive
/// Throws, naming the type and those that can be had.
const Format& require_format(GgmlType type);
/// The same for types that are to be decoded.
const Format* find_decoder(GgmlType type);
const Format& require_decoder(GgmlType type);
/// "nibble decodes IQ2_S but does not encode it; Q2_K is the nearest type that it encodes" for the
/// name (in any case) of such a format, "" for all other names.
std::string encode_refusal(std::string_view name);

}  // namespace nibble
