// Laws that every block format obeys, each a function of a Format that says what it found wrong (""
// when the law holds), so that negative controls can hand in a broken one. Rows of weights to try
// them on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "quant/format/registry.h"

namespace nibble {

/// "" or what is wrong.
using Verdict = std::string;

/// Indices into formats() of those that `holds` is true of, for INSTANTIATE_TEST_SUITE_P.
template <class Predicate>
std::vector<size_t> formats_where(Predicate holds) {
  std::vector<size_t> indices;
  for (size_t i = 0; i < formats().size(); ++i) {
    if (holds(formats()[i])) indices.push_back(i);
  }
  return indices;
}
inline bool has_scales(const Format& format) { return format.num_scales > 0; }
inline bool has_trained_scales(const Format& format) {
  return has_scales(format) && !format.has_byte_scales;
}
/// A step and an offset per block.
inline bool has_offset(const Format& format) { return format.num_scales == 2; }
/// A float16 step (and min) per block, and integers that multiply them per group of weights.
inline bool has_sub_scales(const Format& format) {
  return format.num_scales > 2 && !format.has_byte_scales;
}
/// Of these, those with mins: d, dmin, t's, u's, an even number.
inline bool has_sub_mins(const Format& format) {
  return has_sub_scales(format) && format.num_scales % 2 == 0;
}

/// Where in a block's scales the integers t and u of weight i's group are; 0 where there are none.
struct SubScales {
  int64_t t = 0, u = 0;
};
inline SubScales sub_scales_of(const Format& format, size_t i) {
  if (!has_sub_scales(format)) return {};
  const int first = has_sub_mins(format) ? 2 : 1;
  const int64_t groups = (format.num_scales - first) / first;
  const int64_t group = static_cast<int64_t>(i) % format.block_size / (format.block_size / groups);
  return {first + group, has_sub_mins(format) ? first + groups + group : 0};
}

/// What weight i's level is multiplied by, for snapped scales of all blocks.
inline float step_at(const Format& format, const std::vector<float>& snapped, size_t i) {
  const float* scales = &snapped[i / format.block_size * format.num_scales];
  if (format.has_byte_scales)
    return scales[i % format.block_size * format.num_scales / format.block_size];
  const int64_t t = sub_scales_of(format, i).t;
  return t ? scales[0] * scales[t] : scales[0];
}
/// What is added to weight i's level.
inline float offset_at(const Format& format, const std::vector<float>& snapped, size_t i) {
  const float* scales = &snapped[i / format.block_size * format.num_scales];
  if (has_offset(format)) return scales[1];
  const int64_t u = sub_scales_of(format, i).u;
  return u ? -(scales[1] * scales[u]) : 0.0f;
}

/// The levels that weights are rounded to, ascending: what numbers of all sizes become with steps
/// of 1 and offsets of 0.
inline const std::vector<float>& levels_of(const Format& format) {
  static std::map<GgmlType, std::vector<float>> known;
  std::vector<float>& levels = known[format.type];
  if (!levels.empty()) return levels;
  const Format& sound = require_format(format.type);
  std::vector<float> scales(sound.num_scales, sound.has_byte_scales ? 1.0f : 0.0f);
  scales[0] = 1.0f;
  std::set<float> found;
  for (float x = -200.0f; x <= 200.0f; x += 0.25f) {
    std::vector<float> weights(sound.block_size, x), out(sound.block_size);
    if (const int64_t t = sub_scales_of(sound, 0).t) scales[t] = 1.0f;
    sound.fake_quantize(weights.data(), scales.data(), out.data(), 1);
    found.insert(out[0]);
  }
  levels.assign(found.begin(), found.end());
  return levels;
}
/// The largest distance between two neighbours of them.
inline float largest_gap(const Format& format) {
  const std::vector<float>& levels = levels_of(format);
  float gap = 0.0f;
  for (size_t i = 1; i < levels.size(); ++i) gap = std::max(gap, levels[i] - levels[i - 1]);
  return gap;
}
/// The largest distance between two values that weight i can have.
inline float spacing_at(const Format& format, const std::vector<float>& snapped, size_t i) {
  return std::fabs(step_at(format, snapped, i)) * largest_gap(format);
}

/// A multiple of every block size.
constexpr int64_t kRowLength = 1024;

struct Row {
  std::string name;
  std::vector<float> weights;
};

inline std::vector<float> gaussian_row(uint32_t seed, float deviation) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> row(kRowLength);
  for (float& x : row) x = normal(generator);
  return row;
}

/// Rows that ordinary models hold, and those that break codecs.
inline std::vector<Row> make_rows(uint32_t seed) {
  std::mt19937 generator(seed + 1000);
  std::student_t_distribution<float> heavy(2.0f);
  std::uniform_int_distribution<int> small(-8, 8);
  const std::vector<float> normal = gaussian_row(seed, 0.02f);
  std::vector<Row> rows = {{"normal", normal}};
  const auto add = [&](const char* name, auto&& value_of) {
    std::vector<float> row(kRowLength);
    for (int64_t i = 0; i < kRowLength; ++i) row[i] = value_of(i);
    rows.push_back({name, row});
  };
  add("heavy-tailed", [&](int64_t) { return 0.01f * heavy(generator); });
  add("tied", [&](int64_t) { return static_cast<float>(small(generator)) / 8.0f; });
  add("half steps", [&](int64_t) { return static_cast<float>(2 * small(generator) + 1) / 2.0f; });
  add("zero", [](int64_t) { return 0.0f; });
  add("signed zeros", [](int64_t i) { return i % 3 ? 0.0f : -0.0f; });
  add("constant", [&](int64_t) { return normal[0]; });
  add("positive", [&](int64_t i) { return 0.5f + std::fabs(normal[i]); });
  add("one outlier", [&](int64_t i) { return i == 77 ? 30.0f : normal[i]; });
  add("sparse", [&](int64_t i) { return i % 50 ? 0.0f : normal[i]; });
  add("denormal", [&](int64_t i) { return normal[i] * 1e-38f; });
  add("below float16", [&](int64_t i) { return normal[i] * 1e-6f; });
  add("huge", [&](int64_t i) { return normal[i] * 5e5f; });
  return rows;
}

/// First difference of two float arrays, compared as bits.
inline Verdict compare_bits(const std::vector<float>& a, const std::vector<float>& b,
                            const char* what) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return concat(what, ": weight ", i, ": ", a[i], " is not ", b[i]);
    }
  }
  return "";
}

inline int64_t blocks_in(const Format& format, const std::vector<float>& weights) {
  return static_cast<int64_t>(weights.size()) / format.block_size;
}

inline std::vector<float> decode(const Format& format, const std::vector<std::byte>& blocks) {
  const int64_t num_blocks = static_cast<int64_t>(blocks.size()) / format.block_bytes;
  std::vector<float> out(num_blocks * format.block_size);
  format.decode(blocks.data(), out.data(), num_blocks);
  return out;
}

inline std::vector<std::byte> encode(const Format& format, const std::vector<float>& weights,
                                     const std::vector<float>& importance, EncodeMethod method) {
  std::vector<std::byte> blocks(blocks_in(format, weights) * format.block_bytes);
  format.encode(weights.data(), importance.empty() ? nullptr : importance.data(), blocks.data(),
                static_cast<int64_t>(weights.size()), method);
  return blocks;
}

inline std::vector<float> scales_of(const Format& format, const std::vector<std::byte>& blocks) {
  const int64_t num_blocks = static_cast<int64_t>(blocks.size()) / format.block_bytes;
  std::vector<float> scales(num_blocks * format.num_scales);
  format.scales_of(blocks.data(), scales.data(), num_blocks);
  return scales;
}

/// Blocks of any bytes, the same ones each time.
inline std::vector<std::byte> random_blocks(const Format& format, int64_t num_blocks) {
  std::mt19937 generator(static_cast<uint32_t>(format.type));
  std::vector<std::byte> blocks(num_blocks * format.block_bytes);
  for (std::byte& byte : blocks) byte = static_cast<std::byte>(generator());
  return blocks;
}

inline std::vector<float> snap(const Format& format, const std::vector<float>& scales) {
  std::vector<float> snapped(scales.size());
  const int64_t num_blocks = format.num_scales ? scales.size() / format.num_scales : 0;
  format.snap(scales.data(), snapped.data(), num_blocks);
  return snapped;
}

inline std::vector<std::byte> encode_with(const Format& format, const std::vector<float>& weights,
                                          const std::vector<float>& snapped) {
  std::vector<std::byte> blocks(blocks_in(format, weights) * format.block_bytes);
  format.encode_with(weights.data(), snapped.data(), blocks.data(), blocks_in(format, weights));
  return blocks;
}

inline std::vector<float> fake_quantize(const Format& format, const std::vector<float>& weights,
                                        const std::vector<float>& scales) {
  std::vector<float> out(weights.size());
  format.fake_quantize(weights.data(), scales.data(), out.data(), blocks_in(format, weights));
  return out;
}

/// Scales as training holds them: what `method` gives, off the float16 grid by up to `spread` of
/// themselves.
inline std::vector<float> trained_scales(const Format& format, const std::vector<float>& weights,
                                         float spread, uint32_t seed,
                                         EncodeMethod method = EncodeMethod::kRtn) {
  std::vector<float> scales = scales_of(format, encode(format, weights, {}, method));
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> factor(1.0f - spread, 1.0f + spread);
  for (float& scale : scales) scale *= factor(generator);
  return scales;
}

/// The parity law: what trains is what ships.
inline Verdict check_parity(const Format& format, const std::vector<float>& weights,
                            const std::vector<float>& scales) {
  return compare_bits(fake_quantize(format, weights, scales),
                      decode(format, encode_with(format, weights, snap(format, scales))),
                      "fake_quantize against decode(encode_with)");
}

/// Blocks whose weights are what they decode to, with their own scales, decode to the same again.
inline Verdict check_survival(const Format& format, const std::vector<std::byte>& blocks) {
  const std::vector<float> decoded = decode(format, blocks);
  const std::vector<float> again =
      decode(format, encode_with(format, decoded, scales_of(format, blocks)));
  // -0 may become 0: a code of 0 has one sign.
  for (size_t i = 0; i < decoded.size(); ++i) {
    if (decoded[i] != again[i]) return concat("weight ", i, ": ", decoded[i], " became ", again[i]);
  }
  return "";
}

/// What is read from blocks by one implementation of a format is, bit for bit, what another reads.
inline Verdict check_same_reading(const Format& format, const Format& other,
                                  const std::vector<std::byte>& blocks) {
  const int64_t num_blocks = static_cast<int64_t>(blocks.size()) / format.block_bytes;
  Verdict verdict = compare_bits(decode(format, blocks), decode(other, blocks), "decode");
  if (verdict.empty() && format.scales_of)
    verdict = compare_bits(scales_of(format, blocks), scales_of(other, blocks), "scales_of");
  if (!verdict.empty() || !format.codes_of) return verdict;
  std::vector<int8_t> codes(num_blocks * format.block_size), other_codes(codes.size());
  std::vector<float> steps(codes.size() / format.group_size), other_steps(steps.size());
  format.codes_of(blocks.data(), codes.data(), num_blocks);
  other.codes_of(blocks.data(), other_codes.data(), num_blocks);
  format.steps_of(blocks.data(), steps.data(), num_blocks);
  other.steps_of(blocks.data(), other_steps.data(), num_blocks);
  return codes != other_codes ? "codes_of differs" : compare_bits(steps, other_steps, "steps_of");
}

/// encode_with takes the nearest level: no level that weights nearby get is nearer.
inline Verdict check_nearest(const Format& format, const std::vector<float>& weights,
                             const std::vector<float>& scales, uint32_t seed) {
  const std::vector<float> snapped = snap(format, scales);
  const std::vector<float> values = decode(format, encode_with(format, weights, snapped));
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> steps(-2.0f, 2.0f);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<float> nearby = weights;
    for (size_t i = 0; i < nearby.size(); ++i) {
      const float step = format.num_scales ? spacing_at(format, snapped, i) : weights[i] * 1e-3f;
      nearby[i] += step * steps(generator);
    }
    const std::vector<float> others = decode(format, encode_with(format, nearby, snapped));
    for (size_t i = 0; i < weights.size(); ++i) {
      const double error = std::fabs(static_cast<double>(values[i]) - weights[i]);
      const double other = std::fabs(static_cast<double>(others[i]) - weights[i]);
      // (w - m) * (1 / d) is rounded three times and the value twice, each by 2^-24 of at most the
      // largest of them.
      const double rounding = std::ldexp(std::fabs(weights[i]) + std::fabs(values[i]) + error, -22);
      if (error > other + rounding) {
        return concat("weight ", i, " = ", weights[i], " got ", values[i], ", but ", others[i],
                      " is nearer");
      }
    }
  }
  return "";
}

inline double row_error(const std::vector<float>& decoded, const std::vector<float>& weights,
                        const std::vector<float>& importance) {
  double error = 0.0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double difference = static_cast<double>(decoded[i]) - weights[i];
    error += (importance.empty() ? 1.0 : importance[i]) * difference * difference;
  }
  return error;
}

/// Search has at most the error of each other method.
inline Verdict check_search(const Format& format, const std::vector<float>& weights,
                            const std::vector<float>& importance) {
  const auto error_of = [&](EncodeMethod method) {
    return row_error(decode(format, encode(format, weights, importance, method)), weights,
                     importance);
  };
  const double searched = error_of(EncodeMethod::kSearch);
  for (const EncodeMethod method : {EncodeMethod::kGgml, EncodeMethod::kRtn}) {
    // Rounding of a sum of kRowLength doubles.
    if (searched > error_of(method) * (1.0 + kRowLength * 2.3e-16)) {
      return concat("search's error is ", searched, ", ", error_of(method), " by method ",
                    static_cast<int>(method));
    }
  }
  return "";
}

}  // namespace nibble
