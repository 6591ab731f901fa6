// Post-training quantization of a whole file: source, plans and method in, a GGUF file for each
// plan out, tensor by tensor.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"
#include "quant/format/device.h"
#include "quant/format/registry.h"
#include "quant/mix/imatrix.h"
#include "quant/mix/plan.h"

namespace nibble {

struct QuantizeStats {
  int64_t num_tensors = 0;
  int64_t num_converted = 0;  // tensors whose type changed; the others were copied
  int64_t num_weights = 0;
  int64_t source_bytes = 0;  // of tensor data
  int64_t bytes = 0;         // of tensor data written
  double seconds = 0;        // of the pass, whatever other files it made
  double bits_per_weight() const { return num_weights ? 8.0 * bytes / num_weights : 0.0; }
};

/// "ggml", "rtn", "search".
std::string_view method_name(EncodeMethod method);
/// Throws Error (usage) for another name.
EncodeMethod method_named(std::string_view name);

/// Throws Error, naming the tensor, for a type that the plan gives or takes it from and that has no
/// codec.
void check_encodable(const Plan& plan);

/// The source's metadata with what llama-quantize changes in it (general.quantization_version,
/// general.file_type and plan.metadata set, split.* dropped, quantize.imatrix.* added), and
/// nibble.version and nibble.method after it. Other nibble.* keys told of the source file and are
/// dropped.
GgufMetadata quantized_metadata(const GgufMetadata& source, const Plan& plan, EncodeMethod method,
                                const Imatrix* imatrix = nullptr);

/// The files that quantize_file() writes: `out_path`, or, where the plan keeps the source's parts,
/// one for each, named after it as llama-quantize does: "a.gguf" -> "a-00001-of-00002.gguf", ...
std::vector<std::string> quantized_paths(const GgufFile& source, const Plan& plan,
                                         const std::string& out_path);

/// Tensors whose numbers were chosen elsewhere, by what an encoder does not see.
struct Prepared {
  std::string method;  // nibble.method
  /// A tensor's bytes in the plan's type; nothing for one that is to be encoded from the source.
  std::function<std::optional<std::vector<std::byte>>(const PlanEntry& entry)> bytes_of;
};

/// What to write, and where.
struct QuantizeOutput {
  Plan plan;
  std::string path;
  const Prepared* prepared = nullptr;  // or tensors that need no encoding
};

/// Throws Error, before anything is written: a tensor that a plan and the source do not agree on, a
/// type without a codec, an imatrix that does not fit.
void check_quantizable(const GgufFile& source, std::span<const QuantizeOutput> outputs,
                       const Imatrix* imatrix = nullptr);

/// Writes each of quantized_paths() whole or not at all, tensors in the source's order, a bounded
/// number of rows in memory. Shows a progress bar. Throws Error: what check_quantizable() throws, a
/// NaN or infinity (tensor, row, column), a full disk. device: what encodes; the bytes are the
/// same. imatrix: what weighs the errors of the tensors that it has; the plan must know of it.
QuantizeStats quantize_file(const GgufFile& source, const Plan& plan, EncodeMethod method,
                            const std::string& out_path, const Device& device = {},
                            const Imatrix* imatrix = nullptr, const Prepared* prepared = nullptr);

/// All outputs in one pass, each to the bytes that it alone would have: rows are read and decoded
/// once, and encoded once for all outputs that give them one type. The files get their names when
/// all are whole and on the disk. Stats in the order of the outputs.
std::vector<QuantizeStats> quantize_files(const GgufFile& source,
                                          std::span<const QuantizeOutput> outputs,
                                          EncodeMethod method, const Device& device = {},
                                          const Imatrix* imatrix = nullptr);

}  // namespace nibble
