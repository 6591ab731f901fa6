// nibble quantize --method gptq, awq, blockwise: activations are made by LibTorch.
#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "model/tokenizer.h"
#include "recipes/quantize.h"
#include "recipes/recipe.h"
#include "training/calibrate.h"

namespace nibble {
namespace {

constexpr int64_t kSequence = 512;  // tokens, or the model's context where that is shorter
// Sequences are drawn from so much text, of many documents: on the first 16 documents of a text
// GPTQ fits what is theirs alone, and loses to search on another.
constexpr int64_t kTextBytes = 32'000'000;
constexpr uint64_t kSeed = 1;

CalibrationText calibration_text(const QuantizeJob& job) {
  const auto& [text, tokens] = *job.calibration;
  const GgufMetadata& metadata = job.source.metadata();
  const int64_t context = metadata.get_int_or(
      metadata.get_string("general.architecture") + ".context_length", kSequence);
  DataOptions options;
  options.files = {text};
  options.sequence_length = std::min(context, kSequence);
  options.held_out = 0;
  options.max_bytes = kTextBytes;
  const auto tokenizer =
      with_frame(job.source.path(), [&] { return Tokenizer::from_metadata(metadata); });
  PackedData data =
      with_frame("--calibration", [&] { return TextData::load(options, *tokenizer, kSeed).train; });
  if (data.tokens.numel() < tokens)
    note(text, " has ", data.tokens.numel(), " tokens in whole sequences of ",
         options.sequence_length, ", fewer than the ", tokens, " of --calibration-tokens");
  return {std::move(data), tokens, kSeed};
}

}  // namespace

int run_quantize_calibrated(int argc, char** argv) {
  const QuantizeJob job = *quantize_job(argc, argv);
  at::set_num_threads(std::min(at::get_num_threads(), num_threads()));
  check_model(job.source);
  const QuantizeOutput& output = job.outputs.front();
  const QuantizeStats stats =
      quantize_calibrated(job.source, output.plan, job.method, calibration_text(job), output.path);
  print_stats(job.outputs, {&stats, 1}, job.method, job.report);
  return 0;
}

}  // namespace nibble
