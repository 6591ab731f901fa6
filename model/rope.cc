#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "base/error.h"

namespace nibble {

RopeOptions read_rope_options(const GgufMetadata& metadata, const std::string& architecture,
                              int64_t dimensions) {
  const std::string prefix = architecture + ".rope.";
  RopeOptions options;
  options.dimensions = metadata.get_int_or(prefix + "dimension_count", dimensions);
  options.base = metadata.get_float_or(prefix + "freq_base", 10000.0);
  options.attention_factor = metadata.get_float_or(prefix + "scaling.attn_factor", 1.0);
  options.original_context =
      metadata.get_int_or(prefix + "scaling.original_context_length",
                          metadata.get_int_or(architecture + ".context_length", 0));

  const std::string type = metadata.get_string_or(prefix + "scaling.type", "linear");
  // llama.cpp takes LongRoPE's divisors from the tensors alone, whatever the type says.
  check(type == "none" || type == "linear" || type == "yarn" || type == "longrope", "key '", prefix,
        "scaling.type' is '", type, "'; nibble has none, linear, yarn and longrope");
  options.yarn = type == "yarn";
  // scale_linear is the key's old name; 0 stands for "not set".
  const double factor = metadata.get_float_or(prefix + "scaling.factor",
                                              metadata.get_float_or(prefix + "scale_linear", 0.0));
  if (factor != 0.0 && type != "none") options.factor = factor;

  check(options.dimensions > 0 && options.dimensions % 2 == 0, "key '", prefix,
        "dimension_count' must be even and positive, is ", options.dimensions);
  check(options.base > 0 && options.factor > 0,
        "rope base and scaling factor must be positive, are ", options.base, " and ",
        options.factor);
  check(!options.yarn || options.original_context > 0, "rope scaling 'yarn' needs key '", prefix,
        "scaling.original_context_length'");
  return options;
}

namespace {

/// The pair that makes `rotations` turns in the original context.
double yarn_pair(const RopeOptions& options, double rotations) {
  const double wavelengths = options.original_context / (rotations * 2 * std::numbers::pi);
  return options.dimensions * std::log(wavelengths) / (2 * std::log(options.base));
}

/// Share of the unscaled angle in a pair's angle: 1 for high frequencies, 0 for low ones.
double yarn_share(const RopeOptions& options, int64_t pair) {
  const double low = std::max(0.0, std::floor(yarn_pair(options, options.beta_fast)));
  const double high =
      std::min(options.dimensions - 1.0, std::ceil(yarn_pair(options, options.beta_slow)));
  return 1.0 - std::clamp((pair - low) / std::max(0.001, high - low), 0.0, 1.0);
}

}  // namespace

double rope_frequency(const RopeOptions& options, int64_t pair) {
  const double divisor = options.divisors.empty() ? 1.0 : options.divisors[pair];
  const double plain = std::pow(options.base, -2.0 * pair / options.dimensions) / divisor;
  const double share = options.yarn ? yarn_share(options, pair) : 0.0;
  return plain / options.factor * (1.0 - share) + plain * share;
}

double rope_magnitude(const RopeOptions& options) {
  const bool stretched = options.yarn && options.factor > 1.0;
  return options.attention_factor * (stretched ? 1.0 + 0.1 * std::log(options.factor) : 1.0);
}

torch::Tensor Rope::rotation(const torch::Tensor& positions, int64_t limit) {
  if (!table_.defined() || table_.size(0) < limit || table_.device() != positions.device()) {
    const int64_t pairs = options_.dimensions / 2;
    // Doubling keeps the total work linear while a generation grows.
    const int64_t rows = std::max(limit, table_.defined() ? 2 * table_.size(0) : limit);
    const double magnitude = rope_magnitude(options_);
    torch::Tensor table = torch::empty({rows, pairs}, torch::kComplexFloat);
    auto* out = reinterpret_cast<std::complex<float>*>(table.data_ptr<c10::complex<float>>());
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const double frequency = rope_frequency(options_, pair);
      for (int64_t position = 0; position < rows; ++position)
        out[position * pairs + pair] = std::polar(magnitude, frequency * position);
    }
    table_ = table.to(positions.device());
  }
  return table_.index_select(0, positions).unsqueeze(1);
}

torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& rotation, RopePairs pairs) {
  const int64_t turned = 2 * rotation.size(-1), head_size = x.size(-1);
  const bool halves = pairs == RopePairs::kHalves;
  const torch::Tensor head = turned == head_size ? x : x.narrow(-1, 0, turned);
  // [N, H, d/2, 2]: the elements of a pair beside each other.
  const torch::Tensor paired =
      halves ? head.reshape({x.size(0), x.size(1), 2, turned / 2}).transpose(-1, -2).contiguous()
             : head.reshape({x.size(0), x.size(1), turned / 2, 2});
  const torch::Tensor both = at::view_as_real(at::view_as_complex(paired) * rotation);
  const torch::Tensor result = (halves ? both.transpose(-1, -2) : both).flatten(-2);
  if (turned == head_size) return result;
  return at::cat({result, x.narrow(-1, turned, head_size - turned)}, -1);
}

}  // namespace nibble
