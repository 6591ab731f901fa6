// Groups in lanes against the same groups one by one: no lane sees another's numbers.
#include "quant/format/ggml_groups.h"

#include <gtest/gtest.h>

#include "format_checks.h"

namespace nibble {
namespace {

constexpr int kSize = 16, kLanes = 16, kCount = kSize * kLanes;

/// Compares every lane of `lanes` with what `single` gives for its group alone.
template <class Single>
void expect_lanes(const GroupChoices<kSize, kLanes>& lanes, const std::vector<float>& groups,
                  const std::vector<float>& weights, const Single& single) {
  for (int l = 0; l < kLanes; ++l) {
    const BlockChoice<kSize> alone = single(&groups[l * kSize], &weights[l * kSize]);
    EXPECT_EQ(bits_of(lanes.d[l]), bits_of(alone.d)) << "group " << l;
    for (int i = 0; i < kSize; ++i)
      EXPECT_EQ(lanes.codes[i * kLanes + l], alone.codes[i]) << "group " << l << ", weight " << i;
  }
}

TEST(GgmlGroups, LanesAreTheGroupsOneByOne) {
  for (Row& row : make_rows(30)) {
    SCOPED_TRACE(row.name);
    row.weights.resize(kCount);
    // A group of zeros and one that is flat, beside others.
    for (int i = 0; i < kSize; ++i) row.weights[3 * kSize + i] = 0.0f;
    for (int i = 0; i < kSize; ++i) row.weights[5 * kSize + i] = -0.25f;
    std::vector<float> importance = gaussian_row(31, 1.0f);
    importance.resize(kCount);
    for (float& x : importance) x = x * x;
    std::vector<float> x(kCount), weights(kCount);
    to_lanes<kSize, kLanes>(row.weights.data(), x.data());
    to_lanes<kSize, kLanes>(importance.data(), weights.data());

    GroupChoices<kSize, kLanes> lanes;
    ggml_weighted_choices<kSize, kLanes>(x.data(), weights.data(), 4, &lanes);
    expect_lanes(lanes, row.weights, importance, [](const float* group, const float* importance) {
      return ggml_weighted_choice<kSize>(group, importance, 4);
    });
    ggml_weighted_ranges<kSize, kLanes, false>(x.data(), weights.data(), 3, importance_trials(),
                                               &lanes);
    expect_lanes(lanes, row.weights, importance, [](const float* group, const float* importance) {
      return ggml_weighted_range_choice<kSize>(group, importance, 3);
    });
  }
}

}  // namespace
}  // namespace nibble
