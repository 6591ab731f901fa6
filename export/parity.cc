#include "export/parity.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "base/checksum.h"
#include "base/error.h"
#include "base/float16.h"
#include "quant/format/rows.h"

namespace nibble {

std::string WeightDifference::text() const {
  char line[160];
  std::snprintf(line, sizeof line,
                "row %lld, column %lld: wanted %.9g (0x%08x), found %.9g (0x%08x)",
                static_cast<long long>(row), static_cast<long long>(column), wanted,
                bits_of(wanted), found, bits_of(found));
  return line;
}

std::optional<WeightDifference> first_difference(std::span<const float> wanted,
                                                 std::span<const float> found, int64_t row_length) {
  check(wanted.size() == found.size(), "wanted ", wanted.size(), " weights, found ", found.size());
  if (wanted.empty() || std::memcmp(wanted.data(), found.data(), wanted.size_bytes()) == 0)
    return std::nullopt;
  size_t at = 0;
  while (bits_of(wanted[at]) == bits_of(found[at])) ++at;
  const auto index = static_cast<int64_t>(at);
  return WeightDifference{index / row_length, index % row_length, wanted[at], found[at]};
}

std::optional<int64_t> first_not_finite(std::span<const float> weights) {
  for (size_t at = 0; at < weights.size(); ++at)
    if (!std::isfinite(weights[at])) return static_cast<int64_t>(at);
  return std::nullopt;
}

uint64_t check_parity(GgmlType type, std::span<const std::byte> blocks,
                      std::span<const float> wanted, int64_t row_length) {
  std::vector<float> found(wanted.size());
  decode_tensor(type, blocks, found);
  if (const auto difference = first_difference(wanted, found, row_length))
    fail("the blocks do not decode to the weights that were trained: ", difference->text());
  if (const auto at = first_not_finite(found))
    fail("row ", *at / row_length, ", column ", *at % row_length, " is ", found[*at],
         ", not a finite number");
  return content_hash(found);
}

}  // namespace nibble
