#include "training/blockwise_file.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "io/atomic_file.h"
#include "quant/mix/rules.h"
#include "training/blockwise.h"
#include "training/model_file.h"

namespace nibble {
namespace {

/// Tensors as they are asked for, trained when the first of their block is.
class OnDemand {
 public:
  explicit OnDemand(Blockwise& stage) : stage_(stage) { keep(stage_.take_ends()); }

  std::optional<std::vector<std::byte>> bytes(const PlanEntry& entry) {
    const std::optional<int64_t> block = layer_of(entry.tensor);
    const int64_t last = std::min(block.value_or(-1), stage_.num_blocks() - 1);
    for (; trained_ <= last; ++trained_) keep(stage_.train_block().tensors);
    auto found = kept_.extract(entry.tensor);
    if (found.empty()) return std::nullopt;  // what no model trains
    return std::move(found.mapped());
  }

 private:
  void keep(const std::vector<TrainedTensor>& tensors) {
    for (const TrainedTensor& tensor : tensors) kept_[tensor.name] = bytes_of(tensor);
  }
  Blockwise& stage_;
  int64_t trained_ = 0;
  std::map<std::string, std::vector<std::byte>> kept_;
};

}  // namespace

QuantizeStats quantize_blockwise(const GgufFile& source, const Plan& plan,
                                 const std::vector<Batch>& batches, const std::string& out_path) {
  TrainOptions options;
  options.dtype = "auto";
  const StartingPoints none;
  Blockwise stage(source, plan, options, batches, none, nullptr, folder_of(out_path));
  OnDemand tensors(stage);
  const Prepared prepared = {"blockwise",
                             [&](const PlanEntry& entry) { return tensors.bytes(entry); }};
  return quantize_file(source, plan, EncodeMethod::kSearch, out_path, {}, nullptr, &prepared);
}

}  // namespace nibble
