#include "quant/mix/importance.h"

#include <algorithm>

#include "base/error.h"
#include "quant/mix/file_type.h"
#include "quant/mix/rules.h"

namespace nibble {
namespace {

// llama-quantize hands strings over in fields of 128 bytes, the last one 0.
constexpr size_t kLongestValue = 127;

bool is_embedding_or_output(std::string_view name) {
  const TensorRole role = role_of(name);
  return role == TensorRole::kTokenEmbedding || role == TensorRole::kOutput;
}

bool has_part(const std::string& name, const std::string& part) {
  return name.find(part) != std::string::npos;
}

/// "0, 3, 7": the experts without a count.
std::string unreached_experts(const ImatrixEntry& entry) {
  std::string experts;
  for (size_t i = 0; i < entry.counts.size(); ++i)
    if (entry.counts[i] == 0) experts += concat(experts.empty() ? "" : ", ", i);
  return experts;
}

const ImatrixEntry* find_entry(const Imatrix& imatrix, const std::string& tensor) {
  const auto found = imatrix.entries.find(tensor);
  return found == imatrix.entries.end() ? nullptr : &found->second;
}

}  // namespace

void select_entries(Imatrix& imatrix, const std::vector<std::string>& include,
                    const std::vector<std::string>& exclude) {
  const auto check_part = [&](const std::string& part) {
    for (const auto& [name, entry] : imatrix.entries)
      if (has_part(name, part)) return;
    fail_usage(imatrix.path, ": no entry's name has '", part, "' in it");
  };
  std::for_each(include.begin(), include.end(), check_part);
  std::for_each(exclude.begin(), exclude.end(), check_part);
  std::erase_if(imatrix.entries, [&](const auto& pair) {
    const auto named = [&](const std::string& part) { return has_part(pair.first, part); };
    return std::any_of(exclude.begin(), exclude.end(), named) ||
           (!include.empty() && std::none_of(include.begin(), include.end(), named));
  });
}

bool needs_importance(const PlanEntry& entry, int file_type) {
  if (entry.target == entry.source || is_embedding_or_output(entry.tensor)) return false;
  switch (entry.target) {
    case GgmlType::kIQ1_S:
    case GgmlType::kIQ1_M:
    case GgmlType::kIQ2_XXS:
    case GgmlType::kIQ2_XS:
    case GgmlType::kIQ2_S:
    case GgmlType::kIQ3_XXS:
      return true;
    case GgmlType::kQ2_K:
      return file_type == static_cast<int>(FileType::kQ2_K_S);
    default:
      return false;
  }
}

std::vector<float> importance_of(const PlanEntry& entry, const Imatrix* imatrix) {
  const ImatrixEntry* found = imatrix ? find_entry(*imatrix, entry.tensor) : nullptr;
  if (!found) return {};
  int64_t wanted = entry.shape.empty() ? 1 : entry.shape[0];
  for (size_t i = 2; i < entry.shape.size(); ++i) wanted *= entry.shape[i];
  if (static_cast<int64_t>(found->sums.size()) == wanted) return mean_squares(*found);
  check(role_of(entry.tensor) == TensorRole::kTokenEmbedding, imatrix->path, ": entry '",
        entry.tensor, "' has ", found->sums.size(), " columns, wanted ", wanted);
  return {};
}

void check_importance(const Plan& plan, const Imatrix* imatrix) {
  const bool any = std::any_of(
      plan.entries.begin(), plan.entries.end(),
      [&](const PlanEntry& entry) { return imatrix && find_entry(*imatrix, entry.tensor); });
  check(!imatrix || any, imatrix ? imatrix->path : "", ": no entry is one of this model's tensors");
  for (const PlanEntry& entry : plan.entries) {
    if (entry.target == entry.source) continue;
    const bool known = !importance_of(entry, imatrix).empty();
    if (known || !needs_importance(entry, plan.file_type)) continue;
    fail("tensor '", entry.tensor, "': ", type_name(entry.target), " in ", plan.type_name,
         " is garbage without an importance matrix, and ",
         imatrix ? concat(imatrix->path, " has no entry for it")
                 : "none was given (nibble imatrix makes one, --imatrix takes it)");
  }
}

std::vector<std::string> importance_notes(const Plan& plan, const Imatrix& imatrix) {
  std::vector<std::string> notes;
  std::string without;
  for (const PlanEntry& entry : plan.entries) {
    if (entry.target == entry.source || !is_quantized(entry.target)) continue;
    const ImatrixEntry* found = find_entry(imatrix, entry.tensor);
    if (!found && !is_embedding_or_output(entry.tensor))
      without += concat(without.empty() ? "" : ", ", entry.tensor);
    const std::string unreached = found ? unreached_experts(*found) : "";
    if (!unreached.empty())
      notes.push_back(concat(imatrix.path, ": ", entry.tensor, ": no activation reached expert ",
                             unreached, "; all columns count alike there"));
  }
  if (!without.empty())
    notes.push_back(concat(imatrix.path, ": no entry, so no importance, for ", without));
  return notes;
}

void set_imatrix_keys(GgufMetadata& metadata, const Imatrix& imatrix) {
  const auto append = [&](const std::string& key, GgufValue value) {
    metadata.erase(key);  // a source may have it, elsewhere
    metadata.set(key, std::move(value));
  };
  append("quantize.imatrix.file", imatrix.path.substr(0, kLongestValue));
  if (!imatrix.datasets.empty())
    append("quantize.imatrix.dataset", imatrix.datasets.front().substr(0, kLongestValue));
  append("quantize.imatrix.entries_count", static_cast<uint32_t>(imatrix.entries.size()));
  if (imatrix.chunk_count > 0)
    append("quantize.imatrix.chunks_count", static_cast<uint32_t>(imatrix.chunk_count));
}

}  // namespace nibble
