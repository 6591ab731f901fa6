#include "export/verify.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checksum.h"
#include "base/error.h"
#include "base/progress.h"
#include "export/parity.h"
#include "quant/format/rows.h"

namespace nibble {
namespace {

constexpr const char* kHashesKey = "nibble.tensor_hashes";

// Empty for a file that has none.
std::vector<uint64_t> stored_hashes(const GgufFile& file) {
  const GgufValue* value = file.metadata().find(kHashesKey);
  if (value == nullptr) return {};
  const auto* array = std::get_if<GgufArray>(value);
  const auto* hashes =
      array == nullptr ? nullptr : std::get_if<std::vector<uint64_t>>(&array->values);
  check(hashes != nullptr, kHashesKey, " is not an array of u64");
  check(hashes->size() == file.tensors().size(), kHashesKey, " has ", hashes->size(),
        " elements, the file has ", file.tensors().size(), " tensors");
  return *hashes;
}

void compare_with_checkpoint(const std::vector<float>& wanted, std::span<const float> found,
                             int64_t row_length, TensorVerification& result) {
  result.checkpoint = VerifyOutcome::kDifferent;
  if (wanted.size() != found.size()) {
    result.problem = concat("has ", found.size(), " weights, the checkpoint has ", wanted.size());
  } else if (const auto difference = first_difference(wanted, found, row_length)) {
    result.problem = "differs from the checkpoint: " + difference->text();
  } else {
    result.checkpoint = VerifyOutcome::kEqual;
  }
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The bits of a NaN are the processor's own; that it is one is not.
std::vector<float> with_one_nan(std::vector<float> weights) {
  for (float& weight : weights)
    if (std::isnan(weight)) weight = std::numeric_limits<float>::quiet_NaN();
  return weights;
}

void compare_with_gpu(const GgufTensor& tensor, const TensorDecoder& on_gpu,
                      const std::vector<float>& weights, TensorVerification& result) {
  std::vector<float> found(weights.size());
  on_gpu(tensor.type, tensor.data, found);
  const auto difference =
      first_difference(with_one_nan(weights), with_one_nan(std::move(found)), tensor.row_length());
  result.gpu = difference ? VerifyOutcome::kDifferent : VerifyOutcome::kEqual;
  if (difference) result.problem = "the GPU decodes it differently: " + difference->text();
}

TensorVerification verify_tensor(const GgufTensor& tensor, const uint64_t* hash,
                                 const TrainedWeights* trained, const TensorDecoder& on_gpu) {
  TensorVerification result;
  result.name = tensor.name;
  result.type = tensor.type;
  result.num_weights = tensor.num_weights();
  std::vector<float> weights(result.num_weights);
  decode_tensor(tensor.type, tensor.data, weights);
  // From the least to the most telling: the last problem found is the one that is kept.
  if (on_gpu) compare_with_gpu(tensor, on_gpu, weights, result);
  if (hash != nullptr) {
    result.hash =
        content_hash(weights) == *hash ? VerifyOutcome::kEqual : VerifyOutcome::kDifferent;
    if (result.hash == VerifyOutcome::kDifferent)
      result.problem = "was changed since it was exported: its weights have another hash";
  }
  if (trained != nullptr)
    compare_with_checkpoint(trained->weights_of(tensor.name), weights, tensor.row_length(), result);
  if (const auto at = first_not_finite(weights)) {
    result.finite = false;
    result.problem = concat("row ", *at / tensor.row_length(), ", column ",
                            *at % tensor.row_length(), " is ", weights[*at]);
  }
  return result;
}

}  // namespace

bool Verification::passed() const {
  return missing.empty() && std::all_of(tensors.begin(), tensors.end(),
                                        [](const auto& tensor) { return tensor.passed(); });
}

Verification verify(const GgufFile& file, const TrainedWeights* against,
                    const TensorDecoder& on_gpu) {
  return with_frame(file.path(), [&] {
    const std::vector<uint64_t> hashes = stored_hashes(file);
    Verification result;
    const auto count = static_cast<int64_t>(file.tensors().size());
    Progress progress("verify", count, "tensors");
    for (int64_t i = 0; i < count; ++i) {
      const GgufTensor& tensor = file.tensors()[i];
      const bool was_trained = against != nullptr && contains(against->names, tensor.name);
      const TrainedWeights* trained = was_trained ? against : nullptr;
      const uint64_t* hash = hashes.empty() ? nullptr : &hashes[i];
      result.tensors.push_back(with_frame(concat("tensor '", tensor.name, "'"), [&] {
        return verify_tensor(tensor, hash, trained, on_gpu);
      }));
      result.weights += tensor.num_weights();
      if (hash != nullptr) result.weights_hashed += tensor.num_weights();
      if (trained != nullptr) result.weights_compared += tensor.num_weights();
      if (on_gpu) result.weights_on_gpu += tensor.num_weights();
      progress.update(i + 1);
    }
    if (against != nullptr)
      for (const std::string& name : against->names)
        if (file.find_tensor(name) == nullptr) result.missing.push_back(name);
    return result;
  });
}

}  // namespace nibble
