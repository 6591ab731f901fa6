#include "export/masters.h"

#include <string>

#include "base/error.h"
#include "quant/fake/quantizer.h"

namespace nibble {
namespace {

TrainedTensor master_of(const TrainedTensor& trained) {
  check(!trained.blocks.defined(), "tensor '", trained.name,
        "': was trained as stored codes (quant.weights: scales), which have no masters");
  TrainedTensor master;
  master.name = trained.name;
  master.weights = trained.weights;
  master.materialized_hash = content_hash(trained.weights);
  return master;
}

}  // namespace

Checkpoint masters_of(const Checkpoint& trained) {
  Checkpoint masters;
  masters.step = trained.step;
  masters.options_json = trained.options_json;
  for (const TrainedTensor& tensor : trained.tensors) masters.tensors.push_back(master_of(tensor));
  masters.plan.type_name = "F32";
  for (PlanEntry entry : trained.plan.entries) {
    entry.target = trained.find(entry.tensor) ? GgmlType::kF32 : entry.source;
    masters.plan.entries.push_back(entry);
  }
  return masters;
}

}  // namespace nibble
