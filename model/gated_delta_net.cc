#include "model/gated_delta_net.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "model/layers.h"

namespace nibble {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kChunk = 64;
constexpr int64_t kMostOfOne = 1 << 20;  // of what a file counts: products overflow nothing

/// Which layers are recurrent: as the file lists them, or all but the last of so many in a row.
std::vector<bool> read_recurrent_layers(const GgufMetadata& metadata,
                                        const std::string& architecture, int64_t num_layers) {
  const std::string list = architecture + ".attention.recurrent_layers";
  std::vector<bool> layers(num_layers);
  if (metadata.contains(list)) {
    const auto* array = std::get_if<GgufArray>(metadata.find(list));
    check(array && array->type == GgufValueType::kBool, "key '", list, "' wants an array of bool");
    const auto& given = std::get<std::vector<uint8_t>>(array->values);
    check(static_cast<int64_t>(given.size()) == num_layers, "key '", list, "' wants ", num_layers,
          " elements, has ", given.size());
    std::copy(given.begin(), given.end(), layers.begin());
    return layers;
  }
  const std::string key = architecture + ".full_attention_interval";
  const int64_t interval = metadata.get_int_or(key, 4);
  check(interval > 0, "key '", key, "' must be positive, is ", interval);
  for (int64_t i = 0; i < num_layers; ++i) layers[i] = (i + 1) % interval != 0;
  return layers;
}

class CausalConvolution : public torch::autograd::Function<CausalConvolution> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& x,
                               const torch::Tensor& kernel, const torch::Tensor& positions) {
    ctx->save_for_backward({x, kernel, positions});
    const int64_t last = kernel.size(1) - 1;
    torch::Tensor y = x * kernel.select(1, last);
    for (int64_t lag = 1; lag <= std::min(last, x.size(0) - 1); ++lag)
      later(y, lag).addcmul_(earlier(x, lag) * reached(positions, lag),
                             kernel.select(1, last - lag));
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor &x = saved[0], &kernel = saved[1], &positions = saved[2], &dy = grads[0];
    const int64_t last = kernel.size(1) - 1;
    torch::Tensor dx = dy * kernel.select(1, last), dkernel = at::zeros_like(kernel);
    dkernel.select(1, last).copy_((dy * x).sum(0));
    for (int64_t lag = 1; lag <= std::min(last, x.size(0) - 1); ++lag) {
      const torch::Tensor seen = later(dy, lag) * reached(positions, lag);
      earlier(dx, lag).addcmul_(seen, kernel.select(1, last - lag));
      dkernel.select(1, last - lag).copy_((seen * earlier(x, lag)).sum(0));
    }
    return {dx, dkernel, torch::Tensor()};
  }

 private:
  static torch::Tensor later(const torch::Tensor& x, int64_t lag) {
    return x.narrow(0, lag, x.size(0) - lag);
  }
  static torch::Tensor earlier(const torch::Tensor& x, int64_t lag) {
    return x.narrow(0, 0, x.size(0) - lag);
  }
  /// [N - lag, 1]: 1 where a document has a position so much earlier, else 0.
  static torch::Tensor reached(const torch::Tensor& positions, int64_t lag) {
    return later(positions, lag).ge(lag).to(torch::kFloat32).unsqueeze(1);
  }
};

/// The convolution of rows that follow state.mixed, which becomes what follows them.
torch::Tensor continue_convolution(const torch::Tensor& x, const torch::Tensor& kernel,
                                   DeltaNetState& state) {
  const torch::Tensor all = state.mixed.defined() ? at::cat({state.mixed, x}) : x;
  const int64_t rows = all.size(0), kept = std::min(rows, kernel.size(1) - 1);
  state.mixed = all.narrow(0, rows - kept, kept).clone();
  const torch::Tensor positions =
      at::arange(rows, torch::TensorOptions(torch::kInt64).device(x.device()));
  return causal_convolution(all, kernel, positions).narrow(0, rows - x.size(0), x.size(0));
}

/// Each row of length 1 / scale, but for epsilon: x / sqrt(sum(x^2) + epsilon) * scale.
torch::Tensor unit_rows(const torch::Tensor& x, double epsilon, double scale) {
  const int64_t size = x.size(-1);
  const double root = std::sqrt(static_cast<double>(size));
  const torch::Tensor weight = at::full({size}, scale / root, x.options().requires_grad(false));
  return rms_norm(x.reshape({-1, size}), weight, epsilon / size).view(x.sizes());
}

/// Of every chunk what the recurrence takes of it: M chunks of C positions, R * G value heads.
struct ChunkTerms {
  torch::Tensor values;       // [M, R, G, C, d]: what is learned at the keys, where the state is 0
  torch::Tensor keys;         // [M, R, G, C, d]: what the state has less of that, where it is not
  torch::Tensor queries;      // [M, R, G, C, d], decayed from the chunk's start
  torch::Tensor attention;    // [M, R, G, C, C]: of queries to what is learned within the chunk
  torch::Tensor keys_to_end;  // [M, R, G, C, d], decayed to the chunk's end
  torch::Tensor decay;        // [M, R, G, 1, 1], of the whole chunk
};

ChunkTerms chunk_terms(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const torch::Tensor& g, const torch::Tensor& beta) {
  const int64_t size = q.size(-2);
  // Summed in float64: a difference of two sums is small where the sums are not.
  const torch::Tensor sums = g.to(torch::kFloat64).cumsum(-1);
  const auto factor = [](const torch::Tensor& logarithm) {
    return logarithm.to(torch::kFloat32).exp();
  };
  const torch::Tensor unseen =
      at::ones({size, size}, torch::TensorOptions(torch::kBool).device(q.device())).triu(1);
  // [M, R, G, C, C]: how far what was learned at the column has decayed at the row.
  const torch::Tensor decays = (sums.unsqueeze(-1) - sums.unsqueeze(-2))
                                   .to(torch::kFloat32)
                                   .masked_fill(unseen, -std::numeric_limits<float>::infinity())
                                   .exp();
  const torch::Tensor from_start = factor(sums).unsqueeze(-1);
  const torch::Tensor transposed = k.transpose(-1, -2), rates = beta.unsqueeze(-1);
  // Row i: what position i learns, less what it finds of earlier ones in the chunk; below the
  // diagonal, which is 1.
  const torch::Tensor system = at::matmul(k, transposed).unsqueeze(1) * decays * rates;
  const torch::Tensor solved = at::linalg_solve_triangular(
      system, at::cat({v * rates, k.unsqueeze(1) * (from_start * rates)}, -1), /*upper=*/false,
      /*left=*/true, /*unitriangular=*/true);
  const std::vector<torch::Tensor> halves = solved.chunk(2, -1);
  const torch::Tensor end = sums.narrow(-1, size - 1, 1);
  return {halves[0],
          halves[1],
          q.unsqueeze(1) * from_start,
          at::matmul(q, transposed).unsqueeze(1) * decays,
          k.unsqueeze(1) * factor(end - sums).unsqueeze(-1),
          factor(end).unsqueeze(-1)};
}

}  // namespace

DeltaNetSizes read_delta_net_sizes(const GgufMetadata& metadata, const std::string& architecture,
                                   int64_t num_layers) {
  const auto count = [&](const char* name) {
    const std::string key = architecture + ".ssm." + name;
    const int64_t found = metadata.get_int(key);
    check(found > 0 && found <= kMostOfOne, "key '", key, "' must lie in 1 to ", kMostOfOne,
          ", is ", found);
    return found;
  };
  DeltaNetSizes sizes;
  sizes.kernel = count("conv_kernel");
  sizes.head_size = count("state_size");
  sizes.key_heads = count("group_count");
  sizes.value_heads = count("time_step_rank");
  check(sizes.value_heads % sizes.key_heads == 0, "key '", architecture, ".ssm.group_count' (",
        sizes.key_heads, ") must divide ", architecture, ".ssm.time_step_rank (", sizes.value_heads,
        ")");
  const int64_t inner = count("inner_size");
  check(inner == sizes.value(), "key '", architecture, ".ssm.inner_size' is ", inner, ", ",
        sizes.value_heads, " heads of ", sizes.head_size, " have ", sizes.value());
  sizes.layers = read_recurrent_layers(metadata, architecture, num_layers);
  return sizes;
}

DocumentChunks chunk_documents(const Packing& packing, torch::Device device) {
  const std::vector<int64_t>& lengths = packing.lengths;
  const int64_t size = std::min(kChunk, packing.longest);
  std::vector<int64_t> starts(lengths.size()), order(lengths.size());
  std::exclusive_scan(lengths.begin(), lengths.end(), starts.begin(), int64_t{0});
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  std::vector<int64_t> rows, places(starts.back() + lengths.back());
  std::vector<float> filled;
  DocumentChunks chunks;
  for (int64_t begin = 0; begin < packing.longest; begin += size) {
    chunks.of_each_step.push_back(0);
    for (const int64_t document : order) {
      if (lengths[document] <= begin) break;
      ++chunks.of_each_step.back();
      for (int64_t i = begin; i < begin + size; ++i) {
        const bool has_row = i < lengths[document];
        const int64_t row = has_row ? starts[document] + i : 0;
        if (has_row) places[row] = static_cast<int64_t>(rows.size());
        rows.push_back(row);
        filled.push_back(has_row ? 1.0f : 0.0f);
      }
    }
  }
  chunks.positions = packing.positions.to(device);
  chunks.rows = torch::tensor(rows, torch::kInt64).to(device);
  chunks.filled = torch::tensor(filled, torch::kFloat32).view({-1, size}).to(device);
  chunks.places = torch::tensor(places, torch::kInt64).to(device);
  return chunks;
}

torch::Tensor causal_convolution(const torch::Tensor& x, const torch::Tensor& kernel,
                                 const torch::Tensor& positions) {
  return CausalConvolution::apply(x, kernel, positions);
}

torch::Tensor gated_delta_rule(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v, const torch::Tensor& g,
                               const torch::Tensor& beta, const DocumentChunks& chunks,
                               torch::Tensor* state) {
  const int64_t count = chunks.filled.size(0), size = chunks.filled.size(1), d = q.size(2),
                shared = q.size(1), times = v.size(1) / shared;
  const auto chunked = [&](const torch::Tensor& x) { return x.index_select(0, chunks.rows); };
  const auto keys = [&](const torch::Tensor& x) {  // [M, G, C, d]
    return chunked(x).view({count, size, shared, d}).transpose(1, 2).contiguous();
  };
  // A row that is not there learns nothing and forgets nothing.
  const auto rates = [&](const torch::Tensor& x) {  // [M, R, G, C]
    return (chunked(x).view({count, size, times * shared}) * chunks.filled.unsqueeze(-1))
        .transpose(1, 2)
        .reshape({count, times, shared, size});
  };
  const ChunkTerms terms = chunk_terms(
      keys(q), keys(k),
      chunked(v).view({count, size, times, shared, d}).permute({0, 2, 3, 1, 4}).contiguous(),
      rates(g), rates(beta));

  torch::Tensor heads;  // [documents, R, G, d, d]; undefined: 0
  if (state && state->defined()) heads = state->view({1, times, shared, d, d});
  std::vector<torch::Tensor> outputs;
  int64_t first = 0;
  for (size_t step = 0; step < chunks.of_each_step.size(); ++step) {
    const int64_t documents = chunks.of_each_step[step];
    const auto of_step = [&](const torch::Tensor& x) { return x.narrow(0, first, documents); };
    torch::Tensor learned = of_step(terms.values);
    if (heads.defined()) {
      heads = heads.narrow(0, 0, documents);
      learned = learned - at::matmul(of_step(terms.keys), heads);
    }
    torch::Tensor output = at::matmul(of_step(terms.attention), learned);
    if (heads.defined()) output = output + at::matmul(of_step(terms.queries), heads);
    outputs.push_back(output);
    if (state || step + 1 < chunks.of_each_step.size()) {
      const torch::Tensor added = at::matmul(of_step(terms.keys_to_end).transpose(-1, -2), learned);
      heads = heads.defined() ? heads * of_step(terms.decay) + added : added;
    }
    first += documents;
  }
  if (state) *state = heads.view({times * shared, d, d});
  return at::cat(outputs)
      .permute({0, 3, 1, 2, 4})
      .reshape({count * size, times * shared * d})
      .index_select(0, chunks.places);
}

torch::Tensor gated_delta_net(const DeltaNetInputs& inputs, const DeltaNetWeights& weights,
                              const DeltaNetSizes& sizes, double norm_epsilon,
                              const DocumentChunks& chunks, DeltaNetState* state) {
  const int64_t rows = inputs.mixed.size(0), d = sizes.head_size;
  const torch::Tensor convolved =
      at::silu(state ? continue_convolution(inputs.mixed, weights.kernel, *state)
                     : causal_convolution(inputs.mixed, weights.kernel, chunks.positions));
  const std::vector<torch::Tensor> parts =
      convolved.split_with_sizes({sizes.key(), sizes.key(), sizes.value()}, 1);
  const auto split = [&](const torch::Tensor& x, int64_t heads) {
    return x.reshape({rows, heads, d});
  };
  const int64_t times = sizes.value_heads / sizes.key_heads;
  const bool moved = sizes.shares_neighbours && times > 1;
  // Value heads of all key heads side by side, as gated_delta_rule() has them.
  const auto apart = [&](const torch::Tensor& x) {
    return moved ? x.unflatten(1, {sizes.key_heads, times}).transpose(1, 2).flatten(1, 2) : x;
  };
  const torch::Tensor g = at::softplus(inputs.alpha + weights.time_step) * weights.decay;
  torch::Tensor y =
      gated_delta_rule(unit_rows(split(parts[0], sizes.key_heads), norm_epsilon, 1 / std::sqrt(d)),
                       unit_rows(split(parts[1], sizes.key_heads), norm_epsilon, 1),
                       apart(split(parts[2], sizes.value_heads)), apart(g),
                       apart(inputs.beta.sigmoid()), chunks, state ? &state->heads : nullptr);
  if (moved) y = y.view({rows, times, sizes.key_heads, d}).transpose(1, 2).reshape({rows, -1});
  const torch::Tensor normed = rms_norm(y.view({-1, d}), weights.norm, norm_epsilon);
  return swiglu(inputs.gate, normed.view({rows, sizes.value()}));
}

int64_t delta_net_activation_bytes(const DeltaNetSizes& sizes) {
  const int64_t key = sizes.key(), value = sizes.value(), keys = sizes.key_heads,
                heads = sizes.value_heads;
  // The convolution's input and result; queries and keys before their norms and, like values, in
  // chunks; their norms' inverse roots.
  int64_t floats = 2 * sizes.mixed() + 4 * key + value + 2 * keys;
  // alpha, beta and what is computed of them, a number for each head.
  floats += 8 * heads;
  // Of each position to those of its chunk: k k and q k of key heads, the decays, and what they
  // make of both: the system, twice, and attention.
  floats += (2 * keys + 4 * heads) * kChunk;
  // The system's solution, queries from the start, keys to the end, what is learned, and a state
  // for each chunk.
  floats += 5 * value + value * sizes.head_size / kChunk;
  // The last norm's input and result, and the gate.
  floats += 3 * value;
  return floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace nibble
